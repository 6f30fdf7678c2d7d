"""Where in a recording there is sound, and words moved out of its pauses.

At a pause Whisper's timestamps and its attention are off by as much as the pause is long, and by
a word or two: both run from one word to the next. The sound's own level tells where it stops.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from peft_whisper.data.audio import SILENCE_RMS
from peft_whisper.data.mel import HOP, SAMPLE_RATE
from peft_whisper.scoring.words import Word

FRAME_S = HOP / SAMPLE_RATE
# A frame is sound from a quarter of the way, in dB, between the quiet and the loud of its window.
QUIET, LOUD = 10, 95  # percentiles
QUARTER = 0.25
REACH_S = 1.0  # how far the sound before a stretch's first word, or behind its last, may reach
# What a pause behind no punctuation costs, and a stretch without a word (`_stretches_of`). Chosen
# on the prompts of benchmarks/long_audio.py, where other values put 87 to 98 % of them in time.
UNMARKED_S, SKIP_S = 2.0, 3.0
PAUSE_FRAMES = 25  # 0.25 s without sound: between words, not within one


def sounding(wave: np.ndarray) -> np.ndarray:
    """Bool (samples / 160,): whether each 10 ms are sound or a short gap within it."""
    frames = wave[: len(wave) // HOP * HOP].reshape(-1, HOP)
    level = np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1))
    decibel = 20 * np.log10(np.maximum(level, SILENCE_RMS))
    quiet, loud = np.percentile(decibel, [QUIET, LOUD])
    sound = (level > SILENCE_RMS) & (decibel >= quiet + QUARTER * (loud - quiet))
    for first, last in _runs(~sound):
        if last - first < PAUSE_FRAMES:
            sound[first:last] = True
    return sound


def moved_to_sound(words: Sequence[Word], sound: np.ndarray) -> list[Word]:
    """Words, in order of time, each within one stretch of `sound`.

    The first word of a stretch begins where the stretch does, and the last one ends with it,
    unless that is further than a second away. Without sound the words are left as they are.
    """
    stretches = np.array(_runs(sound)).reshape(-1, 2) * FRAME_S
    if not words or not len(stretches):
        return list(words)
    places = _stretches_of(words, stretches)
    moved: list[Word] = []
    for at, (word, place) in enumerate(zip(words, places, strict=True)):
        first, last = stretches[place].tolist()
        start, end = min(max(word.start_s, first), last), max(min(word.end_s, last), first)
        leads = at == 0 or places[at - 1] != place
        if leads and start - first <= REACH_S:
            start = first
        if (at + 1 == len(words) or places[at + 1] != place) and last - end <= REACH_S:
            end = last
        if start >= end and not leads:  # it began in the pause: half of what its neighbour has
            before = moved.pop()
            start = (before.start_s + before.end_s) / 2
            moved.append(replace(before, end_s=start))
        moved.append(replace(word, start_s=start, end_s=max(start, end)))
    return moved


def _stretches_of(words: Sequence[Word], stretches: np.ndarray) -> list[int]:
    """Which of `stretches` (n, 2), in seconds, each word is in: those that cost least together.

    A word costs its distance in seconds; a pause that follows no punctuation and a stretch without
    a word cost as much as so many seconds.
    """
    numbers = np.arange(len(stretches))
    skipped = numbers[None, :] - numbers[:, None] - 1  # stretches between two
    step = np.where(skipped >= 0, SKIP_S * skipped, np.inf)
    np.fill_diagonal(step, 0.0)
    costs = SKIP_S * numbers.astype(float)
    came: list[np.ndarray] = []
    for at, word in enumerate(words):
        if at:
            unmarked = 0.0 if _marked(words[at - 1]) else UNMARKED_S
            ways = costs[:, None] + step + unmarked * (skipped >= 0)
            came.append(ways.argmin(axis=0))
            costs = ways.min(axis=0)
        away = np.maximum(stretches[:, 0] - word.end_s, word.start_s - stretches[:, 1])
        costs = costs + np.maximum(0.0, away)
    place = int(np.argmin(costs))  # what sounds behind the last word may be nothing that is said
    places = [place]
    for before in reversed(came):
        place = int(before[place])
        places.append(place)
    return places[::-1]


def _marked(word: Word) -> bool:
    """Does it end with punctuation?"""
    return unicodedata.category(word.text.strip()[-1:] or " ").startswith("P")


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(first, behind the last) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
