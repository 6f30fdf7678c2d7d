"""Every write that must be whole or absent goes through here."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from peft_whisper.errors import RecipeError, StateError
from peft_whisper.signals import held

MANIFEST = "MANIFEST.json"


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Fill the yielded folder; it takes `target`'s place on success and vanishes on failure."""
    staging = target.with_name(f".staging-{os.getpid()}-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in (*staging.rglob("*"), staging):
            _fsync(path)
        with held():
            _put(staging, target)
    finally:
        with held():  # a scheduler's second signal must not leave half of it
            shutil.rmtree(staging, ignore_errors=True)


def _put(staging: Path, target: Path) -> None:
    """Let a finished folder take `target`'s place."""
    if target.exists():
        old = _to_trash(target)
        staging.rename(target)
        shutil.rmtree(old)
    else:
        staging.rename(target)
    _fsync(target.parent)  # or a power cut could take the new name away


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a kill on the way leaves it whole, or under no name that counts."""
    shutil.rmtree(_to_trash(folder))


def _to_trash(folder: Path) -> Path:
    trash = folder.with_name(f".trash-{os.getpid()}-{folder.name}")
    shutil.rmtree(trash, ignore_errors=True)
    return folder.rename(trash)


def sweep(folder: Path) -> None:
    """Delete what killed processes left half made or half deleted in `folder`."""
    for left in (*folder.glob(".staging-*"), *folder.glob(".trash-*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write MANIFEST.json: `facts`, and the size and SHA-256 of every other file."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, facts | {"files": files})


def sealed_with(folder: Path) -> dict[str, Any]:
    """What MANIFEST.json says of `folder`; raises StateError where it says nothing."""
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, one in facts["files"].items():
            one["bytes"], one["sha256"]
            if not (path := PurePath(name)).parts or path.is_absolute() or ".." in path.parts:
                raise ValueError(f"it names {name!r}, which is no file of the folder")
    except FileNotFoundError as error:
        raise StateError(f"{folder} has no {MANIFEST}: it was not written to the end") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"{folder / MANIFEST} is damaged: {error}") from error
    return facts


def check_seal(folder: Path) -> None:
    """Raise StateError where a file is missing, or is not bit for bit as it was written."""
    for name, one in sealed_with(folder)["files"].items():
        size, digest = one["bytes"], one["sha256"]
        path = folder / name
        if not path.is_file():
            raise StateError(f"{path} is missing")
        if path.stat().st_size != size:
            raise StateError(f"{path} has {path.stat().st_size} bytes, {size} were written")
        if (found := sha256(path)) != digest:
            raise StateError(f"{path} is damaged: SHA-256 {found}, written was {digest}")


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 (hex) of what an open file holds from here on."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


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
    """Have the system write a file, or a folder's names, to the disk now."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
