"""A run's folder: claimed without loss, and filled with what happens while it happens."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import RecipeError, StateError
from peft_whisper.files import write_jsonl
from peft_whisper.recipe import Recipe, leaves, settings
from peft_whisper.recipe_yaml import load_recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.console import Console

    from peft_whisper.terminal import Task

TRAINED = ("adapter", "model")  # what a run's folder holds of it
# What a run leaves that was stopped before its first checkpoint: nothing of it is lost work.
BEFORE_TRAINING = {"recipe.yaml", "rejected.jsonl", "environment.json", "log.jsonl"}


def lock(folder: Path) -> None:
    """Keep every other process from running into `folder`, for as long as this one lives."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two runs apart
        return
    held = os.open(folder.with_name(f".{folder.name}.lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise StateError(
            f"another run is writing to {folder}: wait for it, or add name=another"
        ) from error


def recipe_of(trained: Path) -> Recipe | None:
    """The recipe of the run that `trained` is the adapter/ or model/ of; None for other folders.

    Raises RecipeError where it is damaged.
    """
    path = trained.resolve().parent / "recipe.yaml"
    return load_recipe(path) if trained.resolve().name in TRAINED and path.is_file() else None


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end here: its card is what it writes last."""
    return (folder / "README.md").exists()


def refuse_taken(folder: Path, fresh: bool) -> None:
    """Raise StateError where `folder` holds something to keep and the user did not say `fresh`."""
    if fresh or not _worth_keeping(folder):
        return
    holds = "a finished run" if is_finished(folder) else "other files"
    raise StateError(
        f"{folder} holds {holds}. Add --fresh to start over (the old folder is moved aside), or "
        "name=another to keep both."
    )


def make_way(folder: Path) -> None:
    """Make `folder` empty or new; what is worth keeping is moved aside, not lost."""
    if _worth_keeping(folder):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
            number += 1
        folder.rename(aside)
    for name in BEFORE_TRAINING:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of half made ones
    folder.mkdir(parents=True, exist_ok=True)


def _worth_keeping(folder: Path) -> bool:
    """Whether there is more than a run that stopped before its first checkpoint."""
    if not folder.is_dir():
        return folder.exists()
    names = {path.name for path in folder.iterdir() if path.name != "checkpoints"}
    return not names <= BEFORE_TRAINING or any((folder / "checkpoints").glob("update-*"))


def check_tracker(recipe: Recipe) -> None:
    """Raise RecipeError where the recipe asks for a tracker that is not installed."""
    if recipe.track and find_spec(recipe.track) is None:
        raise RecipeError(
            f"track: {recipe.track} is not installed; pip install {recipe.track}, or "
            "'peft-whisper[track]' for all three"
        )


def start_tracker(accelerator: Accelerator, recipe: Recipe) -> None:
    """Tell the recipe's tracker, if there is one, what this run is."""
    if recipe.track:
        config = {  # what every tracker can store
            key: value if isinstance(value, str | int | float | bool) else str(value)
            for key, value in leaves(settings(recipe))
        }
        accelerator.init_trackers(recipe.name, config=config)


def rewind(log: Path, update: int, due: bool) -> None:
    """Take out of log.jsonl what the run will do again after `update`, or was writing when it died.

    Where that update's validation is yet `due`, it will be done again too.
    """
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:  # the last line, half written
            continue
        again = row.get("update", 0) > update
        if not again and not (due and row["event"] == "validation" and row["update"] == update):
            kept.append(row)
    write_jsonl(log, kept)


class RunLog:
    """Every event of a run: a line in log.jsonl, and what a person wants of it on the terminal."""

    def __init__(self, path: Path, task: Task, console: Console, accelerator: Accelerator):
        self.path, self.task, self.console, self.accelerator = path, task, console, accelerator

    def __call__(self, row: dict[str, Any]) -> None:
        """Append `row` and tell the terminal."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._track(row)
        if row["event"] == "train":
            speed = f"{row['audio_s_per_s']:.0f} s of audio/s"
            self.task.advance(1, f"loss {row['loss']:.3f}  {speed}")
        elif row["event"] == "validation":
            self.console.print(
                f"  update {row['update']:>5}  validation  WER {row['wer']:7.1%}  "
                f"MER {row['mer']:6.1%}  CER {row['cer']:7.1%}  loops {row['loops']}  "
                f"empty {row['empties']}  loss {row['loss']:.3f}  "
                + ("best so far" if row["best"] else "")
            )
        elif row["event"] == "out_of_memory":
            self.console.print(
                f"note: update {row['update']}: {row['clips']} clips x {row['positions']} encoder "
                f"positions did not fit into memory (peak {row['peak_bytes'] / 1e9:.1f} GB); the "
                "update is repeated in halves, and batches as large are halved from here on",
                style="yellow",
            )
        elif row["event"] == "memory":
            self.console.print(
                f"memory: {row['measured_bytes'] / 2**30:.2f} GiB at its peak, measured; "
                f"{row['traced_bytes'] / 2**30:.2f} GiB had been traced ({row['difference']:+.1%})",
                style="yellow" if row["warning"] else None,
            )
        elif row["event"] == "resume":
            self.task.resume(row["update"])
            self.console.print(f"  going on after update {row['update']}")
        elif row["event"] == "stop":
            self.console.print(f"  stopped at update {row['update']}: {row['reason']}")

    def _track(self, row: dict[str, Any]) -> None:
        """Send an event's numbers to the tracker; accelerate does nothing where there is none."""
        if "update" in row:
            numbers = {
                f"{row['event']}/{name}": value
                for name, value in row.items()
                if isinstance(value, float) and name != "seconds"
            }
            self.accelerator.log(numbers, step=row["update"])
