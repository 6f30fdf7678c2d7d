"""Recordings of any length: windows of 30 s, each beginning where the last whole segment ended.

The sequential algorithm of openai-whisper (whisper/transcribe.py; Radford et al. 2022, section
4.5): segments between predicted timestamps, sampling where greedy text repeats itself or is
unlikely, windows without speech skipped. Earlier text is not given as a prompt.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from peft_whisper.data.labels import MAX_TOKENS, TIMESTAMP_STEP_S
from peft_whisper.data.mel import (
    FRAMES_PER_POSITION,
    FULL_POSITIONS,
    HOP,
    SAMPLE_RATE,
    log_mel,
)
from peft_whisper.environment import empty_caches
from peft_whisper.model.decoder import TokenDecoder
from peft_whisper.scoring.decode import Decoder, unless_too_large
from peft_whisper.scoring.search import follow

if TYPE_CHECKING:
    from peft_whisper.scoring.search import Greedy

WINDOW_FRAMES = FRAMES_PER_POSITION * FULL_POSITIONS  # 3000, of 10 ms: always the full 30 s
FRAME_S = HOP / SAMPLE_RATE
WINDOW_TOKENS = MAX_TOKENS // 2
FIRST_STAMP_BEFORE = 50  # steps of 20 ms: speech begins within the first second, or never
# Thresholds and temperatures of whisper/transcribe.py.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOST_REPETITIVE = 2.4  # bytes of text to bytes of it compressed
LEAST_LOGPROB = -1.0  # mean over tokens
NO_SPEECH = 0.6  # probability


@dataclass(frozen=True)
class Segment:
    """What was said between two times of a recording."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Attempt:
    """A window's tokens, end-of-text left out, and what tells whether to believe them."""

    tokens: list[int]
    text: str
    logprob: float  # mean over the tokens, end-of-text among them
    no_speech: float  # probability

    @property
    def silent(self) -> bool:
        return self.no_speech > NO_SPEECH and self.logprob <= LEAST_LOGPROB

    @property
    def doubtful(self) -> bool:
        spelt = self.text.encode()
        repetitive = len(spelt) > MOST_REPETITIVE * len(zlib.compress(spelt))
        return not self.silent and (repetitive or self.logprob < LEAST_LOGPROB)


def transcribe_long(
    decoder: Decoder,
    waves: Sequence[np.ndarray],
    language: str | None = None,
    progress: Callable[[float], None] = lambda _seconds: None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[list[Segment]]:
    """Segments of each recording, in order of time.

    Args:
        decoder: as many recordings as its `batch` are decoded at once.
        waves: float32 (samples,), 16 kHz, of any length.
        language: what is spoken; an English-only model needs none.
        progress: called with the seconds that were done since the last call.
        temperatures: the first is tried on each window, the next where it failed.
    """
    listener = Listener(decoder, language, temperatures)
    recordings = [Recording(wave, decoder.n_mels) for wave in waves]
    most = decoder.batch
    while going := [one for one in recordings if one.seek < one.frames][:most]:
        windows = torch.stack([one.window() for one in going])
        found = unless_too_large(partial(listener, windows), len(going))
        if found is None:
            most = len(going) // 2
            empty_caches(decoder.whisper.device)
            continue
        for recording, attempt in zip(going, found, strict=True):
            before = recording.seek
            recording.take(attempt, decoder)
            progress((recording.seek - before) * FRAME_S)
    return [one.segments for one in recordings]


class Recording:
    """A log-mel spectrogram, how far it has been heard, and what was."""

    def __init__(self, wave: np.ndarray, n_mels: int):
        self.frames = -(-len(wave) // HOP)
        padded = torch.zeros(1, (self.frames + WINDOW_FRAMES) * HOP)  # the last window: silence
        padded[0, : len(wave)] = torch.from_numpy(wave)
        self.mel = log_mel(padded, n_mels)[0]
        self.seconds = len(wave) / SAMPLE_RATE
        self.seek = 0  # frame
        self.segments: list[Segment] = []

    def window(self) -> Tensor:
        """Log-mel (mels, 3000) of the 30 s that come next."""
        return self.mel[:, self.seek : self.seek + WINDOW_FRAMES]

    def take(self, attempt: Attempt, decoder: Decoder) -> None:
        """Keep an attempt's segments, and go on behind the last whole one."""
        size = min(WINDOW_FRAMES, self.frames - self.seek)
        if attempt.silent:
            self.seek += size
            return
        offset = self.seek * FRAME_S
        parts, heard = split(attempt.tokens, decoder.labels.first_timestamp, size)
        for first, last, tokens in parts:
            start = offset + first * TIMESTAMP_STEP_S
            end = min(offset + last * TIMESTAMP_STEP_S, self.seconds)
            text = decoder.labels.decode(tokens)
            if text and start < end:
                self.segments.append(Segment(round(start, 2), round(end, 2), text))
        self.seek += heard


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


class Listener:
    """Decodes windows with timestamps, again at higher temperatures where it went wrong."""

    def __init__(self, decoder: Decoder, language: str | None, temperatures: Sequence[float]):
        self.decoder, self.greedy, self.temperatures = decoder, decoder.search(), temperatures
        self.prefix = decoder.labels.prefix(language, timestamps=True)
        self.random = torch.Generator(decoder.whisper.device).manual_seed(0)

    def __call__(self, mel: Tensor) -> list[Attempt]:
        """An attempt for each window (windows, mels, 3000)."""
        with self.decoder.working():
            heard = self.decoder.encoded(mel)
            found = self._attempt(heard, self.temperatures[0])
            for temperature in self.temperatures[1:]:
                again = [row for row, one in enumerate(found) if one.doubtful]
                if not again:
                    break
                attempts = self._attempt(heard[again], temperature)
                for row, attempt in zip(again, attempts, strict=True):
                    found[row] = attempt
        return found

    def _attempt(self, heard: Tensor, temperature: float) -> list[Attempt]:
        greedy, labels = self.greedy, self.decoder.labels
        rows = len(heard)
        limit = min(WINDOW_TOKENS, MAX_TOKENS - len(self.prefix))
        decoder = TokenDecoder(greedy.whisper, [heard], len(self.prefix) + limit - 1)
        hidden = decoder(torch.tensor([self.prefix] * rows, device=heard.device))
        first = greedy.vocabulary(hidden[:, 0]).float().softmax(-1)
        no_speech = first[:, labels.first_timestamp - 2].tolist()
        rules = TimestampRules(greedy, labels.first_timestamp, rows, temperature, self.random)
        ids = follow(decoder, greedy.vocabulary, hidden[:, -1], limit, greedy.end, rules.choose)
        return [
            Attempt(tokens, labels.decode(tokens), logprob, silence)
            for tokens, logprob, silence in zip(ids, rules.logprobs(), no_speech, strict=True)
        ]


class TimestampRules:
    """Chooses tokens so that timestamps come in pairs and never go back.

    The rules of whisper/decoding.py (ApplyTimestampRules), for all rows at once.
    """

    def __init__(
        self, greedy: Greedy, first: int, rows: int, temperature: float, random: torch.Generator
    ):
        self.greedy, self.first, self.temperature, self.random = greedy, first, temperature, random
        device = greedy.never.device
        # Tokens before the next one; where there is none yet, it counts as a timestamp.
        self.last = torch.full((rows,), first, device=device)
        self.before = torch.full_like(self.last, first)
        self.stamp = torch.full_like(self.last, -1)  # latest, counted from `first`
        self.total = torch.zeros(rows, device=device)  # log-probability
        self.count = torch.zeros_like(self.last)

    def choose(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """Token (rows,) of logits (rows, vocabulary)."""
        logits = logits.float()
        logits[:, self.first - 1] = -torch.inf  # <|notimestamps|>
        self.greedy.suppress(logits, step)
        self._keep_pairs(logits, rows, step)
        text, stamps = logits[:, : self.first], logits[:, self.first :]
        text.masked_fill_((stamps.logsumexp(-1) > text.amax(-1))[:, None], -torch.inf)
        if self.temperature:
            chances = (logits / self.temperature).softmax(-1)
            token = chances.multinomial(1, generator=self.random)[:, 0]
        else:
            token = logits.argmax(-1)
        self._note(logits, token, rows)
        return token

    def logprobs(self) -> list[float]:
        """Mean log-probability of each row's tokens, end-of-text among them."""
        means: list[float] = (self.total / self.count.clamp(min=1)).tolist()
        return means

    def _keep_pairs(self, logits: Tensor, rows: Tensor, step: int) -> None:
        text, stamps = logits[:, : self.first], logits[:, self.first :]
        if step == 0:
            text.fill_(-torch.inf)
            stamps[:, FIRST_STAMP_BEFORE + 1 :] = -torch.inf
            return
        last, before = self.last[rows] >= self.first, self.before[rows] >= self.first
        closed = last & ~before  # now its like opens the next segment, or all ends
        text[:, : self.greedy.end].masked_fill_(closed[:, None], -torch.inf)
        lowest = self.stamp[rows] + (~closed).long()
        earlier = torch.arange(stamps.shape[1], device=rows.device) < lowest[:, None]
        stamps.masked_fill_(earlier | (last & before)[:, None], -torch.inf)

    def _note(self, logits: Tensor, token: Tensor, rows: Tensor) -> None:
        """Remember what the rules and the mean need to know of a row."""
        last, end = self.last[rows], self.greedy.end
        going = last != end
        logprob = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
        self.total[rows] += logprob * going
        self.count[rows] += going
        stamp = token - self.first
        self.stamp[rows] = torch.where(stamp >= 0, stamp, self.stamp[rows])
        self.before[rows], self.last[rows] = last, torch.where(going, token, end)
