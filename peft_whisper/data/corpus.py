"""Sources -> rows: which sound goes with which transcript, whatever form the speech comes in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from peft_whisper.data.audio import AudioRef
from peft_whisper.data.fields import (
    as_language,
    as_name,
    as_seconds,
    as_sha256,
    as_transcript,
    file_inside,
    required,
)
from peft_whisper.data.listing import most_rows, read_listing, relative_to
from peft_whisper.data.tables import (
    Spool,
    TableCells,
    cells_of,
    hub_table,
    parquet_table,
    table_rows,
)
from peft_whisper.errors import DataError
from peft_whisper.recipe_speech import Columns, Source

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

METADATA = ("metadata.csv", "metadata.jsonl")  # of an audiofolder, as `datasets` names them
FILE_NAME = "file_name"  # an audiofolder's column for the sound, where the recipe names none
SUM = "sha256"  # a listing's column for the sum of a row's file, where the recipe names none


@dataclass(frozen=True, slots=True)
class Row:
    """One listed clip, not yet looked into; times are seconds.

    `where` names the row for messages, for instance train.jsonl:17.
    """

    id: str
    audio: AudioRef
    text: str  # Unicode NFC
    language: str | None
    speaker: str | None
    duration_s: float | None  # as declared
    where: str
    file_sha256: str | None = None  # hex, as declared: of the encoded bytes, all of the file's


@dataclass(frozen=True)
class Rows:
    """A source's rows, read when they are asked for; `most` will come (None: nobody knows)."""

    rows: Iterator[Row]
    most: int | None

    def __iter__(self) -> Iterator[Row]:
        return self.rows


def read_rows(
    source: Source, language: str | None = None, base_dir: str | Path | None = None
) -> Rows:
    """Read a source (hub, folder, manifest or parquet) row by row, at most `source.limit`.

    `language` is what rows have that name none; relative paths begin at `base_dir` (default: the
    current folder). Ids come from the column `id`, or else from the sound file's name; a name that
    comes again gets -2, -3, ... appended, in the order of the rows. Raises DataError, naming the
    row: broken files, missing columns, unknown languages, sums that are none, sounds outside the
    source's folder, an `id` given twice in a folder or manifest.
    """
    base = Path(base_dir or ".")
    if source.hub is not None:
        opened = _from_hub(source)
    elif source.parquet is not None:
        opened = _from_parquet(base / source.parquet, source.columns)
    elif source.folder is not None:
        opened = _from_listing(_metadata(base / source.folder), source.columns, folder=True)
    elif source.manifest is not None:
        opened = _from_listing(base / source.manifest, source.columns, folder=False)
    else:
        raise ValueError("a share of train has no rows of its own: see splits.open_splits")
    rows = _with_language(islice(opened, source.limit), language)
    bounds = [most for most in (opened.most, source.limit) if most is not None]
    # A stream may end before its limit: a time left that was counted from it would mislead.
    return Rows(rows, min(bounds) if opened.most is not None else None)


def _with_language(rows: Iterable[Row], language: str | None) -> Iterator[Row]:
    for row in rows:
        yield row if row.language else replace(row, language=language)


def _metadata(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder{relative_to(folder)}")
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) != 1:
        problem = "both are there; remove one" if found else "neither is there"
        raise DataError(f"{folder}: expected {' or '.join(METADATA)}; {problem}")
    return found[0]


def _from_listing(path: Path, columns: Columns, *, folder: bool) -> Rows:
    return Rows(_listed(path, columns, folder), most_rows(path))


def _listed(path: Path, columns: Columns, folder: bool) -> Iterator[Row]:
    """Rows of a manifest or of a folder's metadata file, which the user wrote for this purpose."""
    root, ids = path.parent.resolve(), Ids(strict=True)
    for number, fields in read_listing(path):
        said, name = f"{path}:{number}", columns.audio
        if folder and name == "audio" and name not in fields:
            name = FILE_NAME
        file = file_inside(root, required(fields, name, said), said)
        duration_s = as_seconds(fields, "duration", said)
        start_s, end_s = _segment(fields, duration_s, said)
        yield Row(
            id=ids.of(as_name(fields, "id", said), _clip_name(file.stem, start_s, end_s), said),
            audio=AudioRef(path=str(file), start_s=start_s, end_s=end_s),
            text=as_transcript(required(fields, columns.text, said), said),
            language=as_language(fields, said),
            speaker=as_name(fields, "speaker", said),
            duration_s=duration_s,
            where=f"{path.name}:{number}",
            file_sha256=_file_sum(fields, columns, said, fields.get(SUM)),
        )


def _file_sum(fields: dict[str, Any], columns: Columns, where: str, unasked: Any) -> str | None:
    """The sum that a row declares: each must where the recipe names a column, or else `unasked`."""
    if columns.sha256 is not None:
        return as_sha256(required(fields, columns.sha256, where), columns.sha256, where)
    return None if unasked in (None, "") else as_sha256(unasked, SUM, where)


def _segment(
    fields: dict[str, Any], duration_s: float | None, where: str
) -> tuple[float | None, float | None]:
    """Start and end in seconds; a start with a duration beside it is a segment too."""
    start_s, end_s = as_seconds(fields, "start", where), as_seconds(fields, "end", where)
    if start_s is not None and end_s is None and duration_s is not None:
        end_s = start_s + duration_s
    if end_s is not None and end_s <= (start_s or 0.0):
        raise DataError(f"{where}: end {end_s:g} s is not after start {start_s or 0:g} s")
    return start_s, end_s


def _clip_name(stem: str, start_s: float | None, end_s: float | None) -> str:
    if start_s is None and end_s is None:
        return stem
    return f"{stem}-{start_s or 0:.2f}-" + ("end" if end_s is None else f"{end_s:.2f}")


def _from_parquet(path: Path, columns: Columns) -> Rows:
    folder = path if path.is_dir() else path.parent
    return _from_table(parquet_table(path), path.name, columns, (folder.resolve(),))


def _from_hub(source: Source) -> Rows:
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    hub = Path(str(source.hub))
    name = f"{hub.name if hub.is_dir() else source.hub} {source.split}"
    # A data set can name files instead of holding bytes: only ones that were downloaded with it.
    roots = [*([hub] if hub.is_dir() else []), HF_HUB_CACHE, config.HF_DATASETS_CACHE]
    resolved = tuple(Path(str(root)).resolve() for root in roots)
    return _from_table(hub_table(source), name, source.columns, resolved)


def _from_table(
    table: Dataset | IterableDataset, name: str, columns: Columns, roots: tuple[Path, ...]
) -> Rows:
    cells = cells_of(table, columns.audio)
    most = len(cells.table) if isinstance(cells, TableCells) else None
    return Rows(_tabled(table_rows(table, name), cells, name, columns, roots), most)


def _tabled(
    listed: Iterable[dict[str, Any]],
    cells: TableCells | Spool,
    name: str,
    columns: Columns,
    roots: tuple[Path, ...],
) -> Iterator[Row]:
    """Rows of a Hub data set or a parquet file.

    Columns named start, end, duration and sha256 are not looked at: the sound in a table is the
    clip itself, and they describe the recording that it was cut from. A sum that the recipe names a
    column for is that of the bytes in the table.
    """
    ids = Ids(strict=False)
    for number, fields in enumerate(listed):
        where = f"{name} row {number}"
        sound = required(fields, columns.audio, where)
        path = sound.get("path") if isinstance(sound, dict) else sound
        stem = PurePosixPath(path).stem if isinstance(path, str) else ""
        yield Row(
            id=ids.of(as_name(fields, "id", where), stem or f"{number:06d}", where),
            audio=_in_table(sound, cells, number, roots, where),
            text=as_transcript(required(fields, columns.text, where), where),
            language=as_language(fields, where),
            speaker=as_name(fields, "speaker", where),
            duration_s=None,
            where=where,
            file_sha256=_file_sum(fields, columns, where, None),
        )


def _in_table(
    sound: Any, cells: TableCells | Spool, number: int, roots: tuple[Path, ...], where: str
) -> AudioRef:
    """A table's cell -> where its sound is: bytes in the table, or a file inside one of `roots`."""
    data = sound.get("bytes") if isinstance(sound, dict) else sound
    path = sound.get("path") if isinstance(sound, dict) else sound
    if isinstance(data, bytes):
        row = cells.append(data) if isinstance(cells, Spool) else number
        return AudioRef(cells=cells, row=row)
    if path is None:
        return AudioRef(data=b"")  # the audit calls it unreadable
    for root in roots[1:]:
        try:
            return AudioRef(path=str(file_inside(root, path, where)))
        except DataError:
            continue  # the last word is that of the first folder, below
    return AudioRef(path=str(file_inside(roots[0], path, where)))


class Ids:
    """Gives each row of a source an id of its own; `strict`: an id given twice is an error."""

    def __init__(self, *, strict: bool):
        self.strict = strict
        self.seen: dict[str, str] = {}
        self.numbers: dict[str, int] = {}  # the last one appended to a name

    def of(self, given: str | None, derived: str, where: str) -> str:
        """Return `given` or else `derived`, with -2, -3, ... appended where it was taken."""
        if given is not None and given in self.seen and self.strict:
            raise DataError(f"{where}: the id {given} was given already at {self.seen[given]}")
        wanted = candidate = given or derived
        number = self.numbers.get(wanted, 1)
        while candidate in self.seen:
            number += 1
            candidate = f"{wanted}-{number}"
        if number > 1:
            self.numbers[wanted] = number
        self.seen[candidate] = where
        return candidate
