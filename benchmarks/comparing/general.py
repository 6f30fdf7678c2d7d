"""Speech that no recipe trains on, for what a run forgets by learning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comparing.planned import RECIPE_ENDS, Run

from peft_whisper.errors import RecipeError
from peft_whisper.recipe import settings
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

    What is named is a manifest, or a recipe whose test split is meant (of the Hub, for instance).
    """
    test = runs[0].recipe.data.test.manifest
    beside = Path(test).with_name(f"clean_{Path(test).name}") if test else None
    found = [beside] if beside and beside.is_file() else []
    return [_read(path, limit) for path in dict.fromkeys((*found, *named))]


def _read(path: Path, limit: int | None) -> General:
    """Raises RecipeError where there is no such file, or it is no recipe."""
    source: dict[str, object] = {"manifest": path.as_posix()}
    if path.suffix in RECIPE_ENDS:
        source = settings(load_recipe(path))["data"]["test"]
    try:
        held = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"--general: {path}: {error.strerror}") from error
    if limit:
        source |= {"limit": limit}
    digest = hashlib.sha256(held + str(limit or "").encode()).hexdigest()
    return General(path.stem, source, digest)
