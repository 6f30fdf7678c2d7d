"""What the true length and the own decoder save here: a training update and decoded batches, timed.

    python benchmarks/step.py [recipes/demo_cpu.yaml] [--repetitions 5]

Ours and what could be done instead alternate on the same clips, so that a busy machine slows both.
The figures are measured; they are printed and written to benchmarks/results/<machine>/step.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from peft_whisper.environment import machine, machine_name, versions
from peft_whisper.errors import run
from peft_whisper.files import write_json
from peft_whisper.model.base import quiet_transformers
from peft_whisper.opening import choose_precision
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import Session, open_session
from peft_whisper.terminal import Terminal

if TYPE_CHECKING:
    import torch

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.batches import Batch

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Time both contexts in training and in decoding; print and store medians and ratios."""
    made = argparse.ArgumentParser(prog="benchmarks/step.py", description=__doc__)
    made.add_argument("recipe", nargs="?", default="recipes/demo_cpu.yaml")
    made.add_argument(
        "--repetitions", type=int, default=5, help="of each; odd numbers suit medians"
    )
    args = made.parse_args(argv)
    console = Terminal()
    opened = open_session(load_recipe(args.recipe), console)
    session, _ = choose_precision(opened, "cpu", console)
    with quiet_transformers():
        seconds = measured(session, args.repetitions)
    report(seconds, session, console)
    return 0


def measured(session: Session, repetitions: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Median seconds of ours and of what could be done instead, by what is done."""
    work = {
        ("training update", "padded to 30 s"): training(session),
        ("decoding a batch", "padded to 30 s"): decoding(session),
        ("decoding a batch, both at 30 s", "transformers' generate"): generating(session),
    }
    return {name: alternate(*pair, repetitions) for name, pair in work.items()}


def training(session: Session) -> tuple[Callable[[], object], Callable[[], object]]:
    """The product's own update of one batch, at its true length and at 30 s."""
    from peft_whisper.assembly import make_updater
    from peft_whisper.train import start_accelerator

    updater, _ = make_updater(session, start_accelerator())
    trimmed, full = (update(session, share) for share in (0.0, 1.0))
    return lambda: updater.step(trimmed, 0.0), lambda: updater.step(full, 0.0)


def update(session: Session, full_share: float) -> list[Batch]:
    """The first clips of train as one update, split as the recipe's layout says."""
    from dataclasses import replace

    from peft_whisper.training.stream import Course, stream_updates

    layout = session.layout(processes=1)
    course = Course(
        clips=session.splits.train[: layout.clips_per_update],
        labels=session.labels,
        n_mels=session.n_mels,
        context=replace(session.context, jitter=0, full_share=full_share),
        data=session.recipe.data,
        layout=layout,
        updates=1,
        seed=1,
    )
    return next(stream_updates(course, rank=0))


def decoding(session: Session) -> tuple[Callable[[], object], Callable[[], object]]:
    """The product's own decoder with the base on one batch."""
    decoder, clips = (
        session.decoder(session.base.load(session.recipe.base.dtype, session.recipe.base.quantize)),
        batch(session),
    )
    return lambda: decoder.transcribe(clips, session.context), lambda: decoder.transcribe(
        clips, None
    )


def batch(session: Session) -> list[Clip]:
    """As many test clips as are decoded at once, those of middle length."""
    clips = sorted(session.splits.test, key=lambda clip: clip.duration_s)
    size = session.recipe.evaluation.batch
    first = max(0, (len(clips) - size) // 2)
    return clips[first : first + size]


def generating(session: Session) -> tuple[Callable[[], object], Callable[[], object]]:
    """The product's greedy decoder and `generate`, on the same encoder output, to equal tokens."""
    import torch
    from transformers.generation.utils import GenerationMixin
    from transformers.modeling_outputs import BaseModelOutput

    from peft_whisper.data.audio import load_wave
    from peft_whisper.data.batches import features
    from peft_whisper.model.encoder import encode
    from peft_whisper.scoring.decode import greedy

    model = session.base.load(session.recipe.base.dtype, session.recipe.base.quantize)
    rules, clips = session.recipe.evaluation, batch(session)
    mel = features(clips, 1500, session.n_mels, lambda clip: load_wave(clip.audio))
    prefix = torch.tensor([session.labels.prefix(clip.language) for clip in clips])
    limit = rules.max_tokens or 64
    with torch.inference_mode():
        heard = torch.cat([encode(model.model.encoder, part) for part in mel.split(4)])

    def ours() -> list[list[int]]:
        with torch.inference_mode():
            return greedy(model, heard, prefix, model.generation_config, limit)

    def theirs() -> torch.Tensor:
        return GenerationMixin.generate(  # Whisper's own would prepare the prefix once more
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=heard),
            decoder_input_ids=prefix,
            generation_config=model.generation_config,
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
        )

    return ours, theirs


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


def report(
    seconds: dict[tuple[str, str], tuple[float, float]], session: Session, console: Console
) -> None:
    """Print the table and store it under the machine's name."""
    table = Table("measured", "ours, s", "instead", "s", "ratio")
    for (what, instead), (ours, theirs) in seconds.items():
        table.add_row(what, f"{ours:.3f}", instead, f"{theirs:.3f}", f"{theirs / ours:.1f}x")
    console.print(table)
    rows = [
        {"what": what, "instead": instead, "ours_s": ours, "instead_s": theirs}
        for (what, instead), (ours, theirs) in seconds.items()
    ]
    facts = {
        "recipe": session.recipe.name,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    write_json(RESULTS / machine_name() / "step.json", {"kind": "measured"} | facts)


if __name__ == "__main__":
    run(main)
