"""The final test: base and tuned model decode the test split; its scores, report and card.

What the base makes of a test split does not depend on the run, so it is decoded once and kept for
all runs that are scored on the same speech, by the same code, on the same machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.environment import machine
from peft_whisper.files import write_json, write_jsonl
from peft_whisper.kept import code_fingerprint, recalled, remember
from peft_whisper.recipe import settings
from peft_whisper.terminal import progress

if TYPE_CHECKING:
    import numpy as np
    import torch
    from rich.console import Console

    from peft_whisper.session import Session

Transcripts = dict[str, dict[str, str]]  # system -> clip id -> text
BASE, TUNED, FULL = "base", "tuned", "_full_context"
# The code that decides what a base hears.
HEARING = (
    *("data", "model", "positions.py", "scoring/decode.py", "scoring/search.py"),
    *("session.py", "training/precision.py", "final_test.py"),
)


def transcripts(session: Session, tuned: Path, device: str, console: Console) -> Transcripts:
    """Decode the test split with the base and with what `tuned` holds, trimmed and at full 30 s.

    Both are read from disk, so that what is scored is what a user would load.
    """
    from peft_whisper.model.adapters import merged
    from peft_whisper.model.trained import load_tuned

    clips = session.splits.test
    held = session.recipe.base
    base: Any = session.base.load(held.dtype, held.quantize, device)
    name = f"heard-{_heard_by(session)}"
    texts = _whole(recalled(name), session)
    with progress(console, "decoding the test split", (2 if texts else 4) * len(clips)) as task:

        def decode(system: str, model: torch.nn.Module) -> Transcripts:
            decoder = session.decoder(model)
            return {
                one: decoder.transcribe(clips, context, task.advance)
                for one, context in ((system, session.context), (system + FULL, None))
            }

        if texts:
            console.print("the base heard these clips before: its transcripts were kept")
        else:
            texts = decode(BASE, base)
            remember(name, texts)
        model: Any = load_tuned(base, session.base.fingerprint, tuned)
        model.to(device).eval()
        with merged(model):
            return texts | decode(TUNED, model)


def _heard_by(session: Session) -> str:
    """Digest of all that the base's transcripts depend on."""
    from peft_whisper.data.audit import data_fingerprint

    tree = settings(session.recipe)
    facts = {
        "code": code_fingerprint(HEARING),
        "machine": machine(),
        "base": [session.base.fingerprint, tree["base"]],
        "speech": data_fingerprint(session.splits.test),
        "data": {name: tree["data"].get(name) for name in ("channel", "language", "task")},
        "context": tree["context"],
        "precision": tree["training"]["precision"],
        "limits": [tree["evaluation"][name] for name in ("max_tokens", "batch")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _whole(kept: Any, session: Session) -> Transcripts:
    """What was kept, where it holds a text for every clip; else nothing."""
    ids = {clip.id for clip in session.splits.test}
    if not isinstance(kept, dict) or kept.keys() != {BASE, BASE + FULL}:
        return {}
    if not all(isinstance(texts, dict) and texts.keys() == ids for texts in kept.values()):
        return {}
    return kept


def write_scores(
    run: Path, session: Session, texts: Transcripts, training: dict[str, Any] | None
) -> dict[str, Any]:
    """Count errors; write predictions.jsonl and metrics.json into `run`; return the metrics."""
    from peft_whisper.scoring.metrics import difference, measure, summarize
    from peft_whisper.scoring.normalize import normalizer

    rules, seed = session.recipe.evaluation, session.recipe.seed
    clean = normalizer(session.recipe.evaluation.normalizer)
    clips = session.splits.test
    counted = {
        system: [measure(clip.text, heard[clip.id], clean) for clip in clips]
        for system, heard in texts.items()
    }
    rows = [
        {"id": clip.id, "reference": clip.text, "duration_s": round(clip.duration_s, 3)}
        | {system: heard[clip.id] for system, heard in texts.items()}
        | _counts({system: counted[system][number] for system in texts})
        for number, clip in enumerate(clips)
    ]
    metrics: dict[str, Any] = {
        system: summarize(
            utterances, session.recipe.evaluation.normalizer, rules.bootstrap, seed
        ).as_dict()
        for system, utterances in counted.items()
    }
    metrics["difference"] = difference(counted["base"], counted["tuned"], rules.bootstrap, seed)
    if training is not None:
        metrics["training"] = training
    write_jsonl(run / "predictions.jsonl", rows)
    write_json(run / "metrics.json", metrics)
    return metrics


def _counts(utterances: dict[str, Any]) -> dict[str, Any]:
    names = ("words", "substitutions", "deletions", "insertions")
    return {
        "counts": {
            system: {name: getattr(one, name) for name in names}
            for system, one in utterances.items()
        },
        "flags": {system: list(one.flags) for system, one in utterances.items()},
    }


def write_pages(run: Path, wave_of: Callable[[str], np.ndarray], normalizer: str) -> None:
    """Make report.html and the card README.md from what the run's folder records."""
    from peft_whisper.scoring.card import write_card
    from peft_whisper.scoring.report import write_report

    write_report(run, wave_of, normalizer)
    write_card(run)
