"""Long recordings read in blocks: the waves and the spectrograms of reading them whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from peft_whisper.data.audio import AudioError, AudioRef, load_wave
from peft_whisper.data.mel import HOP, log_mel
from peft_whisper.data.windows import Stream, seconds_of, wave_blocks

SECONDS = 31.3


def noise(rate: int, channels: int = 1, level: float = 0.1) -> np.ndarray:
    """Louder and louder, so that each part of it has another maximum."""
    frames = round(SECONDS * rate)
    made = np.random.default_rng(1).standard_normal((frames, channels))
    return (made * np.linspace(0.01, level, frames)[:, None]).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "channel", "level"),
    [
        ("a.wav", 16_000, 1, "mean", 0.1),
        ("a.flac", 44_100, 2, "mean", 0.1),
        ("a.ogg", 48_000, 2, "first", 0.1),
        ("a.mp3", 22_050, 1, "mean", 0.1),
        ("a.wav", 8_000, 3, "loudest", 0.1),
        ("a.wav", 16_000, 1, "mean", 1.0),  # beyond full scale: all is scaled down
    ],
)
def test_blocks_and_windows_are_those_of_the_whole(
    tmp_path: Path, name, rate, channels, channel, level
) -> None:
    kind = {"subtype": "FLOAT"} if name == "a.wav" else {}
    soundfile.write(tmp_path / name, noise(rate, channels, level), rate, **kind)
    ref = AudioRef(str(tmp_path / name))
    whole = load_wave(ref, channel)
    stream = Stream(name, partial(wave_blocks, ref, channel), 80)
    assert stream.samples == len(whole)
    assert stream.seconds == pytest.approx(seconds_of(ref), abs=0.001)
    frames = -(-len(whole) // HOP)
    padded = torch.zeros(1, (frames + 3000) * HOP)
    padded[0, : len(whole)] = torch.from_numpy(whole)
    mel = log_mel(padded, 80)[0]
    for first in (0, 7, 1500, 3000, 3000, 200):  # the last one is read from the start again
        window, wave = stream.window(first, 3000)
        expected = padded[0, first * HOP : (first + 3000) * HOP].numpy()
        assert np.abs(wave - expected).max() < 1e-6
        assert (window - mel[:, first : first + 3000]).abs().max() < 1e-3


@pytest.mark.parametrize("samples", [0, 1, 159, 161, 1000])
def test_very_short_recordings(samples: int) -> None:
    wave = np.full(samples, 0.5, np.float32)
    stream = Stream("short", lambda: iter([wave]), 80)
    assert stream.samples == samples
    assert stream.frames == -(-samples // HOP)
    mel, heard = stream.window(0, 3000)
    assert mel.shape == (80, 3000) and heard.shape == (480_000,)
    assert np.array_equal(heard[:samples], wave) and not heard[samples:].any()


def test_little_is_held_of_a_long_recording() -> None:
    """An hour, of which no more than a window and a block is kept."""
    block = np.full(160_000, 0.1, np.float32)
    stream = Stream("hour", lambda: (block for _ in range(360)), 80)
    assert stream.seconds == 3600
    most = 0
    for first in range(0, stream.frames, 2900):
        stream.window(first, 3000)
        most = max(most, len(stream.held))
    assert most <= 480_000 + 2 * 160_000


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    wave = noise(16_000)
    wave[200_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "integers.wav", noise(16_000) * 30_000, 16_000, subtype="FLOAT")
    both = np.concatenate([noise(16_000), -noise(16_000)], axis=1)
    soundfile.write(tmp_path / "cancelled.wav", both, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "cut.flac", noise(16_000), 16_000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:200_000])
    (tmp_path / "text.wav").write_text("no sound")
    for name, cause in {
        "nan.wav": "nan samples.*from 12.50 s",
        "integers.wav": "integers as floats",
        "cancelled.wav": "they cancel out",
        "cut.flac": "shortened",
        "text.wav": "unreadable",
        "gone.wav": "no such file",
    }.items():
        with pytest.raises(AudioError, match=cause):
            Stream(name, partial(wave_blocks, AudioRef(str(tmp_path / name))), 80)
