"""Speech that no recipe trains on, for what a run forgets by learning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from comparing.planned import RECIPE_ENDS, Run

from peft_whisper.errors import RecipeError
from peft_whisper.recipe_yaml import load_recipe


@dataclass(frozen=True)
class General:
    """General speech: what it is called, and how a run's recipe is changed to be scored on it.

    `fingerprint` is of what says which clips these are, and of `limit`, how many at most.
    """

    name: str
    source: dict[str, object]
    fingerprint: str

    @property
    def overrides(self) -> tuple[str, ...]:
        return (f"data.test={json.dumps(self.source)}",)


def general_speech(named: Sequence[Path], runs: Sequence[Run], limit: int | None) -> list[General]:
    """The clean prompts beside the test's manifest, where they are, and what was named.

    What is named is a manifest, or a YAML file that says what a recipe's `data.test` would: a data
    set of the Hub, for instance. Raises RecipeError where it can't be read.
    """
    test = runs[0].recipe.data.test.manifest
    beside = Path(test).with_name(f"clean_{Path(test).name}") if test else None
    found = [beside] if beside and beside.is_file() else []
    speeches = [_read(path, limit) for path in dict.fromkeys((*found, *named))]
    for one in speeches:
        load_recipe(runs[0].file, (*runs[0].overrides, *one.overrides))  # or it says what is wrong
    return speeches


def _read(path: Path, limit: int | None) -> General:
    """What a file says of general speech, at most `limit` clips of it."""
    try:
        held = path.read_bytes()
        said = yaml.safe_load(held) if path.suffix in RECIPE_ENDS else {"manifest": path.as_posix()}
    except OSError as error:
        raise RecipeError(f"--general: {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"--general: {path}: {' '.join(str(error).split())}") from error
    if not isinstance(said, dict):
        raise RecipeError(
            f"--general: {path}: expected what data.test of a recipe says, key by key"
        )
    source = said | ({"limit": limit} if limit else {})
    digest = hashlib.sha256(held + str(limit or "").encode()).hexdigest()
    return General(path.stem, source, digest)
