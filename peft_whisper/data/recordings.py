"""Arguments that name recordings -> their files: one by one, in folders, from stdin."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft_whisper.errors import DataError, RecipeError

SOUNDS = (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3")  # looked for in folders
STDIN = "-"


@dataclass(frozen=True)
class Sound:
    """A recording: its file, what it is called, and where its transcripts go below --to."""

    path: Path
    name: str
    stem: Path
    seconds: float = 0.0


@contextmanager
def listed(given: Sequence[str]) -> Iterator[list[Sound]]:
    """The recordings that the arguments name; stdin is kept in a file for as long as needed.

    Raises DataError for a folder without any, RecipeError where two would be written to one file.
    """
    with tempfile.TemporaryDirectory(prefix="peft_whisper-") as kept:
        sounds: list[Sound] = []
        for one in given:
            path = Path(one)
            if one == STDIN:
                path = Path(kept) / "stdin"
                with path.open("wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
                sounds.append(Sound(path, "stdin", Path("stdin")))
            elif path.is_dir():
                sounds += in_folder(path)
            else:
                sounds.append(Sound(path, one, Path(path.stem)))
        stems = [sound.stem for sound in sounds]
        for at, stem in enumerate(stems):
            if stem in stems[:at]:
                before = sounds[stems.index(stem)].name
                raise RecipeError(
                    f"{before} and {sounds[at].name} would both be called {stem}: rename one, or "
                    "transcribe them one after the other"
                )
        yield sounds


def in_folder(folder: Path) -> list[Sound]:
    """The sound files below `folder`, those of hidden folders left out."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SOUNDS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise DataError(f"{folder} holds no {', '.join(SOUNDS)} file")
    return [Sound(path, str(path), path.relative_to(folder).with_suffix("")) for path in found]
