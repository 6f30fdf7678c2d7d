"""What the true-length encoder saves here: a training update and a decoded batch, timed.

    python benchmarks/step.py [recipes/demo_cpu.yaml] [--repetitions 5]

Trimmed and full 30 s context alternate on the same clips, so that a busy machine slows both. The
figures are measured; they are printed and written to benchmarks/results/<machine>/step.json.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from peft_whisper.environment import machine, versions
from peft_whisper.errors import run
from peft_whisper.files import write_json
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import Session, open_session

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Time both contexts in training and in decoding; print and store medians and ratios."""
    made = argparse.ArgumentParser(prog="benchmarks/step.py", description=__doc__)
    made.add_argument("recipe", nargs="?", default="recipes/demo_cpu.yaml")
    made.add_argument(
        "--repetitions", type=int, default=5, help="of each; odd numbers suit medians"
    )
    args = made.parse_args(argv)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    session = open_session(load_recipe(args.recipe), console)
    work = {"train update": training(session), "decode batch": decoding(session)}
    seconds = {name: alternate(*pair, args.repetitions) for name, pair in work.items()}
    report(seconds, session, console)
    return 0


def training(session: Session) -> tuple[Callable[[], object], Callable[[], object]]:
    """The product's own update on one batch, trimmed and full."""
    from peft_whisper.data.batches import MicroBatch, TrainingBatches
    from peft_whisper.train import make_updater, start_accelerator

    updater, _ = make_updater(session, start_accelerator())
    size = session.recipe.training.batch
    clips = session.splits.train[:size]
    trimmed = session.context.positions(max(clip.duration_s for clip in clips))
    micro = [MicroBatch(tuple(range(len(clips))), positions) for positions in (trimmed, 1500)]
    batches = TrainingBatches(
        clips,
        micro,
        session.labels,
        session.n_mels,
        channel=session.recipe.data.channel,
        timestamps=0.0,
        seed=1,
        epoch=0,
    )
    return lambda: updater.step([batches[0]], 0.0), lambda: updater.step([batches[1]], 0.0)


def decoding(session: Session) -> tuple[Callable[[], object], Callable[[], object]]:
    """The product's own decoder with the base on one batch, trimmed and full."""
    decoder = session.decoder(session.base.load(session.recipe.base.dtype))
    clips = session.splits.test[: session.recipe.evaluation.batch]
    return lambda: decoder.transcribe(clips, session.context), lambda: decoder.transcribe(
        clips, None
    )


def alternate(
    first: Callable[[], object], second: Callable[[], object], repetitions: int
) -> tuple[float, float]:
    """Median seconds of both, run in turn after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repetitions + 1):
        for work, kept in zip((first, second), times, strict=True):
            began = time.perf_counter()
            work()
            if number:
                kept.append(time.perf_counter() - began)
    return median(times[0]), median(times[1])


def report(seconds: dict[str, tuple[float, float]], session: Session, console: Console) -> None:
    """Print the table and store it under the machine's name."""
    table = Table("measured", "trimmed s", "30 s context s", "ratio")
    for name, (trimmed, full) in seconds.items():
        table.add_row(name, f"{trimmed:.3f}", f"{full:.3f}", f"{full / trimmed:.1f}x")
    console.print(table)
    facts = machine()
    name = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']}-{facts['cores']}-cores".lower()).strip("-")
    rows = [
        {"what": what, "trimmed_s": trimmed, "full_s": full, "ratio": full / trimmed}
        for what, (trimmed, full) in seconds.items()
    ]
    facts = {"recipe": session.recipe.name, "machine": facts, "versions": versions(), "rows": rows}
    write_json(RESULTS / name / "step.json", {"kind": "measured"} | facts)


if __name__ == "__main__":
    run(main)
