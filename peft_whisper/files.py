"""Every write that must be whole or absent goes through here."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft_whisper.errors import RecipeError, StateError


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Fill the yielded folder; it takes `target`'s place on success and vanishes on failure."""
    staging = target.with_name(f".staging-{os.getpid()}-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                _fsync(path)
        if target.exists():
            old = target.with_name(f".trash-{os.getpid()}-{target.name}")
            target.rename(old)
            staging.rename(target)
            shutil.rmtree(old)
        else:
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_new_folder(into: Path) -> None:
    """Before long work: can the folder that --into names be made?

    Raises RecipeError where it can't, StateError where something is there already.
    """
    if into.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise RecipeError(f"--into: {into} is the folder you are in; give the name of a new one")
    if os.path.lexists(into) and (into.is_symlink() or not into.is_dir() or any(into.iterdir())):
        raise StateError(f"{into} already exists and is not empty; give a new folder to --into")
    check_place(into, "--into")


def check_place(folder: Path, option: str) -> None:
    """Raise RecipeError where the folder that `option` names can't be made."""
    there = next(place for place in folder.absolute().parents if os.path.lexists(place))
    try:
        with tempfile.TemporaryDirectory(prefix=f".staging-{folder.name}-", dir=there):
            pass
    except OSError as error:
        raise RecipeError(
            f"{option}: {folder} can't be made in {there}: {error.strerror}; give another place"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replace the file `path`, or the one that it links to, by `text` (UTF-8) in one step."""
    path = path.resolve()
    if path.exists() and not path.is_file():  # a device, for instance, must not be replaced
        raise OSError(errno.EINVAL, "is there already and is no plain file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".staging-{os.getpid()}-{path.name}")
    try:
        staging.write_text(text, encoding="utf-8")
        _fsync(staging)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
