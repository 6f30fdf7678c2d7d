"""What each recipe costs, and what it gives: one table, from runs on the same speech.

    python benchmarks/compare.py recipes/demo_cpu.yaml sweep.yaml --seeds 3 --updates 40

Every recipe is trained with every seed, each run in a process of its own, on the same clips, with
the same budget, and scored on the same rows. A run that ends badly is a result too. Each is kept
as one JSON file, so a call that was ended at any point goes on where it was; to make a run again,
delete its file and its folder in outputs/compare. A sweep file (`recipe: FILE`, then
`key.sub: [values]`) stands for all of its combinations.
"""

from __future__ import annotations

import argparse
import signal
from math import inf
from pathlib import Path

from comparing.general import General, general_speech
from comparing.methods import make_methods
from comparing.page import write_page
from comparing.planned import Budget, Run, output, plan_runs, speech_of
from comparing.results import Facts, comparable, read_kept
from comparing.sitting import clock, left_s, missing, sit, unmade
from comparing.table import Made, show, write_readme
from comparing.tracing import Place, read_places, trace
from rich.console import Console

from peft_whisper.environment import machine_name
from peft_whisper.errors import RecipeError, StateError, run
from peft_whisper.memory.cards import find_card
from peft_whisper.run_folder import lock
from peft_whisper.terminal import Terminal

RESULTS = Path(__file__).parent / "results"
# Enough to see every part of the table made; too little to tell methods apart.
QUICK_CLIPS = 16
QUICK = (
    f"data.test.limit={QUICK_CLIPS}",
    f"data.validation.limit={QUICK_CLIPS}",
    "training.warmup=2",
)
QUICK_UPDATES = 4


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="benchmarks/compare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="recipes and sweep files, and key.sub=value: changes to all",
    )
    made.add_argument("--seeds", type=int, default=1, help="runs of each (default: %(default)s)")
    made.add_argument(
        "--on",
        type=Path,
        metavar="RECIPE",
        help="train all on this one's base and speech, and judge them as it does: "
        "--on recipes/demo_cpu.yaml",
    )
    add_budget(made)
    made.add_argument(
        "--rival",
        action="store_true",
        help="each recipe also by Seq2SeqTrainer and PEFT, as a rival",
    )
    add_cards(made)
    made.add_argument(
        "--general",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="speech that no recipe trains on, to see what is forgotten: a manifest, or a file of "
        "benchmarks/general; may be given again (clean_NAME beside the test manifest NAME is "
        "always heard)",
    )
    add_results(made)
    return made


def add_cards(made: argparse.ArgumentParser) -> None:
    """What is traced beside what is measured here."""
    made.add_argument(
        "--card",
        action="append",
        default=[],
        help="also trace what each recipe takes of this card, e.g. a10; may be given again",
    )
    made.add_argument(
        "--card-recipes",
        action="append",
        default=[],
        metavar="FILE",
        help="with --card: trace the recipes of the same names in this file instead, e.g. "
        "benchmarks/methods_large_v3.yaml; may be given again",
    )


def add_results(made: argparse.ArgumentParser) -> None:
    """Where results are, and what is done with them."""
    made.add_argument(
        "--into",
        type=Path,
        help="folder of the results (default: benchmarks/results/MACHINE/NAME of first recipe)",
    )
    shown = made.add_mutually_exclusive_group()
    shown.add_argument("--dry-run", action="store_true", help="say what would be run, and stop")
    shown.add_argument("--show", action="store_true", help="run nothing: the table of what is kept")


def add_budget(made: argparse.ArgumentParser) -> None:
    """What every run may spend: one of these."""
    budget = made.add_mutually_exclusive_group()
    budget.add_argument("--updates", type=int, help="of every run, instead of what the recipes say")
    budget.add_argument(
        "--clips", type=int, help="heard by every run, in as many updates as its batches make"
    )
    budget.add_argument(
        "--minutes", type=float, help="of training in every run, evaluation left out"
    )
    budget.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_UPDATES} updates, judged on few clips: a first look at the whole table",
    )


def main(argv: list[str] | None = None) -> int:
    """Make what is missing, then the table, the README and the page; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    check(args)
    cards = [find_card(one) for one in args.card]
    if args.on:
        args.recipes = [*speech_of(args.on), *args.recipes]
    if args.quick:
        args.updates, args.recipes = QUICK_UPDATES, [*args.recipes, *QUICK]
    budget = Budget(args.updates, args.clips, args.minutes)
    runs = plan_runs(args.recipes, args.seeds, budget, args.rival)
    places = read_places(cards, args.card_recipes, runs)
    speeches = general_speech(args.general, runs, QUICK_CLIPS if args.quick else None)
    into = args.into or RESULTS / machine_name() / (runs[0].source + "-quick" * args.quick)
    console = Terminal()
    if not (args.dry_run or args.show):
        alone()
    kept = read_kept(into)
    for problem in kept.problems:
        console.print(f"note: {problem}", style="yellow")
    if args.dry_run:
        show_plan(runs, kept.results, speeches, console)
        return 0
    try:
        if not args.show:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run as well
            sit(runs, kept.results, into, speeches, console)
            for place in places:
                trace(runs, kept.results, into, place, console)
    finally:  # whatever ended it: what is there is shown
        publish(runs, kept.results, into, places, speeches, console)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise RecipeError for a number that can't be meant."""
    for name in ("seeds", "updates", "clips"):
        if (count := getattr(args, name)) is not None and count < 1:
            raise RecipeError(f"--{name}: found {count}, expected 1 or more")
    if args.minutes is not None and not 0 < args.minutes < inf:
        raise RecipeError(f"--minutes: found {args.minutes:g}, expected more than 0")


def publish(
    runs: list[Run],
    results: dict[str, Facts],
    into: Path,
    places: list[Place],
    speeches: list[General],
    console: Console,
) -> None:
    """Print the table of what is kept, and write it as README.md and index.html."""
    if not results:
        console.print("nothing is kept yet")
        return
    shown, left_out = comparable(list(results.values()), runs)
    methods = make_methods(shown, {one.method: one.label for one in runs})
    energy, reserved = (
        any(one.mean_of("training", name) is not None for one in methods)
        for name in ("joules", "peak_reserved_bytes")
    )
    left_out += to_do(runs, results, speeches)
    made = Made(places, speeches, left_out, energy, reserved)
    show(methods, made, console)
    write_readme(into, methods, made)
    console.print(f"page: {write_page(into, methods, made)}")


def to_do(runs: list[Run], results: dict[str, Facts], speeches: list[General]) -> list[str]:
    """What is still missing of the comparison, as a sentence; none where that is nothing."""
    todo = missing(runs, results, speeches)
    made = [one for one in todo if not unmade(one, results)]
    left = {"to be made": len(todo) - len(made), "to hear general speech": len(made)}
    said = [f"{count} are {what}" for what, count in left.items() if count]
    return [f"of {len(runs)} runs, {' and '.join(said)}"] if said else []


def alone() -> None:
    """Raise StateError where another comparison is at work: it would be timed with this one."""
    try:
        lock(output())
    except StateError as error:
        raise StateError(f"another comparison is running here ({output()}): wait for it") from error


def show_plan(
    runs: list[Run], results: dict[str, Facts], speeches: list[General], console: Console
) -> None:
    """Print every run with what is known of it."""
    for one in runs:
        state = results[one.key]["outcome"] if one.key in results else "to be run"
        console.print(f"{one.key}  {state:14} {one.title}")
    todo = missing(runs, results, speeches)
    console.print(f"{len(todo)} of {len(runs)} to do; {clock(left_s(todo, results))}")
    heard = ", ".join(one.name for one in speeches) or "none; what is forgotten is not measured"
    console.print(f"general speech: {heard}")


if __name__ == "__main__":
    run(main)
