"""Segments as files that people read and players show: txt, SubRip (srt), WebVTT and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from peft_whisper.scoring.longform import Segment

Cue = tuple[int, int, str]  # start and end in ms, text on one line
SHORTEST_MS = 1  # a cue that ends where it starts is no cue


def txt(segments: Sequence[Segment]) -> str:
    """One line a segment."""
    return "".join(f"{_one_line(one.text)}\n" for one in segments)


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues, a comma before the milliseconds."""
    return "".join(
        f"{number}\n{clock(start, ',')} --> {clock(end, ',')}\n{text}\n\n"
        for number, (start, end, text) in enumerate(_cues(segments), start=1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (w3.org/TR/webvtt1): cue text escaped as its section 6.4 asks."""
    cues = "".join(
        f"{clock(start, '.')} --> {clock(end, '.')}\n{_escaped(text)}\n\n"
        for start, end, text in _cues(segments)
    )
    return f"WEBVTT\n\n{cues}"


def as_json(segments: Sequence[Segment]) -> str:
    """Segments with their words, in seconds; `words` is left out where their times are unknown."""
    rows = [
        {"start_s": one.start_s, "end_s": one.end_s, "text": one.text}
        | (
            {
                "words": [
                    {"start_s": word.start_s, "end_s": word.end_s, "text": word.text.strip()}
                    for word in one.words
                ]
            }
            if one.words
            else {}
        )
        for one in segments
    ]
    return json.dumps({"segments": rows}, indent=2, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Segment]], str]] = {
    "txt": txt,
    "srt": srt,
    "vtt": vtt,
    "json": as_json,
}


def clock(milliseconds: int, point: str) -> str:
    """hours:minutes:seconds and, behind `point`, milliseconds."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"


def _cues(segments: Sequence[Segment]) -> list[Cue]:
    """Cues in order of time; none is empty, and none begins before the one before it ends."""
    cues: list[Cue] = []
    for one in segments:
        start = max(round(1000 * one.start_s), cues[-1][1] if cues else 0)
        end = max(round(1000 * one.end_s), start + SHORTEST_MS)
        cues.append((start, end, _one_line(one.text).replace("-->", "->")))
    return cues


def _one_line(text: str) -> str:
    """A line break would end a line of text, an empty line a cue."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
