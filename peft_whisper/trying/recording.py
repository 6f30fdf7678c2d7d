"""A recording that was given to the page: short enough, and readable to its end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from peft_whisper.data.audio import AudioError, AudioRef
from peft_whisper.data.windows import Stream, seconds_of, wave_blocks
from peft_whisper.errors import DataError

MOST_S = 600.0  # a page is no place to wait longer
CHANNEL = "mean"


def opened(sound: Path, n_mels: int) -> Stream:
    """A recording that can be heard to its end; raises DataError for any other."""
    ref = AudioRef(str(sound))
    try:
        long_s = seconds_of(ref)
        if long_s > MOST_S:
            raise DataError(
                f"The recording has {long_s / 60:.1f} minutes; this page takes {MOST_S / 60:.0f}. "
                "`peft-whisper transcribe` takes any length."
            )
        return Stream(sound.name, partial(wave_blocks, ref, CHANNEL), n_mels)
    except AudioError as error:
        raise DataError(f"This can't be used: {error}.") from error
