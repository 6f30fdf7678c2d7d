"""Recordings of any length: windows of 30 s, each beginning where the last whole segment ended.

The sequential algorithm of openai-whisper (whisper/transcribe.py; Radford et al. 2022, section
4.5): segments between predicted timestamps, sampling where greedy text repeats itself or is
unlikely, windows without speech skipped. Earlier text is not given as a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch

from peft_whisper.data.audio import SILENCE_RMS, AudioError, rms
from peft_whisper.data.labels import TIMESTAMP_STEP_S
from peft_whisper.data.mel import (
    FRAMES_PER_POSITION,
    HOP,
    SAMPLE_RATE,
)
from peft_whisper.environment import empty_caches
from peft_whisper.positions import FULL_POSITIONS
from peft_whisper.scoring.decode import Decoder, unless_too_large
from peft_whisper.scoring.listen import TEMPERATURES, Attempt, Listener
from peft_whisper.scoring.pauses import moved_to_sound, sounding
from peft_whisper.scoring.words import Word, grouped

if TYPE_CHECKING:
    from peft_whisper.data.labels import Labels
    from peft_whisper.data.windows import Stream

WINDOW_FRAMES = FRAMES_PER_POSITION * FULL_POSITIONS  # 3000, of 10 ms: always the full 30 s
FRAME_S = HOP / SAMPLE_RATE
PAUSE_S = 1.0  # within a segment: there it is cut in two


@dataclass(frozen=True)
class Segment:
    """What was said between two times of a recording."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()  # none where the base does not say which heads tell their times


def transcribe_long(
    decoder: Decoder,
    sounds: Iterable[Stream],
    language: str | None = None,
    progress: Callable[[float], None] = lambda _seconds: None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Iterator[tuple[Stream, list[Segment] | AudioError]]:
    """Each recording with its segments, in order of time; the recordings as they are finished.

    A recording that can't be read to its end is given back with the reason; the others go on.

    Args:
        decoder: as many recordings as its `batch` are decoded at once; no more are held.
        language: what is spoken; None: an English-only model needs none, a multilingual one
            takes for each recording what it hears in its first window.
        progress: called with the seconds that were done since the last call.
        temperatures: the first is tried on each window, the next where it failed.
    """
    listener, waiting = Listener(decoder, temperatures), iter(sounds)
    going: list[Recording] = []
    most = decoder.batch
    while True:
        while len(going) < most and (sound := next(waiting, None)) is not None:
            going.append(Recording(sound, language))
        ended = [one for one in going if one.failure or one.seek >= one.sound.frames]
        if ended:
            going = [one for one in going if one not in ended]
            yield from ((one.sound, one.failure or one.segments) for one in ended)
            continue
        now = going[:most]
        if not now:
            return
        found = unless_too_large(partial(_heard, listener, now), len(now))
        if found is None:
            most = len(now) // 2
            empty_caches(decoder.whisper.device)
            continue
        for recording, attempt in found:
            before = recording.seek
            recording.take(attempt, decoder.labels)
            progress((recording.seek - before) * FRAME_S)


def _heard(listener: Listener, going: Sequence[Recording]) -> list[tuple[Recording, Attempt]]:
    """What is heard next in each recording; those that can't be read get their `failure`."""
    found: list[tuple[Recording, Attempt]] = []
    loud: list[Recording] = []
    for one in going:
        try:
            if one.next_is_silent():
                found.append((one, SILENCE))
            else:
                one.language = one.language or listener.language_of(one.mel)
                loud.append(one)
        except AudioError as error:
            one.failure = error
    if loud:
        mel = torch.stack([one.mel for one in loud])
        languages = [one.language for one in loud]
        positions = [max(1, one.size // FRAMES_PER_POSITION) for one in loud]
        found += zip(loud, listener(mel, languages, positions), strict=True)
    return found


class Recording:
    """A sound, how far it has been heard, and what was."""

    def __init__(self, sound: Stream, language: str | None):
        self.sound, self.language = sound, language
        self.seek = 0  # frame
        self.said_until_s = 0.0
        self.segments: list[Segment] = []
        self.failure: AudioError | None = None

    @property
    def size(self) -> int:
        """Frames of the next window that lie before the recording's end."""
        return min(WINDOW_FRAMES, self.sound.frames - self.seek)

    def next_is_silent(self) -> bool:
        """Read the 30 s that come next; is there no sound in them?"""
        self.mel, self.wave = self.sound.window(self.seek, WINDOW_FRAMES)
        return rms(self.wave) < SILENCE_RMS

    def take(self, attempt: Attempt, labels: Labels) -> None:
        """Keep an attempt's segments, and go on behind the last whole one."""
        size = self.size
        if attempt.silent:
            self.seek += size
            return
        offset = self.seek * FRAME_S
        parts, heard = split(attempt.tokens, labels.first_timestamp, size)
        texts = [labels.plain(tokens) for *_, tokens in parts]
        for (first, last, _), tokens, words in zip(
            parts, texts, self._words(texts, attempt.times, heard, labels), strict=True
        ):
            start = offset + first * TIMESTAMP_STEP_S
            end = min(offset + last * TIMESTAMP_STEP_S, self.sound.seconds)
            text = labels.decode(tokens)
            if any(map(str.isalnum, text)) and start < end:
                self.segments.append(Segment(round(start, 2), round(end, 2), text, words))
        self.seek += heard

    def _words(
        self, texts: Sequence[Sequence[int]], times: Sequence[float], heard: int, labels: Labels
    ) -> list[tuple[Word, ...]]:
        """The words of each text, whose tokens begin at `times` of the window; () without them.

        `heard`: frames of the window that these texts are of.
        """
        if not times:
            return [()] * len(texts)
        words, counts, at = [], [], 0
        for tokens in texts:
            groups = grouped(labels, tokens, self.language)
            counts.append(len(groups))
            for group in groups:
                start, end = times[at], times[at + len(group)]
                words.append(Word(start, end, labels.tokenizer.decode(group)))
                at += len(group)
        sound = sounding(self.wave[: self.size * HOP])
        sound[: max(0, round(self.said_until_s / FRAME_S) - self.seek)] = False  # told before
        moved = moved_to_sound(words, sound[:heard])
        told = iter(self._placed(word) for word in moved)
        return [tuple(islice(told, count)) for count in counts]

    def _placed(self, word: Word) -> Word:
        """A word of the window by the recording's time, to 10 ms."""
        start, end = (round(self.seek * FRAME_S + at, 2) for at in (word.start_s, word.end_s))
        start = max(start, self.said_until_s)
        self.said_until_s = end = max(start, end)
        return Word(start, end, word.text)


def ended_at_pauses(segments: Sequence[Segment]) -> list[Segment]:
    """Segments whose words' times are known, cut where they pause, from first to last word.

    A segment of Whisper begins where the one before ended, and may hold what was said before and
    after a long pause.
    """
    found: list[Segment] = []
    for one in segments:
        if not one.words:
            found.append(one)
            continue
        cuts = [
            at
            for at in range(1, len(one.words))
            if one.words[at].start_s - one.words[at - 1].end_s >= PAUSE_S
        ]
        for first, last in zip([0, *cuts], [*cuts, len(one.words)], strict=True):
            words = one.words[first:last]
            text = "".join(word.text for word in words).strip()
            found.append(Segment(words[0].start_s, words[-1].end_s, text, words))
    return _lasting(found)


def _lasting(segments: Sequence[Segment]) -> list[Segment]:
    """A segment whose words were given no time takes a step of it, where there is one beside it.

    Where there is none it is put to the segment before.
    """
    found: list[Segment] = []
    for at, one in enumerate(segments):
        start, end = one.start_s, one.end_s
        if start >= end:
            behind = segments[at + 1].start_s if at + 1 < len(segments) else end
            before = found[-1].end_s if found else 0.0
            end = max(start, min(start + TIMESTAMP_STEP_S, behind))
            start = start if end > start else max(before, start - TIMESTAMP_STEP_S)
        if start < end or not found:
            found.append(replace(one, start_s=round(start, 2), end_s=round(end, 2)))
        else:
            last = found[-1]
            text = f"{last.text} {one.text}"
            found[-1] = replace(last, text=text, words=last.words + one.words)
    return found


SILENCE = Attempt([], "", -float("inf"), 1.0)


def split(
    tokens: Sequence[int], first_timestamp: int, frames: int
) -> tuple[list[tuple[int, int, list[int]]], int]:
    """A window's tokens by segments, and how many of its `frames` were heard to an end.

    Returns:
        (start, end, tokens) of each segment, in steps of 20 ms from the window's start; frames.
    """
    stamped = [token >= first_timestamp for token in tokens]
    cuts = [at for at in range(1, len(tokens)) if stamped[at - 1] and stamped[at]]
    if not cuts:
        stamps = [token - first_timestamp for token in tokens if token > first_timestamp]
        end = stamps[-1] if stamps else frames // FRAMES_PER_POSITION
        return [(0, end, list(tokens))], frames
    finished = stamped[-2:] == [False, True]  # one stamp at the end: nothing is said after it
    if finished:
        cuts.append(len(tokens))
    parts = [list(tokens[a:b]) for a, b in zip([0, *cuts], cuts, strict=False)]
    found = [(part[0] - first_timestamp, part[-1] - first_timestamp, part) for part in parts]
    return found, frames if finished else found[-1][1] * FRAMES_PER_POSITION
