"""The demo's speech: Asterisk's spoken prompts through a simulated throat microphone, split."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peft_whisper.data.mel import SAMPLE_RATE
from peft_whisper.data.splits import place
from peft_whisper.errors import DataError
from peft_whisper.terminal import progress

if TYPE_CHECKING:
    from rich.console import Console

SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
SPEAKER = "Allison Smith"
LONGEST_S = 30.0
VALIDATION, TEST = 0.09, 0.20  # shares of the transcripts


@dataclass(frozen=True)
class Prompt:
    """A prompt of the package: its name there, words, and sound file."""

    name: str
    text: str
    path: Path

    @property
    def id(self) -> str:
        return self.name.replace("/", "_")

    @property
    def split(self) -> str:
        """All prompts of one normalised transcript are in one split, whatever else there is."""
        at = place(self.text)
        return "validation" if at < VALIDATION else "test" if at >= 1 - TEST else "train"


def make_speech(package: Path, target: Path, console: Console) -> None:
    """Write clips/ (throat channel) and clean/ as FLAC, a manifest per split, and two lists.

    `split.csv` says where each prompt went, `excluded.csv` which were left out and why.
    """
    import soundfile

    from peft_whisper.data.throat import throat

    prompts, excluded = read_prompts(package)
    for folder in ("clips", "clean"):
        (target / folder).mkdir(parents=True)
    rows: list[dict] = []
    with progress(console, "simulating a throat microphone", len(prompts)) as task:
        for prompt in prompts:
            task.advance()
            wave = decode(prompt.path)
            seconds = len(wave) / SAMPLE_RATE
            if seconds > LONGEST_S:
                excluded.append((prompt.name, f"{seconds:.1f} s is longer than 30 s", prompt.text))
                continue
            # The seed is the clip's own, so that no clip depends on the others.
            simulated = throat(wave, seed=zlib.crc32(prompt.id.encode()))
            name = f"{prompt.id}.flac"
            soundfile.write(target / "clips" / name, simulated, SAMPLE_RATE, "PCM_16")
            soundfile.write(target / "clean" / name, wave, SAMPLE_RATE, "PCM_16")
            rows.append(
                {
                    "id": prompt.id,
                    "split": prompt.split,
                    "duration": round(seconds, 3),
                    "text": prompt.text,
                }
            )
    write_lists(target, rows, excluded)


def read_prompts(package: Path) -> tuple[list[Prompt], list[tuple[str, str, str]]]:
    """Pair transcripts with sounds; returns the prompts, and (name, reason, text) of the rest."""
    with gzip.open(package / TRANSCRIPTS, "rt", encoding="utf-8") as file:
        written = dict(_entries(file.read()))
    sounds = {
        path.relative_to(package / SOUNDS).with_suffix("").as_posix(): path
        for path in sorted((package / SOUNDS).rglob("*.g722"))
    }
    if not sounds:
        raise DataError("the package holds no prompts where they were expected")
    prompts, excluded = [], []
    for name in sorted(sounds | written):
        text = written.get(name, "")
        if name not in sounds:
            excluded.append((name, "no sound in the package", text))
        elif not text:
            excluded.append((name, "no transcript", text))
        elif re.search(r"[(\[<]", text) or not any(map(str.isalnum, text)):
            excluded.append((name, "not speech alone", text))
        else:
            prompts.append(Prompt(name, _spoken(text), sounds[name]))
    return prompts, excluded


def _spoken(text: str) -> str:
    """The transcript without the dots that show where a sentence goes on in another prompt."""
    return " ".join(text.replace("...", " ").split())


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Lines are `name: transcript`; those that begin with a semicolon are comments."""
    for line in text.splitlines():
        name, colon, words = line.partition(":")
        if colon and not line.startswith(";"):
            yield name.strip(), " ".join(words.split())


def decode(path: Path) -> np.ndarray:
    """Decode a raw G.722 file: float32 (samples,), 16 kHz, in [-1, 1]."""
    import av

    with av.open(str(path), format="g722") as container:
        blocks = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
    return np.concatenate(blocks).astype(np.float32) / 32768


def write_lists(target: Path, rows: list[dict], excluded: list[tuple[str, str, str]]) -> None:
    """Write the manifests that recipes read and the two lists that people read."""
    for split in ("train", "validation", "test"):
        _manifest(target / f"{split}.jsonl", "clips", [r for r in rows if r["split"] == split])
    _manifest(target / "clean_test.jsonl", "clean", [r for r in rows if r["split"] == "test"])
    with (target / "split.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("id", "split", "duration_s", "transcript")]
            + [(r["id"], r["split"], r["duration"], r["text"]) for r in rows]
        )
    with (target / "excluded.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("name", "reason", "transcript"), *excluded])


def _manifest(path: Path, folder: str, rows: list[dict]) -> None:
    lines = [
        {
            "id": row["id"],
            "audio": f"{folder}/{row['id']}.flac",
            "text": row["text"],
            "duration": row["duration"],
            "speaker": SPEAKER,
        }
        for row in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
