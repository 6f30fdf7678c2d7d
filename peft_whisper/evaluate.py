"""Score a finished run again, or on other speech: base and tuned model on the same test rows.

python -m peft_whisper.evaluate outputs/demo_cpu
python -m peft_whisper.evaluate outputs/demo_cpu --into scores/ data.test.manifest=other.jsonl
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from rich.console import Console

from peft_whisper.environment import cores, machine, versions
from peft_whisper.errors import RecipeError, StateError, run
from peft_whisper.files import write_json, write_text
from peft_whisper.recipe import Recipe
from peft_whisper.recipe_yaml import dump_recipe, load_recipe
from peft_whisper.session import (
    Session,
    check_splits,
    data_facts,
    enough_memory,
    open_session,
    transcripts,
    write_pages,
    write_scores,
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.evaluate",
        description="Decode the test split with the base and with the tuned model of a finished "
        "run, each trimmed and at the full 30 s, and write predictions.jsonl, metrics.json, "
        "report.html and the card anew.",
        epilog="Without overrides this repeats the run's own test and gives the same figures.",
    )
    made.add_argument("run", type=Path, help="the folder of a finished run, e.g. outputs/demo_cpu")
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="changes to the run's recipe, for instance other test speech; needs --into",
    )
    made.add_argument(
        "--into", type=Path, help="write here and leave the run's own scores as they are"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parser().parse_intermixed_args(argv)
    tuned = trained_folder(args.run)
    recipe = load_recipe(args.run / "recipe.yaml", args.overrides)
    if args.overrides and args.into is None:
        raise RecipeError(
            "With changes to the recipe these would no longer be the scores of this run: add "
            "--into FOLDER to write them beside it."
        )
    console = Console(highlight=False, markup=False, soft_wrap=True)
    target = args.into or args.run
    if args.into:
        start_folder(args.run, target, recipe)
    with enough_memory():
        score(recipe, tuned, target, console)
    console.print(f"report: {target / 'report.html'}")
    return 0


def trained_folder(folder: Path) -> Path:
    """The `adapter/` or `model/` of a finished run; raises StateError where there is none."""
    for name in ("adapter", "model"):
        if (folder / name / "peft_whisper.json").is_file() and (folder / "recipe.yaml").is_file():
            return folder / name
    raise StateError(
        f"{folder} is not the folder of a finished run: expected recipe.yaml and adapter/ or "
        "model/ in it. Train first: accelerate launch -m peft_whisper.train RECIPE"
    )


def start_folder(source: Path, target: Path, recipe: Recipe) -> None:
    """Begin `target` with what the run recorded; refuses one that already holds something."""
    if target.exists() and any(target.iterdir()):
        raise StateError(f"{target} is not empty; give a new folder to --into")
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / "recipe.yaml", dump_recipe(recipe))
    for name in ("environment.json", "log.jsonl"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def score(recipe: Recipe, tuned: Path, target: Path, console: Console) -> None:
    """Audit the speech, decode, and write scores and pages into `target`."""
    import torch

    from peft_whisper.scoring.report import print_scores

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(cores())
    session = open_session(recipe, console)
    check_splits(session, target, console)
    record_test(target, session)
    earlier = target / "metrics.json"
    training = json.loads(earlier.read_text("utf-8")).get("training") if earlier.exists() else None
    metrics = write_scores(target, session, transcripts(session, tuned, device, console), training)
    write_pages(target, session.test_wave, recipe.evaluation.normalizer)
    print_scores(metrics, console)


def record_test(target: Path, session: Session) -> None:
    """Bring environment.json up to date with what scored, and on which test speech."""
    path = target / "environment.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"data": {}}
    facts["data"]["test"] = data_facts(session.splits.test)
    facts["evaluated"] = {"versions": versions(), "machine": machine()}
    write_json(path, facts)


if __name__ == "__main__":
    run(main)
