"""Clips to listen to, out of a run's report: they may be passed on where their licence says so."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from peft_whisper.publishing.belongs import SAMPLES, Outgoing
from peft_whisper.scoring.record import Record
from peft_whisper.scoring.report import chosen_clips

MOST = 3
# As the report writes a clip: its sound, and its id behind it.
CLIP = re.compile(r'src="data:audio/flac;base64,([A-Za-z0-9+/=]+)"></audio> <code>([^<]*)</code>')


@dataclass(frozen=True)
class Sample:
    """A test clip: what was said and heard, and its sound as a file of the repository."""

    said: str
    base: str
    tuned: str
    improved: bool  # chosen for that, not for what is still wrong
    sound: Outgoing


def samples(record: Record, report: Path) -> list[Sample]:
    """The most improved test clips and some that are still wrong, with their sound as FLAC."""
    if not report.is_file():
        return []
    page = report.read_text(encoding="utf-8")
    sounds = {unescape(clip): base64.b64decode(sound) for sound, clip in CLIP.findall(page)}
    worst, improved = chosen_clips(record.predictions)
    chosen = [row for row in [*improved[: MOST - 1], *worst] if row["id"] in sounds][:MOST]
    return [
        Sample(
            row["reference"],
            row["base"],
            row["tuned"],
            row in improved,
            Outgoing(f"{SAMPLES}{number}.flac", sounds[row["id"]]),
        )
        for number, row in enumerate(chosen, start=1)
    ]


def section(chosen: list[Sample], address: str) -> list[str]:
    """The card's section; `address` is where the Hub serves the repository's files."""
    if not chosen:
        return []
    rows = [
        f'| <audio controls src="{address}/{one.sound.path}"></audio> | '
        + " | ".join(_cell(text) for text in (one.said, one.base, one.tuned))
        + " |"
        for one in chosen
    ]
    head = "| sound | said | base | tuned |\n|---|---|---|---|"
    better = sum(one.improved for one in chosen)
    about = (
        f"Test clips: {better} of those that improved most, {len(chosen) - better} of those with "
    )
    about += "the most errors."
    return ["## Samples\n", f"{about}\n", head, *rows, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") or "(nothing)"
