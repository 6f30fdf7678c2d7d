"""Does a recipe fit a card? Its peak memory, what it is made of, and what would make it fit.

python -m peft_whisper.plan recipes/*.yaml --card a10
python -m peft_whisper.plan recipes/lora_a10.yaml training.batch=32 --card t4 --explain
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from peft_whisper.errors import RecipeError, run
from peft_whisper.files import write_text
from peft_whisper.memory.cards import CARDS, Card, find_card, this_card
from peft_whisper.planning.explain import explain
from peft_whisper.planning.plans import Plan, make_plans
from peft_whisper.planning.report import show
from peft_whisper.recipe import Recipe
from peft_whisper.recipe_sections import MAX_TOKENS
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.terminal import progress

LONGEST_S = 30.0  # of a clip: Whisper hears no more at once
LABELS = 225  # half of what the decoder takes; 30 s of fast English speech have about 130
USUAL = "a10"
RECIPE_ENDS = (".yaml", ".yml")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.plan",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Say whether recipes fit a card before you rent it: the peak of training and of
decoding, what it is made of, the largest batch, and what would make it fit.

It runs the recipe's own training step and decoding at full size on tensors
without memory, so it takes no GPU, no weights and no speech; of the public
Whispers it needs no network either. The first answer about a large model takes a
minute or two; what was traced before is told at once.""",
        epilog=f"""\
cards: {", ".join(CARDS)}; or a size in GiB, such as 23.5;
  or this: the CUDA card of this computer, or its own memory where it has none

examples:
  does any recipe that ships fit an A10, and how well?
    %(prog)s recipes/*.yaml --card a10
  the same with other settings; what the peak is made of, in numbers to follow
    %(prog)s recipes/lora_a10.yaml training.batch=32 --card t4 --explain
  my clips are 12 s at most, their transcripts 60 tokens
    %(prog)s my.yaml --card rtx3090 --seconds 12 --labels 60
  a picture for the report, the figures for a program
    %(prog)s recipes/*.yaml --card h100 --picture plan.png --json plan.json

It exits with 0 whatever the verdict is: read it in the table, or `verdict` in
the JSON.""",
    )
    made.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="recipe files, and key.sub=value: changes to all",
    )
    made.add_argument("--card", help=f"card to fit (default: the one here, else {USUAL})")
    made.add_argument(
        "--seconds", type=float, default=LONGEST_S, help="longest clip (default: %(default)g)"
    )
    made.add_argument(
        "--labels",
        type=int,
        default=LABELS,
        help="tokens of the longest transcript, with its prefix (default: %(default)s)",
    )
    made.add_argument("--json", metavar="FILE", help="write every figure there; - for stdout alone")
    made.add_argument("--picture", type=Path, metavar="FILE", help="draw the peaks there (PNG)")
    made.add_argument("--explain", action="store_true", help="show the arithmetic behind the peaks")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parser().parse_intermixed_args(argv)
    recipes = read_recipes(args.recipes)
    check_lengths(args.seconds, args.labels)
    for option, path in (("--json", args.json), ("--picture", args.picture)):
        check_target(option, path)
    card = card_of(args.card)
    plans = traced(recipes, card, args.seconds, args.labels)
    if args.json == "-":
        print(_json(plans))
    else:
        console = Console(highlight=False, width=_width())
        show(plans, console)
        if args.explain:
            explain(plans, console)
    if args.picture is not None:
        from peft_whisper.planning.picture import draw

        draw(plans, args.picture)
        print(f"picture: {args.picture}", file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json not in (None, "-"):
        write_text(Path(args.json), _json(plans) + "\n")
        print(f"figures: {args.json}")
    return 0


def read_recipes(words: Sequence[str]) -> list[Recipe]:
    """Recipe files and overrides, told apart by their looks; raises RecipeError."""
    overrides = [one for one in words if "=" in one and not one.endswith(RECIPE_ENDS)]
    files = [one for one in words if one not in overrides]
    if not files:
        raise RecipeError(
            f"{overrides[0]} is a change, but to no recipe; name a recipe file too, for instance "
            "recipes/lora_a10.yaml"
        )
    return [load_recipe(file, overrides) for file in dict.fromkeys(files)]


def check_lengths(seconds: float, labels: int) -> None:
    """Raise RecipeError for clips or transcripts that Whisper can't take."""
    if not (math.isfinite(seconds) and 0 < seconds <= LONGEST_S):
        raise RecipeError(f"--seconds: found {seconds:g}, expected above 0 and up to {LONGEST_S:g}")
    if not 1 <= labels <= MAX_TOKENS:
        raise RecipeError(f"--labels: found {labels}, expected 1 to {MAX_TOKENS}")


def check_target(option: str, path: str | Path | None) -> None:
    """Before long work: raises RecipeError where the file can't be written."""
    if path in (None, "-"):
        return
    target = Path(str(path))
    if target.is_dir():
        raise RecipeError(f"{option}: {target} is a folder; give the name of a file in it")
    if option == "--picture" and target.suffix.lower() != ".png":
        raise RecipeError(f"{option}: {target} should end in .png, the one format it is drawn in")
    there = next(folder for folder in target.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise RecipeError(
            f"{option}: {target} can't be written in {there}: {error.strerror}"
        ) from error


def card_of(text: str | None) -> Card:
    """The card that was named; of none, this computer's if it has one, else an A10."""
    if text is not None and text.strip().lower() != "this":
        return find_card(text)
    # torch knows for sure, but takes seconds to import
    has_driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    if text is not None or has_driver:
        found = this_card()
        if text is not None or found.device == "cuda":
            return found
    return find_card(USUAL)


def traced(recipes: Sequence[Recipe], card: Card, seconds: float, labels: int) -> list[Plan]:
    """The recipes' plans, with progress on stderr."""
    console = Console(stderr=True, highlight=False)
    with progress(console, "tracing recipes", len(recipes)) as task:
        return make_plans(
            recipes, card, seconds, labels, lambda number: task.advance(1, recipes[number].name)
        )


def _json(plans: Sequence[Plan]) -> str:
    return json.dumps([plan.as_dict() for plan in plans], indent=2, ensure_ascii=False)


def _width() -> int | None:
    """Columns where stdout is no terminal: wide enough that no row is broken."""
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else 132


if __name__ == "__main__":
    run(main)
