"""Hugging Face data sets and parquet files -> their rows, with the sound left encoded on disk."""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.data.fields import lookup
from peft_whisper.data.listing import relative_to
from peft_whisper.errors import DataError, NoRoomError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from peft_whisper.recipe_speech import Source

ROWS_AT_A_TIME = 16  # encoded clips in memory while a table is read through


@dataclass(frozen=True)
class TableCells:
    """One column of encoded sounds in a memory-mapped table; pickles as the table's file names."""

    table: Dataset
    column: str

    def __getitem__(self, row: int) -> bytes:
        value = lookup(self.table[row].to_pylist()[0], self.column)
        return value["bytes"] if isinstance(value, dict) else value


class Spool:
    """Encoded sounds of a stream, whose rows come once: kept in a file, not in memory.

    The file lies in the folder for temporary files (TMPDIR) and goes when this process ends; other
    processes get its name by pickle. Raises NoRoomError where the disk is full.
    """

    def __init__(self) -> None:
        handle, self.path = tempfile.mkstemp(prefix="peft_whisper-", suffix=".sounds")
        os.close(handle)
        self.starts = array("Q", [0])  # bytes; the last one is where the next sound will begin
        weakref.finalize(self, _remove, self.path, os.getpid())

    def append(self, sound: bytes) -> int:
        """Store a sound; returns the row to ask for it by."""
        try:
            with open(self.path, "ab") as file:
                file.write(sound)
        except OSError as error:
            raise NoRoomError(
                f"{self.path}: {error.strerror}; a stream's sounds are kept there while it is "
                "used. Set TMPDIR to a folder with more room, or lower the source's limit"
            ) from error
        self.starts.append(self.starts[-1] + len(sound))
        return len(self.starts) - 2

    def __getitem__(self, row: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.starts[row])
            return file.read(self.starts[row + 1] - self.starts[row])


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not when a forked loader forgets its copy
        Path(path).unlink(missing_ok=True)


def cells_of(table: Dataset | IterableDataset, column: str) -> TableCells | Spool:
    """Where the sounds of a table's column are read from, again and again."""
    from datasets import Dataset

    return TableCells(table, column) if isinstance(table, Dataset) else Spool()


def parquet_table(path: Path) -> Dataset:
    """Open a parquet file, or all *.parquet of a folder in the order of their names."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"{path}: no parquet file there{relative_to(path)}")
    with _explained(str(path)):
        from datasets import load_dataset

        names = [str(file) for file in files]
        return load_dataset("parquet", data_files=names, split="train").with_format("arrow")


def hub_table(source: Source) -> Dataset | IterableDataset:
    """Open a Hub data set (or a local folder laid out like one) without decoding any sound."""
    with _explained(f"the Hub data set {source.hub}"):
        from datasets import load_dataset

        table = load_dataset(
            source.hub,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
        return table.decode(False) if source.streaming else table.with_format("arrow")


def table_rows(table: Dataset | IterableDataset, name: str) -> Iterator[dict[str, Any]]:
    """Yield every row as plain fields; `name` is said where the table can't be read on."""
    from datasets import Dataset

    with _explained(name):
        if isinstance(table, Dataset):
            for batch in table.iter(batch_size=ROWS_AT_A_TIME):
                yield from batch.to_pylist()
        else:
            yield from table


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what `datasets` raises into one sentence that says what to do."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # of httpx, or of httpx2 from hub 2 on

    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError, HTTPError) as error:
        raise DataError(f"{name}: {_advice(error)}") from error


def _advice(error: BaseException) -> str:
    from datasets.exceptions import DatasetNotFoundError

    said = " ".join(str(error.__cause__ or error).split())
    if isinstance(error, DatasetNotFoundError):
        if "gated" in said:
            return "gated; ask for access on its page, then log in with `hf auth login`"
        return (
            f"not found ({said}); check its name, or log in with `hf auth login` if it is private"
        )
    if isinstance(error, ConnectionError):
        return "the Hub can't be reached; check the network, or use a folder or a manifest instead"
    if "torchcodec" in said:
        return (
            "it holds loose sound files, which `datasets` opens only with torchcodec; download it "
            "(`hf download NAME --repo-type dataset --local-dir FOLDER`) and use data: folder"
        )
    return f"can't be read: {said}"
