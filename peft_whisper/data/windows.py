"""A recording of any length, heard window by window: of its samples little is held at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from peft_whisper.data.audio import (
    AudioRef,
    blocks_of,
    refuse_cancelled,
    refuse_integers,
    refuse_nan,
    sound_of,
)
from peft_whisper.data.mel import HOP, N_FFT, QUIETEST, SAMPLE_RATE, log_power, scaled

MARGIN = -(-N_FFT // 2 // HOP)  # frames whose samples a neighbouring frame's window reaches into
NOTHING = np.zeros(0, np.float32)
SILENCE = np.zeros((3 * MARGIN + 1) * HOP, np.float32)  # so that the last samples are looked at
Blocks = Callable[[], Iterator[np.ndarray]]


class Stream:
    """Log-mel windows of a recording, equal to those cut from its whole spectrogram.

    `blocks` gives its samples from the start, float32, 16 kHz, each time it is called. They are
    read through once before anything is heard, for the length, the peak (a recording beyond full
    scale is scaled down as a whole, as `load_wave` does) and the loudest band, to which the
    spectrogram's floor is tied. Raises AudioError where they can't be read to their end.
    """

    def __init__(self, name: str, blocks: Blocks, n_mels: int):
        self.name, self.blocks, self.n_mels = name, blocks, n_mels
        self.samples, peak, self.loudest = self._survey()
        refuse_integers(peak)
        self.scale = 1 / max(1.0, peak)
        self.loudest = max(self.loudest + 2 * np.log10(self.scale), np.log10(QUIETEST))
        self.frames = -(-self.samples // HOP)  # of 10 ms
        self.seconds = self.samples / SAMPLE_RATE
        self._rewind()

    def window(self, first: int, frames: int) -> tuple[torch.Tensor, np.ndarray]:
        """Log-mel (mels, frames) from frame `first` on, and the samples (160 * frames,) below it.

        Behind the recording's end is silence. Reads on from where the last window began; an
        earlier one costs reading from the start.
        """
        before = min(MARGIN, first)
        wave = self._read((first - before) * HOP, (first + frames + MARGIN) * HOP)
        log = log_power(torch.from_numpy(wave)[None], self.n_mels)[0, :, before : before + frames]
        return scaled(log, float(self.loudest)), wave[before * HOP : (before + frames) * HOP]

    def _survey(self) -> tuple[int, float, float]:
        """Samples, their peak, and the largest log10 of a band's power."""
        samples, peak, loudest = 0, 0.0, float(np.log10(QUIETEST))
        held, seen = NOTHING, 0  # seen: frames of `held` that were looked at
        for block in self._with_silence():
            samples += len(block)
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            held = np.concatenate([held, block])
            whole = len(held) // HOP
            if whole <= 2 * MARGIN:
                continue
            log = log_power(torch.from_numpy(held[: whole * HOP])[None], self.n_mels)
            loudest = max(loudest, float(log[0, :, seen : whole - MARGIN].max()))
            held, seen = held[(whole - 2 * MARGIN) * HOP :], MARGIN
        return samples - len(SILENCE), peak, loudest

    def _with_silence(self) -> Iterator[np.ndarray]:
        yield from self.blocks()
        yield SILENCE

    def _rewind(self) -> None:
        self.left, self.start, self.held = self.blocks(), 0, NOTHING

    def _read(self, first: int, last: int) -> np.ndarray:
        """Samples `first` to `last`, zeros behind the end."""
        if first < self.start:
            self._rewind()
        parts, end = [self.held], self.start + len(self.held)
        while end < last and (block := next(self.left, None)) is not None:
            end += len(block)
            if end <= first:  # nothing of all that was read so far is needed any more
                parts, self.start = [], end
            else:
                parts.append(block * np.float32(self.scale) if self.scale < 1 else block)
        held = np.concatenate([NOTHING, *parts])[max(0, first - self.start) :]
        self.start, self.held = max(self.start, first), held
        found = held[: last - first]
        return np.pad(found, (0, last - first - len(found)))


def seconds_of(ref: AudioRef) -> float:
    """How long a file says it is; raises AudioError where that can't be read."""
    with sound_of(ref) as sound:
        return float(sound.frames / sound.samplerate)


def wave_blocks(ref: AudioRef, channel: str = "mean") -> Iterator[np.ndarray]:
    """The samples of `load_wave` in blocks, float32, 16 kHz, before anything is scaled down.

    Raises AudioError as `load_wave` does.
    """
    import soxr

    column = _column(ref, channel)
    with sound_of(ref) as sound:
        rate, read = sound.samplerate, 0
        resampled = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="VHQ")
        for block in blocks_of(sound, sound.frames):
            refuse_nan(block, rate, read / rate)
            read += len(block)
            mono = block.mean(axis=1) if column is None else np.ascontiguousarray(block[:, column])
            yield mono if rate == SAMPLE_RATE else resampled.resample_chunk(mono)
        if rate != SAMPLE_RATE:
            yield resampled.resample_chunk(NOTHING, last=True)


def _column(ref: AudioRef, channel: str) -> int | None:
    """Which channel `channel` (mean, first or loudest) is; None for the mean of several."""
    with sound_of(ref) as sound:
        if sound.channels == 1 or channel == "first":
            return 0
        powers = np.zeros(sound.channels + 1)
        for block in blocks_of(sound, sound.frames):
            both = np.concatenate([block, block.mean(axis=1, keepdims=True)], axis=1)
            powers += np.square(both, dtype=np.float64).sum(axis=0)
        levels = np.sqrt(powers / max(1, sound.frames)).tolist()
    if channel == "loudest":
        return int(np.argmax(levels[:-1]))
    refuse_cancelled(levels[:-1], levels[-1])
    return None
