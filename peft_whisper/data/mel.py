"""Waveform -> log-mel spectrogram, the front end of openai/whisper (whisper/audio.py)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # 25 ms
HOP = 160  # 10 ms: 100 frames a second
FRAMES_PER_POSITION = 2  # the encoder's second convolution has stride 2
SAMPLES_PER_POSITION = HOP * FRAMES_PER_POSITION  # 320 samples, 20 ms
QUIETEST = 1e-10  # power; what is below counts as this


@cache
def filters(n_mels: int) -> torch.Tensor:
    """Weights of each mel band, float32 (n_mels, 201 bins of the spectrum)."""
    import torch
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=1 + N_FFT // 2,
        num_mel_filters=n_mels,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(bank.T.copy()).float()


def log_mel(waves: torch.Tensor, n_mels: int) -> torch.Tensor:
    """Log-mel spectrogram of zero-padded waves.

    Args:
        waves: float32 (batch, samples), 16 kHz, samples a multiple of 160. Padding belongs here,
            in the wave: silence is not 0.0 in a log-mel spectrogram.
        n_mels: 80, or 128 for large-v3.

    Returns:
        float32 (batch, n_mels, samples / 160), floored 8 (80 dB) below each clip's maximum and
        scaled to about [-1, 1]. Equal to transformers' WhisperFeatureExtractor.
    """
    log = log_power(waves, n_mels)
    return scaled(log, log.amax(dim=(1, 2), keepdim=True))


def log_power(waves: torch.Tensor, n_mels: int) -> torch.Tensor:
    """log10 of the power in each band, at least -10: `log_mel` before it is floored and scaled."""
    import torch

    window = torch.hann_window(N_FFT, device=waves.device)
    stft = torch.stft(waves, N_FFT, HOP, window=window, return_complex=True)
    power = stft[..., :-1].abs().square()
    mel = filters(n_mels).to(waves.device) @ power
    return mel.clamp(min=QUIETEST).log10()


def scaled(log: torch.Tensor, loudest: torch.Tensor | float) -> torch.Tensor:
    """What Whisper is given of a `log_power`, whose clip or recording reaches `loudest`."""
    return (log.clamp(min=loudest - 8.0) + 4.0) / 4.0
