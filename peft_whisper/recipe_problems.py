"""What is wrong with a recipe's tree, in words that say what was found and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from peft_whisper.masking import masked
from peft_whisper.recipe import Recipe
from peft_whisper.recipe_rules import contradictions

KeyPath = tuple[str, ...]
SHOWN = 12  # choices listed in full; of more, only the nearest
LONGEST_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: order in the file, where (file:line or override), key, what is wrong."""

    order: int
    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.key}: {self.what}" if self.key else f"{self.where}: {self.what}"
        )


def problems_of(tree: Mapping[str, Any]) -> tuple[Recipe | None, list[tuple[KeyPath, str]]]:
    """Validate; returns the recipe, or None and every (key, what is wrong)."""
    found = [(path, what) for path, what in contradictions(tree)]
    try:
        return Recipe.model_validate(tree), found
    except ValidationError as error:
        for one in error.errors(include_url=False):
            path = tuple(str(part) for part in one["loc"])
            if path:  # the root's own complaint is that of `contradictions`
                found.append((_key_of(path), _said(one, path)))
    return None, list(dict.fromkeys(found))


def shown(value: object) -> str:
    """The value as Python writes it, without secrets, cut where it is long."""
    text = masked(repr(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _key_of(path: KeyPath) -> KeyPath:
    """The path without what pydantic adds for members of a union."""
    model: Any = Recipe
    for number, part in enumerate(path):
        fields = getattr(model, "model_fields", None)
        if fields is None:
            return path[:number]
        model = _model_in(fields[part].annotation) if part in fields else None
    return path


def _model_in(annotation: Any) -> Any:
    options = (
        get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _said(error: Any, path: KeyPath) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "missing":
        return "is missing" + _purpose(path)
    if kind == "literal_error":
        return f"found {shown(given)}, expected {_choices(str(given), context['expected'])}"
    if kind == "model_type":
        return f"found {shown(given)}, expected a section with keys of its own"
    if kind == "string_pattern_mismatch":
        return f"found {shown(given)}, expected {_pattern(path, context['pattern'])}"
    expected = str(error["msg"]).removeprefix("Value error, ").removeprefix("expected ")
    return f"found {shown(given)}, expected {expected.removeprefix('Input should be ')}"


def _unknown(path: KeyPath) -> str:
    known = list(_fields(path[:-1]))
    near = difflib.get_close_matches(path[-1], known, 1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    elsewhere = [".".join((*place, path[-1])) for place in _places(path[-1])]
    if elsewhere:
        return f"unknown key here; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; expected one of {', '.join(known)}"


def _fields(path: KeyPath) -> dict[str, Any]:
    model: Any = Recipe
    for part in path:
        model = _model_in(model.model_fields[part].annotation)
    return dict(model.model_fields)


def _places(key: str) -> list[KeyPath]:
    """Sections that have a key of this name."""
    sections = [(name,) for name, info in Recipe.model_fields.items() if _model_in(info.annotation)]
    return [path for path in [(), *sections] if key in _fields(path)]


def _purpose(path: KeyPath) -> str:
    description = _fields(path[:-1])[path[-1]].description
    return f": {description}" if description else ""


def _choices(given: str, expected: str) -> str:
    """pydantic's "'a', 'b' or 'c'", shortened to the nearest where there are many."""
    options = [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]
    if len(options) <= SHOWN:
        return expected.replace("'", "")
    near = difflib.get_close_matches(given.lower(), options, 3, cutoff=0.3)
    hint = f", for instance {', '.join(near or options[:3])}"
    return f"one of {len(options)} Whisper codes{hint}"


def _pattern(path: KeyPath, pattern: str) -> str:
    examples = _fields(path[:-1])[path[-1]].examples
    if examples:
        return ", ".join(map(str, examples[:-1])) + f" or {examples[-1]}"
    if path == ("name",):
        return "a-z, 0-9, _ and -, at most 64 of them, beginning with a letter or digit"
    return f"a text like {pattern}"
