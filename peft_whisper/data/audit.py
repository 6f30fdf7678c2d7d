"""Rows -> clips: every row's sound is decoded once, and what can't be trained on is named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peft_whisper.data.ahead import in_order
from peft_whisper.data.audio import (
    SILENCE_RMS,
    AudioError,
    AudioRef,
    encoded_sha256,
    load_wave,
    rms,
)
from peft_whisper.data.labels import MAX_TOKENS
from peft_whisper.data.mel import SAMPLE_RATE
from peft_whisper.environment import cores
from peft_whisper.errors import DataError
from peft_whisper.files import write_jsonl
from peft_whisper.terminal import progress

if TYPE_CHECKING:
    from rich.console import Console

    from peft_whisper.data.corpus import Row

CountTokens = Callable[[str, "str | None"], int]  # (text, language) -> tokens, prefix and end too

CAUSES = (
    "unreadable",
    "shortened",
    "empty",
    "silent",
    "too long",
    "too many tokens",
    "empty transcript",
    "nan samples",
    "duration differs",
    "checksum differs",
)
MAX_S = 30.0  # Whisper's window
MIN_SAMPLES = 800  # 50 ms: no speech sound with its transitions is shorter
DURATION_SLACK_S = 0.1  # between the manifest's duration and the decoded one
SHOWN = 12  # hex digits of a sum
# Threads: libsndfile and soxr release Python's lock. Each may hold a wave of 30 s, 12 MB before it
# is 16 kHz mono, and with more of them than this the lock is what they wait for.
DECODERS = min(16, cores())


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that passed the audit; `tokens` counts prefix and end-of-text too."""

    id: str
    audio: AudioRef
    text: str
    language: str | None
    speaker: str | None
    duration_s: float
    tokens: int
    sha256: str  # of the decoded 16 kHz samples, see `sample_hash`


@dataclass(frozen=True, slots=True)
class Rejected:
    """A clip that didn't pass, its cause (one of CAUSES) and what was found."""

    id: str
    where: str
    cause: str
    detail: str


@dataclass(frozen=True)
class Audit:
    """All rows of a source: `clips` and `rejected` together are what it lists."""

    clips: tuple[Clip, ...]
    rejected: tuple[Rejected, ...]


def audit(
    rows: Iterable[Row],
    count_tokens: CountTokens,
    channel: str = "mean",
    *,
    console: Console | None = None,
    title: str = "audit",
    most: int | None = None,
) -> Audit:
    """Check every row, decoding each once; the order of rows is kept.

    Memory stays bounded: a few waves at a time, and none is kept. `most` rows are expected, for the
    time left. Raises DataError where a row's
    tokens can't be counted at all (no language for a multilingual model).
    """
    from rich.console import Console

    clips: list[Clip] = []
    rejected: list[Rejected] = []
    counted = _counted(rows, count_tokens)
    check = partial(_check, channel, _sums())
    results = in_order(check, counted, DECODERS, ahead=2 * DECODERS)
    with progress(console or Console(quiet=True), title, most) as task:
        for result in results:
            if isinstance(result, Clip):
                clips.append(result)
            else:
                rejected.append(result)
            task.advance(note=f"{len(rejected)} rejected" if rejected else "")
    return Audit(tuple(clips), tuple(rejected))


def _counted(rows: Iterable[Row], count_tokens: CountTokens) -> Iterator[tuple[Row, int]]:
    for row in rows:
        try:
            yield row, count_tokens(row.text, row.language)
        except ValueError as error:
            raise DataError(f"{row.where} ({row.id}): {error}") from error


def _sums() -> Callable[[AudioRef], str]:
    """What gives SHA-256 sums (hex) of sounds' files; those of the last few files are kept.

    Segments of one long recording come one after the other, and it is read once for all of them.
    """
    of_file = lru_cache(DECODERS)(lambda path: encoded_sha256(AudioRef(path=path)))
    return lambda ref: of_file(ref.path) if ref.path is not None else encoded_sha256(ref)


def _check(
    channel: str, sum_of: Callable[[AudioRef], str], counted: tuple[Row, int]
) -> Clip | Rejected:
    row, tokens = counted
    try:
        if not row.text.strip():
            raise AudioError("empty transcript", "no words to learn")
        if tokens > MAX_TOKENS:
            raise AudioError("too many tokens", f"{tokens} with the prefix; at most {MAX_TOKENS}")
        wave = load_wave(row.audio, channel, MAX_S)
        _check_wave(wave, row.duration_s)
        if row.file_sha256 is not None:  # last: the other causes say more of what is wrong
            _check_sum(sum_of(row.audio), row.file_sha256)
    except AudioError as error:
        return Rejected(row.id, row.where, error.cause, error.detail)
    return Clip(
        id=row.id,
        audio=row.audio,
        text=row.text,
        language=row.language,
        speaker=row.speaker,
        duration_s=len(wave) / SAMPLE_RATE,
        tokens=tokens,
        sha256=sample_hash(wave),
    )


def _check_wave(wave: np.ndarray, declared_s: float | None) -> None:
    seconds = len(wave) / SAMPLE_RATE
    if len(wave) < MIN_SAMPLES:
        raise AudioError("empty", f"{len(wave)} samples at 16 kHz; at least {MIN_SAMPLES} (50 ms)")
    if seconds > MAX_S:
        raise AudioError("too long", f"{seconds:.4f} s; at most {MAX_S:g} s")
    if declared_s is not None and abs(declared_s - seconds) > DURATION_SLACK_S:
        cause = "shortened" if seconds < declared_s else "duration differs"
        raise AudioError(cause, f"{declared_s:.2f} s declared, {seconds:.2f} s decoded")
    if rms(wave) < SILENCE_RMS:
        raise AudioError("silent", f"level {rms(wave):.1e} of full scale; speech is above 1e-4")


def _check_sum(found: str, declared: str) -> None:
    if found != declared:
        detail = f"SHA-256 {declared[:SHOWN]}... declared, {found[:SHOWN]}... found"
        raise AudioError("checksum differs", detail)


def sample_hash(wave: np.ndarray) -> str:
    """SHA-256 (hex) of a wave's samples in 16 bits.

    16 bits, because the last bits of a resampled float differ between machines and decoders, and
    because a recording is the same recording as WAV and as FLAC.
    """
    quantised = np.clip(np.round(wave * 32768), -32768, 32767).astype("<i2")
    return hashlib.sha256(quantised.tobytes()).hexdigest()


def write_rejected(path: Path, rejected: dict[str, tuple[Rejected, ...]]) -> None:
    """Write rejected.jsonl: a row per clip (split, id, where, cause, detail), or none."""
    rows = [{"split": split, **asdict(r)} for split, listed in rejected.items() for r in listed]
    write_jsonl(path, rows)


def hours(clips: Iterable[Clip]) -> float:
    """Length of all clips together, in hours."""
    return sum(clip.duration_s for clip in clips) / 3600


def data_fingerprint(clips: Iterable[Clip]) -> str:
    """SHA-256 (hex) over ids, samples, transcripts and languages, in the order of the clips."""
    digest = hashlib.sha256()
    for clip in clips:
        fields = (clip.id, clip.sha256, clip.text, clip.language or "")
        digest.update("".join(f"{len(f.encode())}:{f}" for f in fields).encode())
    return digest.hexdigest()
