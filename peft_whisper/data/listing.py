"""A JSONL, CSV or TSV file -> its rows as plain fields, each with its line number."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft_whisper.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
JSON_LINES = (".jsonl", ".json")
BOM = b"\xef\xbb\xbf"
NEARBY = 10  # bytes shown around one that is no UTF-8

Fields = dict[str, Any]


def read_listing(path: Path) -> Iterator[tuple[int, Fields]]:
    """Yield (line number, fields) of every row; blank lines are passed over.

    Raises DataError with file and line: no such file, not UTF-8 (with the byte's offset), malformed
    JSON or CSV, another separator than the file's name says, a key or column given twice, a row
    with too many or too few columns.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; expected a .jsonl, .csv or .tsv file; for a folder use "
            f"data.train.folder={path} (or data.validation, data.test)"
        )
    if suffix not in (*DELIMITERS, *JSON_LINES):
        raise DataError(f"{path}: expected a .jsonl, .csv or .tsv file")
    lines = _lines(path)
    return (
        _csv_rows(path, lines, DELIMITERS[suffix]) if suffix in DELIMITERS else _json(path, lines)
    )


def most_rows(path: Path) -> int | None:
    """As many rows as a listing has lines: no more can come; None where it can't be read."""
    try:
        with path.open("rb") as file:
            lines = sum(1 for _ in file)
    except OSError:
        return None  # reading it will say why
    return max(0, lines - 1) if path.suffix.lower() in DELIMITERS else lines


def relative_to(path: Path) -> str:
    """What to add where a path leads nowhere; nothing for an absolute one."""
    if path.is_absolute():
        return ""
    return f"; paths are relative to the folder where the command runs, here {Path.cwd()}"


def _lines(path: Path) -> Iterator[str]:
    """Decode line by line, so that a wrong byte can be pointed at; a byte order mark is dropped."""
    try:
        file = path.open("rb")
    except OSError as error:
        hint = relative_to(path) if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{path}: {error.strerror}{hint}") from error
    offset = 0
    with file:
        for number, raw in enumerate(file, start=1):
            body = raw.removeprefix(BOM) if number == 1 else raw
            try:
                text = body.decode("utf-8")
            except UnicodeDecodeError as error:
                at = error.start + len(raw) - len(body)
                raise DataError(_not_utf8(f"{path}:{number}", raw, at, offset)) from error
            if "\0" in text:
                raise DataError(f"{path}:{number}: a NUL character; is this a text file?")
            offset += len(raw)
            yield text


def _not_utf8(where: str, raw: bytes, at: int, offset: int) -> str:
    near = raw[max(0, at - NEARBY // 2) : at + NEARBY // 2]
    kind = "it looks like UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
    return f"{where}: {kind}, at byte {offset + at} of the file, near {near!r}; save it as UTF-8"


def _json(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Fields]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: no valid JSON: {error}") from error
        if not isinstance(row, dict):
            found = type(row).__name__
            raise DataError(f"{path}:{number}: expected one JSON object per line, found a {found}")
        yield number, row


def _distinct(pairs: list[tuple[str, Any]]) -> Fields:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key is given twice")
    return fields


def _csv_rows(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, Fields]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 1  # line on which the row begins; a quoted cell may run over several
    try:
        for row in reader:
            if header is None:
                header = _header(path, row, delimiter)
            elif len(row) not in (0, len(header)):
                raise DataError(
                    f"{path}:{number}: {len(row)} columns where the header has {len(header)}"
                )
            elif row:
                yield number, dict(zip(header, row, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{number}: no valid CSV: {error}") from error


def _header(path: Path, row: list[str], delimiter: str) -> list[str]:
    names = [name.strip() for name in row]
    for other, word in SEPARATORS.items():
        if len(row) == 1 and other in row[0]:
            raise DataError(
                f"{path}:1: found one column, {names[0]!r}; separated by {word}? "
                f"expected {SEPARATORS[delimiter]}; save it with those"
            )
    if len(set(names)) < len(names):
        raise DataError(f"{path}:1: a column is given twice: {', '.join(names)}")
    return names
