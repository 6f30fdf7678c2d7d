"""What a folder holds already, and whether a run may go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.environment import versions
from peft_whisper.errors import DataError, RecipeError, StateError
from peft_whisper.files import sealed_with, sweep
from peft_whisper.recipe import Recipe, leaves, settings
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.run_folder import is_finished, refuse_taken

if TYPE_CHECKING:
    from rich.console import Console

    from peft_whisper.session import Session

# Keys that may change between one part of a run and the next: they decide nothing that is learned.
FREE = (
    *("track", "checkpoints", "data.workers", "data.note"),
    *("base.license", "data.license", "data.attribution"),
)


def resumable(
    recipe: Recipe, folder: Path, fresh: bool, console: Console
) -> tuple[Recipe, Path | None]:
    """The recipe to run and the checkpoint to go on from; None for a run from the start.

    What the folder's own recipe found for `auto` is taken over. Raises StateError where the folder
    holds something else, and RecipeError where its run was begun under another recipe. What a
    killed process left half made there is deleted: to be called under the run's lock.
    """
    from peft_whisper.training.checkpoint import newest

    sweep(folder)
    checkpoints = folder / "checkpoints"
    unfinished = checkpoints.is_dir() and (folder / "recipe.yaml").is_file()
    if fresh or is_finished(folder) or not unfinished:
        refuse_taken(folder, fresh)
        return recipe, None
    found, refused = newest(checkpoints)
    for why in refused:
        console.print(f"note: not gone on from: {why}", style="yellow")
    if found is None:
        if refused:
            raise StateError(
                f"{checkpoints} holds no checkpoint that is as it was written. Add --fresh to "
                "start over (the old folder is moved aside), or name=another to keep both."
            )
        return recipe, None
    began = load_recipe(folder / "recipe.yaml")
    return same_run(recipe, began, folder), found


def same_run(recipe: Recipe, began: Recipe, folder: Path) -> Recipe:
    """`recipe` with what `began` found for `auto`; raises RecipeError where another key differs."""
    old, new = dict(leaves(settings(began))), dict(leaves(settings(recipe)))
    changed = [
        f"  {key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and new.get(key) != "auto" and not _free(key)
    ]
    if changed:
        lines = "\n".join(changed)
        raise RecipeError(
            f"{folder} holds an unfinished run under another recipe:\n{lines}\n"
            "A run goes on only as it began. Undo this, or add name=another to begin a second run, "
            "or --fresh to start over (the old folder is moved aside)."
        )
    kept = recipe.model_copy(
        update={
            "training": began.training,
            "data": began.data.model_copy(update={"workers": recipe.data.workers}),
        }
    )
    return kept


def same_facts(session: Session, processes: int) -> dict[str, Any]:
    """What a checkpoint says of where it was made, to be the same when the run goes on."""
    from peft_whisper.data.audit import data_fingerprint

    return {
        "base": session.base.fingerprint,
        "data": {name: data_fingerprint(clips) for name, clips in session.splits.items()},
        "processes": processes,
        "versions": versions(),
    }


def check_same(session: Session, processes: int, checkpoint: Path, console: Console) -> None:
    """Raise DataError or StateError where the run did not begin with this data, or this base."""
    began, now = sealed_with(checkpoint), same_facts(session, processes)
    if began["base"] != now["base"]:
        raise StateError(
            f"{checkpoint} was trained on other weights than {session.base.name} holds now "
            f"(SHA-256 {began['base'][:12]}, found {now['base'][:12]})"
        )
    if began["processes"] != processes:
        raise StateError(
            f"{checkpoint.parent.parent} was begun by {began['processes']} processes, here are "
            f"{processes}: each would hear other clips. Start as many, or add name=another."
        )
    for split, fingerprint in now["data"].items():
        if fingerprint != began["data"].get(split):
            raise DataError(
                f"data.{split}: clips or transcripts have changed since the run in "
                f"{checkpoint.parent.parent} began. Restore them, or add name=another or --fresh "
                "to begin again with these."
            )
    for name, version in now["versions"].items():
        if version != began["versions"].get(name):
            console.print(
                f"note: {name} is {version} now, {began['versions'].get(name)} when the run was "
                "saved: it may not end bit for bit as it would have",
                style="yellow",
            )


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)
