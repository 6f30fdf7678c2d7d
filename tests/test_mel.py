"""The front end against transformers' own feature extractor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from peft_whisper.data.mel import SAMPLES_PER_POSITION, log_mel
from peft_whisper.positions import FULL_POSITIONS


def speechlike(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time = np.arange(int(16_000 * seconds)) / 16_000
    tone = np.sin(2 * np.pi * (150 + 40 * np.sin(3 * time)) * time)
    return (0.3 * tone + 0.02 * rng.standard_normal(time.size)).astype(np.float32)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_equals_the_stock_extractor_at_30_s(n_mels: int) -> None:
    waves = [speechlike(1.7, 1), speechlike(12.3, 2)]
    stock = WhisperFeatureExtractor(feature_size=n_mels)
    theirs = stock(waves, sampling_rate=16_000, return_tensors="pt").input_features
    padded = torch.zeros(2, FULL_POSITIONS * SAMPLES_PER_POSITION)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    ours = log_mel(padded, n_mels)
    assert ours.shape == (2, n_mels, 3000)
    worst = float((ours - theirs).abs().max())
    print(f"log-mel, {n_mels} bands: largest difference to transformers {worst:.1e}")
    assert worst < 1e-4


def test_padding_is_silence_not_zero() -> None:
    wave = torch.zeros(1, 100 * SAMPLES_PER_POSITION)
    wave[0, :16_000] = torch.from_numpy(speechlike(1.0, 3))
    mel = log_mel(wave, 80)
    floor = mel[0, :, 150:]  # long after the speech
    assert float(floor.max()) == float(floor.min()) < 0
    assert float(mel.max() - mel.min()) == pytest.approx(2.0, abs=1e-5)  # 80 dB in this scale


def test_a_batch_does_not_mix_its_clips() -> None:
    quiet, loud = torch.from_numpy(speechlike(2.0, 4)) * 0.01, torch.from_numpy(speechlike(2.0, 5))
    together = log_mel(torch.stack([quiet, loud]), 80)
    alone = log_mel(quiet[None], 80)
    assert torch.allclose(together[:1], alone, atol=1e-6)
