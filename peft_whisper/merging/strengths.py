"""What an adapter gives on its own speech and takes from other speech, strength by strength."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.files import staged_folder, write_json
from peft_whisper.merging.fold import Mixture, at_strength, attached
from peft_whisper.scoring.sample import Speech, heard, own_length
from peft_whisper.terminal import progress

if TYPE_CHECKING:
    from rich.console import Console

    from peft_whisper.model.base import Base

SHOWN = 40  # characters of what the speech is, in the legend
BLUE, ORANGE = "#0072b2", "#d55e00"


def score(
    mixture: Mixture,
    base: Base,
    strengths: Sequence[float],
    tuned: Speech,
    general: Speech,
    console: Console,
) -> list[dict[str, float]]:
    """Word error rates, as fractions, of both kinds of speech for each strength.

    Clips are heard at their own length. A strength is folded into the base as merging would, and
    taken out again bit for bit.
    """
    from peft_whisper.model.adapters import merged

    # Of the lowest, so that what knows no strength is refused before the work.
    model = attached(replace(mixture, strength=min(strengths)), base)
    rows = []
    total = len(strengths) * (len(tuned.clips) + len(general.clips))
    with progress(console, "decoding", total) as task:
        for strength in strengths:
            with at_strength(model, strength), merged(model):
                rates = [_wer(model, base, one, task) for one in (tuned, general)]
            rows.append({"strength": strength, "tuned": rates[0], "general": rates[1]})
    return rows


def _wer(model: Any, base: Base, speech: Speech, task: Any) -> float:
    return speech.wer(heard(model, base, speech, own_length(), task.advance))


def write(into: Path, rows: Sequence[dict[str, float]], tuned: Speech, general: Speech) -> None:
    """Write strengths.json and strengths.png into the new folder `into`."""
    speech = {
        kind: {"what": one.what, "clips": len(one.clips), "normalizer": one.normalizer}
        for kind, one in (("tuned", tuned), ("general", general))
    }
    with staged_folder(into) as staging:
        write_json(staging / "strengths.json", {"speech": speech, "rows": list(rows)})
        (staging / "strengths.png").write_bytes(picture(rows, tuned.what, general.what))


def picture(rows: Sequence[dict[str, float]], tuned: str, general: str) -> bytes:
    """Both rates over strength, as PNG."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = drawing.subplots()
    at = [row["strength"] for row in rows]
    for kind, label, colour in (("tuned", tuned, BLUE), ("general", general, ORANGE)):
        rates = [100 * row[kind] for row in rows]
        axes.plot(at, rates, "o-", color=colour, label=label[:SHOWN])
        for x, rate in zip(at, rates, strict=True):
            axes.annotate(f"{rate:.0f}", (x, rate), (0, 6), textcoords="offset points", ha="center")
    axes.set(xlabel="strength: 0 is the base, 1 the adapter", ylabel="word error rate (%)")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    out = io.BytesIO()
    drawing.savefig(out, format="png", dpi=120)
    return out.getvalue()
