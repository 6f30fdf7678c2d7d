"""The tracer against the CPU allocator's own log of the same step, really run.

    python benchmarks/memory.py [NUMBER ...]

A small Whisper is trained for real, un-instrumented, while torch's profiler writes down what the
CPU allocator does; and the same step is traced on tensors without storage. Each peak is printed
beside the other; a difference of more than 0.1 % fails. Writes results/<machine>/memory.json.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from peft_whisper.environment import machine, machine_name, versions
from peft_whisper.errors import StateError, run
from peft_whisper.files import write_json
from peft_whisper.memory.account import find_peak
from peft_whisper.memory.cpu_log import logged_peak
from peft_whisper.model.base import Base, quiet_transformers
from peft_whisper.model.sizes import Blueprint
from peft_whisper.planning.selftest import WITHIN, small_sizes
from peft_whisper.planning.tracing import Shape, TrainingTrace, fake
from peft_whisper.recipe import Recipe
from peft_whisper.terminal import Terminal

RESULTS = Path(__file__).parent / "results"
QV, ALL = {"modules": ["q", "v"], "rank": 8}, {"rank": 8, "dropout": 0.1}
FULL = {"method": "none"}
FP32: dict[str, Any] = {}
AUTO = {"precision": "bf16"}  # fp32 weights, products in bf16
BF16 = {"precision": "bf16", "dtype": "bfloat16"}
STEP = (Shape(8, 1024, 64),)
RAGGED = (Shape(8, 1024, 24), Shape(6, 704, 57), Shape(2, 1500, 9))
COMBINATIONS: list[tuple[dict, dict, dict, tuple[Shape, ...]]] = [
    (QV, FP32, {}, STEP),
    (ALL, BF16, {"recompute": "1/2", "optimizer": "adamw8bit"}, RAGGED),
    (ALL, FP32, {}, STEP),
    (ALL, FP32, {"recompute": "cheap"}, STEP),
    (ALL, FP32, {"recompute": "all"}, STEP),
    (QV, BF16, {}, STEP),
    (ALL, BF16, {}, STEP),
    (ALL, BF16, {"recompute": "cheap"}, STEP),
    (ALL, BF16, {"recompute": "2/3"}, STEP),
    (ALL, BF16, {"recompute": "all", "optimizer": "adamw8bit"}, STEP),
    (QV, AUTO, {"recompute": "cheap"}, STEP),
    (ALL, AUTO, {"recompute": "1/2"}, RAGGED),
    (FULL, FP32, {}, STEP),
    (FULL, FP32, {"recompute": "all"}, RAGGED),
    (FULL, AUTO, {"recompute": "cheap"}, STEP),
    (FULL, BF16, {"recompute": "1/2", "optimizer": "adamw8bit"}, STEP),
    (FULL, BF16, {"optimizer": "paged_adamw8bit"}, RAGGED),
    (ALL, BF16 | {"quantize": "int8"}, {}, STEP),
    (ALL, BF16 | {"quantize": "int8"}, {"recompute": "all", "optimizer": "adamw8bit"}, STEP),
    (QV, BF16 | {"quantize": "nf4"}, {"recompute": "1/2"}, RAGGED),
    (ALL, BF16 | {"quantize": "nf4"}, {"recompute": "all"}, STEP),
    (ALL, AUTO, {"attention": "tiled", "recompute": "1/2"}, RAGGED),
    (ALL | {"encoder_layers": "none"}, FP32, {}, RAGGED),
    (ALL | {"encoder_layers": "none"}, FP32, {"frozen_cache": "disk"}, RAGGED),
    (ALL | {"encoder_layers": "top 1"}, FP32, {"frozen_cache": "disk"}, RAGGED),
]


@dataclass(frozen=True)
class Row:
    """One combination: what was traced and what the allocator logged, bytes."""

    configuration: str
    traced: int
    real: int

    @property
    def error(self) -> float:
        return self.traced / self.real - 1


def main(argv: list[str] | None = None) -> int:
    """Compare all combinations, or those named; exit code 4 where one differs too much."""
    made = argparse.ArgumentParser(prog="benchmarks/memory.py", description=__doc__)
    made.add_argument("numbers", nargs="*", type=int, help="combinations to run, counted from 1")
    args = made.parse_args(argv)
    if wrong := [one for one in args.numbers if not 1 <= one <= len(COMBINATIONS)]:
        made.error(f"found {wrong[0]}, expected combinations 1 to {len(COMBINATIONS)}")
    console = Terminal()
    chosen = args.numbers or range(1, len(COMBINATIONS) + 1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = small_whisper(Path(folder))
        for number in chosen:
            rows.append(compare(base, *COMBINATIONS[number - 1]))
            one = rows[-1]
            console.print(f"{number:>2} {one.configuration}: {one.error:+.4%}")
    show(rows, console)
    if not args.numbers:
        store(rows)
    if worst := [one for one in rows if abs(one.error) > WITHIN]:
        raise StateError(f"{len(worst)} of {len(rows)} traces are more than 0.1 % off")
    return 0


def small_whisper(folder: Path) -> Base:
    """A random Whisper on disk: 3 + 3 layers, 256 wide, 4,000 words."""
    from transformers import WhisperForConditionalGeneration

    torch.manual_seed(1)
    with quiet_transformers():
        WhisperForConditionalGeneration(small_sizes(layers=3)).save_pretrained(folder)
    return Base("small", None, folder)


def compare(base: Base, adapter: dict, held: dict, training: dict, step: tuple) -> Row:
    """The peak of one update, traced and logged."""
    recipe = recipe_of(adapter, held, training)
    with fake("cpu"), quiet_transformers():
        trace = TrainingTrace(recipe, Blueprint(base.config()), "cpu")
        trace.step(step)
    traced = find_peak(trace.line, round_to=1).size
    words = [
        "full" if adapter == FULL else "q,v" if adapter == QV else "all-linear",
        held.get("quantize", ""),
        {id(AUTO): "fp32+bf16"}.get(id(held), held.get("precision", "fp32")),
        f"encoder {adapter['encoder_layers']}" if "encoder_layers" in adapter else "",
        f"recompute {recipe.training.recompute}",
        {"none": ""}.get(recipe.training.frozen_cache, "kept outputs"),
        {"torch": ""}.get(recipe.training.attention, "attention in tiles"),
        recipe.training.optimizer,
        "3 ragged micro-steps" if step == RAGGED else "",
    ]
    return Row(" ".join(filter(None, words)), traced, logged(recipe, base, step))


def recipe_of(adapter: dict, held: dict, training: dict) -> Recipe:
    """A recipe whose data nobody reads."""
    base = {name: held[name] for name in ("dtype", "quantize") if name in held}
    nowhere = {"manifest": "none.jsonl"}
    return Recipe.model_validate(
        {
            "name": "bench",
            "base": {"model": "small"} | base,
            "data": {"train": nowhere, "validation": nowhere, "test": nowhere},
            "adapter": adapter,
            "training": {"updates": 9, "learning_rate": 1e-5, "batch": 8}
            | {"precision": held.get("precision", "fp32")}
            | training,
            "evaluation": {"every": 9},
        }
    )


def logged(recipe: Recipe, base: Base, step: tuple[Shape, ...]) -> int:
    """Peak bytes of the CPU allocator over one update, from its own log of a real run."""
    real = TrainingTrace(recipe, base, "cpu", record=False)
    # Inside the products of a bf16 weight's gradient oneDNN packs matrices into up to 2 MiB of its
    # own; no card does. torch's kernels are slower and take nothing.
    packs = recipe.adapter.method == "none" and recipe.training.precision == "bf16"
    with torch.backends.mkldnn.flags(enabled=not packs):
        return logged_peak(lambda: real.step(step))


def show(rows: list[Row], console: Console) -> None:
    table = Table("one update, CPU", "traced, MiB", "allocator's log, MiB", "difference")
    for row in rows:
        table.add_row(
            row.configuration,
            f"{row.traced / 2**20:.2f}",
            f"{row.real / 2**20:.2f}",
            f"{row.error:+.3%}",
        )
    console.print(table)
    worst = max(abs(row.error) for row in rows)
    console.print(f"largest difference of {len(rows)} combinations: {worst:.3%} (bar: 0.1 %)")


def store(rows: list[Row]) -> None:
    found = [
        {
            "configuration": row.configuration,
            "traced_bytes": row.traced,
            "real_bytes": row.real,
            "error": row.error,
        }
        for row in rows
    ]
    facts = {"machine": machine(), "versions": versions(), "rows": found}
    write_json(RESULTS / machine_name() / "memory.json", facts)


if __name__ == "__main__":
    run(main)
