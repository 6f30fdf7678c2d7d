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
FULL_POSITIONS = 1500  # 30 s


@cache
def _filters(n_mels: int) -> torch.Tensor:
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
    import torch

    window = torch.hann_window(N_FFT, device=waves.device)
    stft = torch.stft(waves, N_FFT, HOP, window=window, return_complex=True)
    power = stft[..., :-1].abs().square()
    mel = _filters(n_mels).to(waves.device) @ power
    log = mel.clamp(min=1e-10).log10()
    log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
    return (log + 4.0) / 4.0
