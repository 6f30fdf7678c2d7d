"""docs/coming_from.md names recipe keys that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from peft_whisper.recipe import Recipe

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coming_from.md"


def named() -> list[str]:
    """The keys in the column `here` of every table, without the values shown with some."""
    found: list[str] = []
    column = None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if "here" in cells:
            column = cells.index("here")
        elif not cells:
            column = None
        elif column is not None:
            shown = re.findall(r"`([^`]+)`", cells[column])
            found += [key.partition(":")[0] for key in shown if not key.startswith("python ")]
    return found


def test_every_key_exists() -> None:
    keys = named()
    assert len(keys) > 60
    for key in keys:
        assert exists(key), key


def exists(key: str) -> bool:
    """Whether a recipe has this dotted key."""
    section: type[BaseModel] | None = Recipe
    for name in key.split("."):
        if section is None or name not in section.model_fields:
            return False
        inner = section.model_fields[name].annotation
        section = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    return True


@pytest.mark.parametrize("key", ["training.batch_size", "seed.x", "lora.rank"])
def test_a_key_that_is_none_is_noticed(key: str) -> None:
    assert not exists(key)
