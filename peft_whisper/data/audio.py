"""A sound file, or a segment of one -> 16 kHz mono waveform."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from peft_whisper.data.containers import shortage
from peft_whisper.data.mel import SAMPLE_RATE
from peft_whisper.errors import DataError
from peft_whisper.files import sha256_of

if TYPE_CHECKING:
    import soundfile

    from peft_whisper.data.audit import Clip

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")  # libsndfile's names
RATES_HZ = (4_000, 384_000)  # outside of it a header is damaged
BLOCK = 1 << 18  # frames decoded at a time: a header that lies can't ask for all memory
END_SLACK_S = 0.1  # manifests round a segment's end
SILENCE_RMS = 1e-4  # -80 dB of full scale; the noise of 16-bit rounding lies near -100 dB
CANCELLED = 0.1  # mean over channels below a tenth (-20 dB) of the loudest: they cancel out
INTEGER_PEAK = 8.0  # float samples that far above full scale (+-1) are integers, unscaled


class AudioError(Exception):
    """A clip that can't be used: `cause` is one word or two, `detail` says what was found."""

    def __init__(self, cause: str, detail: str):
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


class ChangedClipError(DataError):
    """A clip that passed the audit is another one now; survives the way out of a loader process.

    torch raises it again there as `type(error)(text)`, with the worker's traceback before the
    sentence, which begins behind this class's name.
    """

    def __init__(self, text: str):
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(text.partition(name)[2].strip() or text)


class Cells(Protocol):
    """Encoded sounds in the rows of a table on disk, read when needed."""

    def __getitem__(self, row: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class AudioRef:
    """Where a clip's sound is: a file, bytes of one, or a row of a table; perhaps a segment of it.

    Exactly one of `path`, `data` and `cells` (with `row`) is set; times are seconds.
    """

    path: str | None = None
    data: bytes | None = None
    start_s: float | None = None
    end_s: float | None = None
    cells: Cells | None = None
    row: int = 0


def load_wave(ref: AudioRef, channel: str = "mean", max_s: float | None = None) -> np.ndarray:
    """Decode, mix to one channel and resample (soxr, very high quality).

    Returns float32 (samples,), 16 kHz, within [-1, 1]: a wave that goes beyond (float files,
    overshoot of the resampler) is scaled down as a whole, never clipped. Raises AudioError with
    cause unreadable, shortened, nan samples, silent (channels that cancel out) or too long (more
    than `max_s` seconds, known before it is decoded).
    """
    samples, rate = _decode(ref, max_s)
    refuse_nan(samples, rate)
    return _within_one(_resample(_mix(samples, channel), rate))


def refuse_nan(samples: np.ndarray, rate: int, before_s: float = 0.0) -> None:
    """Raise AudioError where (frames, channels) at `rate` Hz hold NaN or infinite samples."""
    broken = np.flatnonzero(~np.isfinite(samples).all(axis=1))
    if len(broken):
        first = before_s + broken[0] / rate
        raise AudioError("nan samples", f"{len(broken):,} of {len(samples):,}, from {first:.2f} s")


def unchanged(clip: Clip, wave_of: Callable[[Clip], np.ndarray]) -> np.ndarray:
    """An audited clip's wave, float32 (samples,), 16 kHz, read again by `wave_of`.

    Raises ChangedClipError where it can't be used any more or has another length.
    """
    try:
        wave = wave_of(clip)
        if len(wave) != round(clip.duration_s * SAMPLE_RATE):
            found_s = len(wave) / SAMPLE_RATE
            detail = f"{clip.duration_s:.4f} s then, {found_s:.4f} s now"
            raise AudioError("duration differs", detail)
    except AudioError as error:
        raise ChangedClipError(
            f"clip {clip.id} has changed since it was checked: {error}; "
            "put it back as it was, or start again"
        ) from error
    return wave


def _decode(ref: AudioRef, max_s: float | None) -> tuple[np.ndarray, int]:
    """Return float32 (frames, channels) and the sampling rate in Hz."""
    with sound_of(ref) as sound:
        return _read(sound, ref.start_s or 0.0, ref.end_s, max_s), sound.samplerate


@contextmanager
def sound_of(ref: AudioRef) -> Iterator[soundfile.SoundFile]:
    """The sound, open at its start; AudioError where it is not whole, or reading it fails."""
    import soundfile

    with _opened(ref) as file:
        missing = shortage(file) if ref.end_s is None else None
        if missing:
            raise AudioError("shortened", missing)
        file.seek(0)
        try:
            # A descriptor rather than a name: libsndfile would guess a format from the name's end.
            source = file if isinstance(file, io.BytesIO) else file.fileno()
            with soundfile.SoundFile(source, closefd=False) as sound:
                _check_format(sound)
                yield sound
        except soundfile.LibsndfileError as error:
            raise AudioError("unreadable", _reason(error)) from error


def encoded_sha256(ref: AudioRef) -> str:
    """SHA-256 (hex) of the encoded bytes, all of the file's for a segment too.

    Raises AudioError (unreadable) where they can't be read.
    """
    with _opened(ref) as file:
        try:
            return sha256_of(file)
        except OSError as error:
            raise AudioError("unreadable", error.strerror or type(error).__name__) from error


@contextmanager
def _opened(ref: AudioRef) -> Iterator[BinaryIO]:
    if ref.path is None:
        try:
            data = ref.data if ref.data is not None else ref.cells[ref.row] if ref.cells else None
        except OSError as error:  # a temporary file that somebody cleared away
            raise AudioError("unreadable", error.strerror or type(error).__name__) from error
        if not data:
            raise AudioError("unreadable", "the sound has 0 bytes")
        yield io.BytesIO(data)
        return
    path = Path(ref.path)
    try:
        if not path.is_file():  # a folder, a pipe or a device would hang or fail later
            raise AudioError("unreadable", "it is no file" if path.exists() else "no such file")
        if path.stat().st_size == 0:
            raise AudioError("unreadable", "the file has 0 bytes")
        file = path.open("rb", buffering=0)  # else its descriptor stands where the buffer ends
    except OSError as error:
        raise AudioError("unreadable", error.strerror or type(error).__name__) from error
    with file:
        yield file


def _check_format(sound: soundfile.SoundFile) -> None:
    if sound.format not in FORMATS:
        raise AudioError("unreadable", f"{sound.format} is not one of WAV, FLAC, OGG, MP3; convert")
    if not RATES_HZ[0] <= sound.samplerate <= RATES_HZ[1]:
        raise AudioError("unreadable", f"a sampling rate of {sound.samplerate:,} Hz")


def _read(
    sound: soundfile.SoundFile, start_s: float, end_s: float | None, max_s: float | None
) -> np.ndarray:
    """Read a segment, all of it or AudioError."""
    rate, first = sound.samplerate, round(start_s * sound.samplerate)
    last = sound.frames if end_s is None else round(end_s * rate)
    if last > sound.frames + END_SLACK_S * rate or first > sound.frames:
        file_s = sound.frames / rate
        raise AudioError("shortened", f"a segment to {last / rate:.2f} s of a {file_s:.2f} s file")
    last = min(last, sound.frames)
    if max_s is not None and last - first > max_s * rate:
        raise AudioError("too long", f"{(last - first) / rate:.2f} s; at most {max_s:g} s")
    if sound.subtype != "VORBIS":
        if first:  # in a damaged file even a seek to its start can fail
            sound.seek(first)
        return _frames(sound, last - first)
    # libsndfile 1.2.2 seeks in Vorbis to a neighbouring block: decode up to the segment instead.
    for at in range(0, first, BLOCK):
        _frames(sound, min(BLOCK, first - at))
    return _frames(sound, last - first)


def _frames(sound: soundfile.SoundFile, count: int) -> np.ndarray:
    """Read `count` frames; raises AudioError where the file holds fewer."""
    return np.concatenate([np.zeros((0, sound.channels), np.float32), *blocks_of(sound, count)])


def blocks_of(sound: soundfile.SoundFile, count: int) -> Iterator[np.ndarray]:
    """`count` frames in blocks, float32 (frames, channels); AudioError where there are fewer."""
    import soundfile

    left, reason = count, "the sound ends"
    try:
        while left > 0:
            block = sound.read(min(BLOCK, left), dtype="float32", always_2d=True)
            if len(block) == 0:
                break
            left -= len(block)
            yield block
    except soundfile.LibsndfileError as error:
        reason = _reason(error)
    if left:
        found, promised = (count - left) / sound.samplerate, count / sound.samplerate
        raise AudioError("shortened", f"{reason} after {found:.2f} of {promised:.2f} s")


def _reason(error: soundfile.LibsndfileError) -> str:
    """The decoder's own words, without a path or an address of this process."""
    return error.error_string.removeprefix("Error : ").rstrip(". ") or f"error {error.code}"


def _mix(samples: np.ndarray, channel: str) -> np.ndarray:
    """(frames, channels) -> (frames,), by `channel`: mean, first or loudest."""
    if samples.shape[1] == 1 or channel == "first" or not len(samples):
        return samples[:, 0]
    levels = [rms(samples[:, number]) for number in range(samples.shape[1])]
    if channel == "loudest":
        return samples[:, int(np.argmax(levels))]
    mean = samples.mean(axis=1)
    refuse_cancelled(levels, rms(mean))
    return mean


def refuse_cancelled(levels: Sequence[float], mean: float) -> None:
    """Raise AudioError where the mean over channels of such levels (RMS) holds nothing of them."""
    loudest = max(levels)
    if mean < CANCELLED * loudest and loudest >= SILENCE_RMS:
        raise AudioError(
            "silent",
            f"the mean of {len(levels)} channels has a level of {mean:.1e}, the loudest one "
            f"{loudest:.1e}: they cancel out; set data.channel to first or loudest",
        )


def rms(wave: np.ndarray) -> float:
    """Root mean square of a wave, full scale 1; 0 for an empty one."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0


def _resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """Resample to 16 kHz; samples = round(n * 16000 / rate), within one."""
    if rate == SAMPLE_RATE:
        return np.ascontiguousarray(wave)
    import soxr

    return soxr.resample(np.ascontiguousarray(wave), rate, SAMPLE_RATE, quality="VHQ")


def _within_one(wave: np.ndarray) -> np.ndarray:
    peak = float(np.abs(wave).max(initial=0.0))
    refuse_integers(peak)
    return wave / np.float32(peak) if peak > 1 else wave


def refuse_integers(peak: float) -> None:
    """Raise AudioError where a wave that reaches `peak` can't be one with full scale 1."""
    if peak > INTEGER_PEAK:
        raise AudioError(
            "unreadable", f"samples reach {peak:,.0f} where full scale is 1: integers as floats?"
        )
