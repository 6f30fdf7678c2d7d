"""Score a finished run again, or on other speech: base and tuned model on the same test rows.

python -m peft_whisper.evaluate outputs/demo_cpu
python -m peft_whisper.evaluate outputs/demo_cpu --into scores/ data.test.manifest=other.jsonl
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from peft_whisper.environment import cores, machine, versions
from peft_whisper.errors import RecipeError, StateError, run
from peft_whisper.files import check_new_folder, staged_folder, write_json, write_text
from peft_whisper.final_test import transcripts, write_pages, write_scores
from peft_whisper.recipe import Recipe
from peft_whisper.recipe_yaml import dump_recipe, load_recipe
from peft_whisper.session import (
    Session,
    data_facts,
    enough_memory,
    open_base,
    wordless,
)
from peft_whisper.signals import held
from peft_whisper.terminal import Terminal

TRAINED = ("adapter", "model")
RECORDED: dict[str, tuple[str, ...]] = {  # of environment.json, what the report and card quote
    "base": ("multilingual", "model", "revision", "fingerprint", "parameters"),
    "data": ("train", "validation", "test"),
    "machine": ("cpu", "cores", "gpu"),
    "versions": (),
    "trainable_parameters": (),
}
WRITTEN = (  # in this order they take the place of a run's own
    "rejected.jsonl",
    "environment.json",
    "predictions.jsonl",
    "metrics.json",
    "report.html",
    "README.md",
)
AGAIN = "Copy the run's folder again from where it was trained, or train again."


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.evaluate",
        description="Decode the test split with the base and with the tuned model of a finished "
        "run, each trimmed and at the full 30 s, and write predictions.jsonl, metrics.json, "
        "report.html and the card anew.",
        epilog="Without overrides this repeats the run's own test and gives the same figures. "
        "Scores of general speech in RUN/general (--into RUN/general data.test.manifest=FILE) go "
        "into the card that `push` makes, as what was forgotten.",
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
    tuned = check_run(args.run)
    recipe = load_recipe(args.run / "recipe.yaml", args.overrides)
    if args.overrides and args.into is None:
        raise RecipeError(
            "With changes to the recipe these would no longer be the scores of this run: add "
            "--into FOLDER to write them beside it."
        )
    console = Terminal()
    if args.into is None:
        again(recipe, args.run, tuned, console)
    else:
        check_new_folder(args.into)
        with staged_folder(args.into) as staging:
            start_folder(args.run, staging, recipe)
            score(recipe, tuned, staging, console)
    console.print(f"report: {(args.into or args.run) / 'report.html'}")
    return 0


def check_run(folder: Path) -> Path:
    """The `adapter/` or `model/` of a finished run, once all that the run recorded can be read.

    Raises StateError with the name of the first file that is missing or damaged.
    """
    from peft_whisper.model.trained import read_facts

    tuned = next((folder / name for name in TRAINED if (folder / name).is_dir()), None)
    if tuned is None or not (folder / "recipe.yaml").is_file():
        raise StateError(
            f"{folder} is not the folder of a finished run: expected recipe.yaml and adapter/ or "
            "model/ in it. Train first: accelerate launch -m peft_whisper.train RECIPE"
        )
    read_facts(tuned)
    try:
        load_recipe(folder / "recipe.yaml")
    except RecipeError as error:
        raise StateError(f"{error}\nThis is the run's own record. {AGAIN}") from error
    check_environment(folder / "environment.json")
    check_log(folder / "log.jsonl")
    if (folder / "metrics.json").is_file():
        read_object(folder / "metrics.json")
    return tuned


def check_environment(path: Path) -> None:
    """Raise StateError where environment.json lacks what the report and the card quote."""
    facts = read_object(path)
    for key, inner in RECORDED.items():
        held = facts.get(key)
        missing = [name for name in inner if not isinstance(held, dict) or name not in held]
        if held is None or missing:
            raise StateError(f"{path} lacks {'.'.join((key, *missing[:1]))}. {AGAIN}")


def check_log(path: Path) -> None:
    """Raise StateError where log.jsonl is missing or a line of it is no event."""
    for number, line in enumerate(read(path).splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StateError(f"{path}:{number} is not JSON ({error}). {AGAIN}") from error
        if not isinstance(row, dict) or "event" not in row:
            raise StateError(f"{path}:{number} is no event of a run. {AGAIN}")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of the run; raises StateError where it is missing or holds no object."""
    try:
        found = json.loads(read(path))
    except (ValueError, RecursionError) as error:  # nested without end
        raise StateError(f"{path} is not JSON ({error}). {AGAIN}") from error
    if not isinstance(found, dict):
        raise StateError(f"{path} holds no JSON object. {AGAIN}")
    return found


def read(path: Path) -> str:
    """A text file of the run; raises StateError where it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StateError(f"{path} is missing. {AGAIN}") from error
    except UnicodeDecodeError as error:
        raise StateError(f"{path}: byte {error.start} is not UTF-8. {AGAIN}") from error


def again(recipe: Recipe, run: Path, tuned: Path, console: Console) -> None:
    """Score `run` anew; its own files are replaced once all the new ones are written."""
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=run) as name:
        staging = Path(name)
        start_folder(run, staging, recipe)
        if (run / "metrics.json").is_file():
            shutil.copyfile(run / "metrics.json", staging / "metrics.json")
        score(recipe, tuned, staging, console)
        with held():  # or a signal would leave some of them beside the older others
            for written in WRITTEN:
                (staging / written).replace(run / written)


def start_folder(source: Path, target: Path, recipe: Recipe) -> None:
    """Begin `target` with what the run recorded."""
    write_text(target / "recipe.yaml", dump_recipe(recipe))
    for name in ("environment.json", "log.jsonl"):
        shutil.copyfile(source / name, target / name)


def score(recipe: Recipe, tuned: Path, target: Path, console: Console) -> None:
    """Audit the speech, decode, and write scores and pages into `target`."""
    import torch

    from peft_whisper.scoring.report import print_scores

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(cores())
    session = open_scoring(recipe, tuned, console)
    earlier = target / "metrics.json"
    training = read_object(earlier).get("training") if earlier.exists() else None
    with enough_memory():
        texts = transcripts(session, tuned, device, console)
    record_test(target, session)
    metrics = write_scores(target, session, texts, training)
    write_pages(target, session.test_wave, recipe.evaluation.normalizer)
    print_scores(metrics, console)


def open_scoring(recipe: Recipe, tuned: Path, console: Console) -> Session:
    """Find the base and see that `tuned` belongs to it; only then audit the speech.

    Raises StateError where it does not, DataError where the speech is refused.
    """
    from peft_whisper.data.scripts import visible
    from peft_whisper.data.splits import open_splits, refuse_leaks_and_rejects
    from peft_whisper.model.trained import check_trained, read_facts

    base, labels, n_mels = open_base(recipe, weights=True)
    check_trained(tuned, read_facts(tuned), base.fingerprint)
    splits = open_splits(recipe.data, labels.count, quiet=console.quiet)
    refuse_leaks_and_rejects(splits, recipe.data, "the page that `peft-whisper explore` makes")
    session = Session(recipe, base, labels, n_mels, splits)
    for note in [*splits.notes(), *wordless(session)]:
        console.print(f"note: {visible(note)}", style="yellow")
    return session


def record_test(target: Path, session: Session) -> None:
    """Write rejected.jsonl; bring environment.json up to date with what scored, on which speech."""
    from peft_whisper.data.audit import write_rejected

    write_rejected(target / "rejected.jsonl", session.splits.rejected)
    facts = read_object(target / "environment.json")
    facts["data"]["test"] = data_facts(session.splits.test)
    facts["evaluated"] = {"versions": versions(), "machine": machine()}
    write_json(target / "environment.json", facts)


if __name__ == "__main__":
    run(main)
