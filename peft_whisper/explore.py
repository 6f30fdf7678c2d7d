"""Look at a recipe's speech before a night of training: what is in it, odd about it, and taught.

python -m peft_whisper.explore recipes/demo_cpu.yaml
python -m peft_whisper.explore recipes/demo_cpu.yaml data.train.limit=100 --rows 5 --into look.html
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from peft_whisper.data.survey import (
    Lesson,
    Outlook,
    everything,
    lesson,
    outlook,
    spread_over,
    survey,
)
from peft_whisper.data.transcripts import Placed
from peft_whisper.errors import DataError, RecipeError, run
from peft_whisper.files import write_text
from peft_whisper.recipe import Recipe
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.scoring.exploration import page
from peft_whisper.scoring.findings import Exploration, training_facts
from peft_whisper.scoring.overview import show, verdict
from peft_whisper.session import Session, open_session

if TYPE_CHECKING:
    import numpy as np

    from peft_whisper.data.audit import Clip

ROWS, MOST_ROWS = 3, 50  # chosen rows; each adds its sound and a spectrogram to the page


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.explore",
        description="Check every clip of a recipe's three splits as training would, and show what "
        "is in them: lengths, speakers, rejected clips, sound that splits share, clips whose "
        "transcript hardly fits their sound, casing and characters that the model would learn by "
        "mistake, how many updates there will be, and for some clips each token that the decoder "
        "is fed and must predict. Nothing is trained, and no weights are downloaded.",
        epilog="It exits with 0 even where training would refuse the speech: its last line says "
        "so, and why. Example: %(prog)s recipes/lora_a10.yaml data.train.limit=200 --rows 5",
    )
    made.add_argument("recipe", help="a recipe file; `peft-whisper recipes` lists those that ship")
    made.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    made.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help="the page to write (default: outputs/<recipe name>-explore.html)",
    )
    made.add_argument(
        "--rows",
        nargs="+",
        metavar="N or ID",
        help="clips shown token by token: ids of clips, or how many of train from the shortest to "
        f"the longest (default: {ROWS}); one number that is also an id means the id",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parser().parse_intermixed_args(argv)
    recipe = load_recipe(args.recipe, args.overrides)
    target = target_file(args.into, recipe)
    console = Console(highlight=False)
    session = open_session(recipe, console, weights=False)
    found = explore(session, chosen(args.rows, session))
    html = page(found, lambda clip: sound(session, clip))
    try:
        write_text(target, html)
    except OSError as error:
        raise RecipeError(f"--into: {target} can't be written: {error.strerror}") from error
    show(found, console)
    console.print(f"page: {target}", markup=False, soft_wrap=True)
    console.print(verdict(found.problem), soft_wrap=True)
    return 0


def target_file(into: Path | None, recipe: Recipe) -> Path:
    """Where the page goes; raises RecipeError where it can't or must not go there."""
    target = into or Path(recipe.output) / f"{recipe.name}-explore.html"
    run_folder = (Path(recipe.output) / recipe.name).resolve()
    if target.is_dir():
        raise RecipeError(f"--into: {target} is a folder; give the name of a file in it")
    if run_folder in target.resolve().parents:
        raise RecipeError(
            f"--into: {target} is in the run's own folder, and training starts only in an empty "
            "one; write the page elsewhere"
        )
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "may not be written to" if there.is_dir() else "is not a folder"
        raise RecipeError(f"--into: {target} can't be written: {there} {what}")
    return target


def chosen(rows: Sequence[str] | None, session: Session) -> tuple[Placed, ...]:
    """The clips that `--rows` asks for; raises RecipeError where there is no such clip."""
    if rows is None:
        return spread_over(session.splits.train, ROWS)
    by_id: dict[str, list[Placed]] = {}
    for one in everything(session.splits):
        by_id.setdefault(one.clip.id, []).append(one)
    if len(rows) == 1 and rows[0].isdecimal() and rows[0] not in by_id:
        return spread_over(session.splits.train, _few(int(rows[0])))
    _few(len(rows))
    # An override behind --rows turns the number before it into an id: it is what to speak of.
    unknown = sorted((one for one in rows if one not in by_id), key=lambda one: "=" not in one)
    if unknown:
        raise RecipeError(f"--rows: {_unknown(unknown[0], list(by_id), session)}")
    return tuple(one for wanted in dict.fromkeys(rows) for one in by_id[wanted])


def _few(count: int) -> int:
    if count > MOST_ROWS:
        raise RecipeError(f"--rows: {count} clips; at most {MOST_ROWS}, each adds its sound")
    return count


def _unknown(wanted: str, known: Sequence[str], session: Session) -> str:
    for split, listed in session.splits.rejected.items():
        for one in listed:
            if one.id == wanted:
                return f"{wanted} of {split} was rejected: {one.cause}: {one.detail}"
    if "=" in wanted:
        return f"no clip {wanted}; overrides stand before --rows"
    near = difflib.get_close_matches(wanted, known, 3) or known[:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else "; every clip was rejected"
    return f"no clip {wanted}{hint}"


def explore(session: Session, rows: Sequence[Placed]) -> Exploration:
    """Gather everything that page and terminal say."""
    recipe, splits = session.recipe, session.splits
    ahead = look_ahead(session)
    every, held_out = recipe.evaluation.every, len(splits.validation)
    return Exploration(
        name=recipe.name,
        about=about(recipe),
        splits=splits,
        survey=survey(splits, session.labels),
        outlook=ahead,
        training=training_facts(ahead, every, held_out) if ahead else (),
        lessons=tuple(taught(session, one) for one in rows),
        problem=problem_of(session),
    )


def about(recipe: Recipe) -> tuple[str, ...]:
    """Base, language and note; of a base in a folder elsewhere on this machine, its name alone."""
    model = recipe.base.model
    base = Path(model).name if Path(model).is_absolute() else model
    told = (base, recipe.data.task, recipe.data.language, recipe.data.note)
    return tuple(part for part in told if part)


def problem_of(session: Session) -> str | None:
    """Why training would stop at this speech, in its own words; None where it would not."""
    from peft_whisper.data.splits import refuse_leaks_and_rejects

    try:
        refuse_leaks_and_rejects(session.splits, session.recipe.data, "the list of rejected clips")
    except DataError as error:
        return str(error)
    return None


def look_ahead(session: Session) -> Outlook | None:
    """Plan training on one process; None where there is nothing to train on."""
    from peft_whisper.training.loop import updates_of

    recipe, clips = session.recipe, session.splits.train
    if not clips:
        return None
    layout = session.layout(processes=1)
    updates = updates_of(recipe.training, layout, len(clips))
    durations = [clip.duration_s for clip in clips]
    return outlook(durations, layout, session.context, recipe.seed, updates)


def taught(session: Session, placed: Placed) -> Lesson:
    """The clip's tokens and spectrogram, in the form that most of training's draws give it."""
    timestamps = session.recipe.data.timestamps > 0.5
    wave = sound(session, placed.clip)
    return lesson(placed, wave, session.labels, session.context, session.n_mels, timestamps)


def sound(session: Session, clip: Clip) -> np.ndarray:
    """A clip's wave, float32 (samples,), 16 kHz."""
    from peft_whisper.data.audio import load_wave, unchanged

    return unchanged(clip, lambda one: load_wave(one.audio, session.recipe.data.channel))


if __name__ == "__main__":
    run(main)
