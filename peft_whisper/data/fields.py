"""The fields of one listed row, checked: every message names the row and what was expected."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from peft_whisper.errors import DataError
from peft_whisper.languages import Language

Fields = Mapping[str, Any]

LANGUAGES = frozenset(get_args(Language))
SHA256 = re.compile("[0-9a-f]{64}")
SURROGATES = re.compile("[\ud800-\udfff]")  # half a character: JSON can write it, UTF-8 can't
SHOWN = 60  # characters of a wrong value


def lookup(fields: Fields, name: str) -> Any:
    """Value of a column; a dotted name that is no column of its own leads into nested ones.

    Raises KeyError, for nested ones too.
    """
    if name in fields or "." not in name:
        return fields[name]
    outer, inner = name.split(".", 1)
    nested = fields[outer]
    if not isinstance(nested, Mapping):
        raise KeyError(name)
    return lookup(nested, inner)


def required(fields: Fields, name: str, where: str) -> Any:
    """Value of a column that must be there; raises DataError with the names found."""
    try:
        return lookup(fields, name)
    except KeyError:
        found = ", ".join(_names(fields)) or "none"
        raise DataError(
            f"{where}: no column {name}; found {found}. "
            "Name the right one in the recipe: columns: {audio: ..., text: ...}"
        ) from None


def _names(fields: Fields, prefix: str = "") -> Iterator[str]:
    """Column names, nested ones dotted; the pair of bytes and path is one sound."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and not {"bytes", "path"} <= set(value):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name)


def as_transcript(value: Any, where: str) -> str:
    """A transcript in Unicode NFC, so that equal letters are equal; null is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a transcript in quotes, found {_shown(value)}")
    if "\0" in value or SURROGATES.search(value):
        raise DataError(f"{where}: the transcript holds a NUL or half a character: {_shown(value)}")
    return unicodedata.normalize("NFC", value)


def as_seconds(fields: Fields, name: str, where: str) -> float | None:
    """An optional time or length: a finite number of seconds, 0 or more."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise DataError(f"{where}: {name}: expected seconds, found {_shown(value)}")
    return seconds


def as_name(fields: Fields, name: str, where: str) -> str | None:
    """An optional id, speaker or language: text or an integer."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: {name}: expected a name, found {_shown(value)}")
    return as_transcript(str(value), where).strip() or None


def as_language(fields: Fields, where: str) -> str | None:
    """An optional language: a Whisper code, or the language's English name."""
    name = as_name(fields, "language", where)
    if name is None or name in LANGUAGES:
        return name
    code = _english_names().get(name.lower(), name.lower())
    if code not in LANGUAGES:
        raise DataError(f"{where}: Whisper knows no language {name}; write a code such as en or no")
    return code


@cache
def _english_names() -> dict[str, str]:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return TO_LANGUAGE_CODE


def as_sha256(value: Any, name: str, where: str) -> str:
    """A SHA-256 as `sha256sum` prints it, 64 hex digits; small letters come back."""
    digits = value.strip().lower() if isinstance(value, str) else ""
    if not SHA256.fullmatch(digits):
        raise DataError(
            f"{where}: {name}: expected a SHA-256, the 64 hex digits that sha256sum prints, found "
            f"{_shown(value)}"
        )
    return digits


def file_inside(root: Path, name: Any, where: str) -> Path:
    """Resolve a file name that must stay inside `root` (resolved), symbolic links followed.

    The file need not exist: that is for the audit to say. Raises DataError, naming the row.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise DataError(f"{where}: expected the name of a sound file, found {_shown(name)}")
    if "://" in name:
        raise DataError(f"{where}: expected a file, found the address {_shown(name)}")
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: symbolic links in a circle
        raise DataError(f"{where}: {_shown(name)}: {error}") from error
    if not path.is_relative_to(root):
        raise DataError(
            f"{where}: {name} leads outside of {root}; sounds must lie in the folder of the file "
            "that lists them, or below it"
        )
    return path


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) and SURROGATES.search(value) else repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
