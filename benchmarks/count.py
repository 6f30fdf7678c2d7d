"""What a training step costs, counted: FLOPs, bytes moved, kernels, activations kept, host syncs.

    python benchmarks/count.py recipes/lora_a10.yaml --rival
    python benchmarks/count.py recipes/*.yaml training.recompute=none --clips recipe --top 15

The recipe's own step runs at full size on tensors without memory behind them, as on a card: no GPU,
no weights, no speech. --rival counts the usual stack on the same clips too, and prints the bars.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from peft_whisper.errors import RecipeError, run
from peft_whisper.files import write_json
from peft_whisper.plan import check_lengths, check_target, read_recipes
from peft_whisper.recipe import Recipe
from peft_whisper.terminal import Terminal

BUDGETS = Path(__file__).parent / "budgets.json"
BUDGET_LAYERS = 2  # on either side: what a layer costs shows, in a tenth of the time
BUDGET_SECONDS, BUDGET_LABELS = 10.0, 64


def main(argv: list[str] | None = None) -> int:
    """Count the recipes, print the tables, and the bars where asked; exit code 0."""
    from counted_steps import check_countable

    args = parser().parse_intermixed_args(argv)
    recipes = read_recipes(args.recipes)
    check_lengths(args.seconds, args.labels)
    check_target("--json", args.json)
    clips = _clips(args.clips)
    for recipe in recipes:
        check_countable(recipe, args.rival)
    console = Console(stderr=True) if args.json == "-" else Terminal()
    if args.write_budgets:
        write_json(BUDGETS, {recipe.name: budget_of(recipe) for recipe in recipes})
        console.print(f"budgets: {BUDGETS}")
        return 0
    found = []
    for recipe in recipes:
        found += counted(recipe, args, clips, console)
    if args.json == "-":
        print(json.dumps(found, indent=2))
    elif args.json:
        write_json(Path(args.json), {"kind": "counted", "steps": found})
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="benchmarks/count.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="recipe files, and key.sub=value: changes to all",
    )
    made.add_argument("--seconds", type=float, default=10.0, help="of a clip (default: 10)")
    made.add_argument(
        "--labels", type=int, default=64, help="tokens of a transcript, with its prefix (64)"
    )
    made.add_argument(
        "--clips", default="1", help="clips of a micro-step (1); recipe: as the recipe says"
    )
    made.add_argument("--rival", action="store_true", help="the usual stack too, and the bars")
    made.add_argument("--top", type=int, default=0, help="that many operators of most bytes")
    made.add_argument("--json", metavar="FILE", help="write every figure there; - for stdout")
    made.add_argument(
        "--write-budgets",
        action="store_true",
        help=f"count {BUDGET_LAYERS} + {BUDGET_LAYERS} layers instead, for tests/test_budget.py",
    )
    return made


def _clips(text: str) -> int | None:
    if text == "recipe":
        return None
    if not text.isdecimal() or not int(text):
        raise RecipeError(f"--clips: found {text}, expected a number from 1 on, or recipe")
    return int(text)


def counted(
    recipe: Recipe, args: argparse.Namespace, clips: int | None, console: Console
) -> list[dict[str, Any]]:
    """Count one recipe and what it is compared with; print; return every figure."""
    from counted_steps import blueprint, count, count_rival, shapes_of

    shapes = shapes_of(recipe, args.seconds, args.labels, clips)
    steps = [count(recipe, blueprint(recipe), shapes)]
    if args.rival:
        steps.append(count_rival(recipe, blueprint(recipe), shapes))
    show(steps, console)
    for step in steps:
        top(step, args.top, console)
    if args.rival:
        bars(*steps, console)
        if recipe.adapter.decoder_layers != "none":
            adapter = recipe.adapter.model_copy(update={"encoder_layers": "none"})
            decoder = recipe.model_copy(update={"adapter": adapter})
            decoder_only_bar(count(decoder, blueprint(recipe), shapes), console)
    return [step.as_dict() for step in steps]


def show(steps: list[Any], console: Console) -> None:
    """The table of one recipe, and where the host waits."""
    shape, count = steps[0].shapes[0], len(steps[0].shapes)
    clips = "1 clip" if shape.clips == 1 else f"{shape.clips} clips"
    times = "" if count == 1 else f"{count} x "
    table = Table(f"{times}{clips}, {shape.labels} labels", *(step.name for step in steps))
    columns = [figures(step) for step in steps]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)
    for step in steps:
        for sync, often in Counter(step.tally.syncs).items():
            console.print(f"{step.name}, {sync.stage}: {often} x {sync.what} at {sync.where}")


def figures(step: Any) -> dict[str, str]:
    """What is shown of a counted step, by name."""
    from counted_steps import MICRO_STEP

    clips, count = step.clips, len(step.shapes)
    return {
        "encoder positions": f"{step.shapes[0].positions:,}",
        "TFLOP a clip": f"{step.flops / clips / 1e12:.3f}",
        "of these repeated": f"{step.repeated / clips / 1e12:.3f}",
        "closed form": "" if step.needed is None else f"{step.needed / 1e12:.3f}",
        "GB moved a clip": f"{step.moved() / clips / 1e9:.2f}",
        "GB kept a clip": f"{step.saved / step.shapes[0].clips / 1e9:.3f}",
        "kernels a micro-step": f"{step.kernels(*MICRO_STEP) / count:,.0f}",
        "kernels an update, beside": f"{step.kernels('update'):,}",
        "host syncs a micro-step": f"{len(step.syncs(*MICRO_STEP)) / count:g}",
        "host syncs an update, beside": f"{len(step.syncs('update')):,}",
    }


def top(step: Any, rows: int, console: Console) -> None:
    """The operators that move most, and those launched most often."""
    if not rows:
        return
    tally, clips = step.tally, step.clips
    for title, counter in (("GB a clip", tally.moved), ("kernels", tally.kernels)):
        table = Table("stage", "part", "operator", title, "share", title=step.name)
        for place, number in counter.most_common(rows):
            shown = f"{number / clips / 1e9:.3f}" if counter is tally.moved else f"{number:,}"
            share = f"{number / counter.total():.1%}"
            operator = place.operator.removeprefix("aten.").removesuffix(".default")
            table.add_row(place.stage, place.part, operator, shown, share)
        console.print(table)


def bars(ours: Any, rival: Any, console: Console) -> None:
    """One line for each bar: what it asks, what was counted, met or missed."""
    from counted_steps import MICRO_STEP

    if ours.needed is not None:  # else there is no closed form
        once = ours.flops - ours.repeated
        bar("FLOPs <= 1.05 x closed form", ours.flops / ours.clips / ours.needed, 1.05, console)
        bar("without what is repeated, the same", once / ours.clips / ours.needed, 1.05, console)
    bar("bytes <= 0.5 x usual stack", ours.moved() / rival.moved(), 0.5, console)
    bar("kernels <= 0.5 x usual stack", ours.kernels() / rival.kernels(), 0.5, console)
    bar("host syncs in micro-steps: 0", len(ours.syncs(*MICRO_STEP)), 0, console)


def decoder_only_bar(step: Any, console: Console) -> None:
    """That an adapter on the decoder alone never walks the encoder backward."""
    from counted_steps import total

    walked = total(step.tally.flops, "backward", part="encoder")
    bar("decoder-only adapter, FLOPs of the encoder's backward: 0", walked, 0, console)


def bar(asked: str, found: float, most: float, console: Console) -> None:
    console.print(f"{asked}: {found:.3g}, {'met' if found <= most else 'MISSED'}")


def budget_of(recipe: Recipe) -> dict[str, int]:
    """What one update of one clip costs with `BUDGET_LAYERS` layers on either side."""
    from counted_steps import MICRO_STEP, blueprint, count, shapes_of

    shapes = shapes_of(recipe, BUDGET_SECONDS, BUDGET_LABELS, 1)
    step = count(recipe, blueprint(recipe, BUDGET_LAYERS), shapes)
    return {
        "flops": step.flops,
        "bytes": step.moved(),
        "kernels": step.kernels(),
        "saved_bytes": step.saved,
        "syncs_micro_step": len(step.syncs(*MICRO_STEP)),
        "syncs_update": len(step.syncs("update")),
    }


if __name__ == "__main__":
    run(main)
