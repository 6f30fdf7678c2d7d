"""Seq2SeqTrainer and PEFT on a recipe, recorded as a run of ours is: for benchmarks/compare.py.

    python benchmarks/rivals/compared.py recipes/demo_cpu.yaml [key.sub=value ...]

The folder holds what a comparison reads, scored by our counts: no report. It trains to the end and
keeps the last weights, as the Trainer does when it isn't told to evaluate.

    python benchmarks/rivals/compared.py RUN/recipe.yaml --into FOLDER data.test.manifest=FILE

decodes other speech with what such a run has learned.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_trainer
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback

from peft_whisper.environment import cores, machine, peak_memory, versions
from peft_whisper.errors import run
from peft_whisper.evaluate import start_folder
from peft_whisper.files import staged_folder, write_json, write_jsonl, write_text
from peft_whisper.final_test import write_scores
from peft_whisper.model.adapters import trainable_count
from peft_whisper.model.base import quiet_transformers
from peft_whisper.recipe_yaml import dump_recipe, load_recipe
from peft_whisper.run_folder import make_way
from peft_whisper.session import (
    Session,
    check_splits,
    data_facts,
    enough_memory,
    open_session,
)
from peft_whisper.terminal import Terminal

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainer, WhisperProcessor

    from peft_whisper.data.audit import Clip

PRECISION = "bf16"
ADAPTER = "adapter"
Event = dict[str, Any]


class Stopwatch(TrainerCallback):
    """Seconds of each update, loading included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        self.began = time.perf_counter()


def main(argv: list[str] | None = None) -> int:
    """Train, or take a run's adapter; decode base and tuned model, and record both."""
    made = argparse.ArgumentParser(prog="benchmarks/rivals/compared.py", description=__doc__)
    made.add_argument("recipe")
    made.add_argument("--into", type=Path, help="decode with the run that RECIPE lies in")
    made.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    args = made.parse_intermixed_args(argv)
    console = Terminal()
    recipe = load_recipe(args.recipe, args.overrides)
    folder = Path(recipe.output) / recipe.name
    torch.set_num_threads(cores())
    session = open_session(recipe, console)
    if args.into:
        with quiet_transformers(), enough_memory(), staged_folder(args.into) as staging:
            start_folder(Path(args.recipe).parent, staging, recipe)
            hear(session, Path(args.recipe).parent / ADAPTER, staging)
        return 0
    make_way(folder)
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    check_splits(session, folder, console)
    with quiet_transformers(), enough_memory():
        compare(session, folder)
    write_text(folder / "README.md", f"# {recipe.name}\n\nA rival: Seq2SeqTrainer and PEFT.\n")
    return 0


def compare(session: Session, folder: Path) -> None:
    """Train to the end; the base, and what it has become, are decoded by the same trainer."""
    processor, watch = hf_trainer.make_processor(session), Stopwatch()
    model = hf_trainer.make_model(session)
    train = hf_trainer.prepare(session.splits.train, processor, session.recipe.data.channel)
    updates = hf_trainer.planned_updates(session)
    trainer = hf_trainer.make_trainer(
        session, model, train, PRECISION, updates, hf_trainer.MICRO, callbacks=[watch]
    )
    trainer.train()
    training = speed(session, watch.seconds) | {"updates": updates} | peak_memory()
    model.save_pretrained(folder / ADAPTER)
    with model.disable_adapter():
        base = heard(trainer, processor, session, session.splits.test)
    tuned = heard(trainer, processor, session, session.splits.test)
    began = time.perf_counter()
    validated = heard(trainer, processor, session, session.splits.validation)
    decoding = {"seconds": time.perf_counter() - began}
    write_scores(folder, session, at_30_s(base, tuned), training)
    rates = validation(session, validated) | decoding
    write_jsonl(folder / "log.jsonl", events(session, watch.seconds, rates))
    best = {"update": updates, "metric": "mer", "value": rates["mer"]}
    write_json(folder / "environment.json", facts(session, trainable_count(model)) | {"best": best})


def hear(session: Session, adapter: Path, into: Path) -> None:
    """Decode the test split with the base and with an adapter that an earlier run has kept."""
    processor, model = hf_trainer.make_processor(session), hf_trainer.make_model(session)
    set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
    trainer = hf_trainer.make_trainer(session, model, [], PRECISION, 1, hf_trainer.MICRO)
    with model.disable_adapter():
        base = heard(trainer, processor, session, session.splits.test)
    tuned = heard(trainer, processor, session, session.splits.test)
    write_scores(into, session, at_30_s(base, tuned), None)


def heard(
    trainer: Seq2SeqTrainer, processor: WhisperProcessor, session: Session, clips: tuple[Clip, ...]
) -> dict[str, str]:
    """Transcript by clip id."""
    examples = hf_trainer.prepare(clips, processor, session.recipe.data.channel)
    limit = session.recipe.evaluation.max_tokens
    texts = hf_trainer.transcribe(trainer, processor, examples, limit)
    return dict(zip((clip.id for clip in clips), texts, strict=True))


def at_30_s(base: dict[str, str], tuned: dict[str, str]) -> dict[str, dict[str, str]]:
    """By system: it hears every clip padded to 30 s, which is its own way as well."""
    own = {"base": base, "tuned": tuned}
    return own | {f"{name}_full_context": texts for name, texts in own.items()}


def clips_and_audio(session: Session) -> tuple[float, float]:
    """Clips of an update, and their seconds: those of the training split on average."""
    clips = session.splits.train
    count = min(session.layout(1).clips_per_update, len(clips))
    return count, count * sum(clip.duration_s for clip in clips) / len(clips)


def speed(session: Session, seconds: list[float]) -> dict[str, Any]:
    """As our runs have it: without the first update, which is warm-up."""
    spent = sum(seconds[1:])
    if not spent:
        return {"clips_per_s": None, "audio_s_per_s": None, "seconds": 0.0}
    clips, audio_s = clips_and_audio(session)
    count = len(seconds) - 1
    return {
        "clips_per_s": clips * count / spent,
        "audio_s_per_s": audio_s * count / spent,
        "seconds": spent,
    }


def validation(session: Session, texts: dict[str, str]) -> dict[str, float]:
    """WER and MER of the validation split."""
    from peft_whisper.scoring.metrics import measure, summarize
    from peft_whisper.scoring.normalize import normalizer

    rules = session.recipe.evaluation
    clean = normalizer(rules.normalizer)
    counted = [measure(clip.text, texts[clip.id], clean) for clip in session.splits.validation]
    score = summarize(counted, rules.normalizer, 0, session.recipe.seed)
    return {"wer": score.wer, "mer": score.mer}


def events(session: Session, seconds: list[float], rates: dict[str, float]) -> list[Event]:
    """Each update's time, and the one validation."""
    clips, audio_s = clips_and_audio(session)
    rows: list[Event] = [
        {
            **{"event": "train", "update": update, "seconds": spent, "loss": None},
            **{"clips_per_s": clips / spent, "audio_s_per_s": audio_s / spent},
        }
        for update, spent in enumerate(seconds, start=1)
    ]
    return [*rows, {"event": "validation", "update": len(seconds), "best": True} | rates]


def facts(session: Session, trained: int) -> dict[str, Any]:
    """What environment.json holds of our own runs."""
    base = session.base
    described = {"model": base.public_name, "revision": base.revision}
    described |= {"fingerprint": base.fingerprint, "multilingual": session.labels.multilingual}
    return {
        "versions": versions(),
        "machine": machine(),
        "base": described,
        "data": {name: data_facts(clips) for name, clips in session.splits.items()},
        "trainable_parameters": trained,
        "seed": session.recipe.seed,
    }


if __name__ == "__main__":
    run(main)
