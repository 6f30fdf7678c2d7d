"""A throat-microphone channel: what close-talk speech would sound like from the skin of the neck.

Not a low-pass: above the knee at 500 Hz a throat signal still has energy, but hardly any of the
vocal tract's shape in it. So two paths are mixed by the measured coherence of both microphones:
what the vocal tract shaped, filtered; and the voice source alone, its formants taken out.

The curves were measured on 14 public pairs of throat accelerometer and mouth microphone of the
TAPS data set (CC BY 4.0). Speech that passed through here is called simulated.
"""

from __future__ import annotations

import numpy as np
from scipy import signal

RATE = 16_000  # Hz
TAPS = 1025  # of the linear-phase filters: 64 ms, 16 Hz resolution
ORDER = 18  # of linear prediction: formants up to 8 kHz and the tilt
FRAME, HOP = 480, 120  # samples: 30 ms frames every 7.5 ms
UNVOICED_DB = -8.0  # fricatives make no vibration of the neck
SILENT = 1e-6  # highest level (-120 dB of full scale) that holds nothing to hear
FLOOR_HZ = 3_900  # the sensor's own noise ends here, its sampling rate being 8 kHz

# Throat / mouth transfer H in voiced speech (dB, 0 at 300-500 Hz), magnitude-squared coherence of
# both, and the throat's own voiced spectrum S (dB below its maximum).
CURVES = np.array(
    [  # Hz, H, coherence, S
        (0, -60.0, 0.30, -60.0),
        (40, -20.0, 0.30, -40.0),
        (60, -6.6, 0.30, -20.0),
        (80, -4.3, 0.31, -13.0),
        (125, -3.4, 0.50, -1.0),
        (175, -2.6, 0.70, 0.0),
        (250, -0.3, 0.74, -0.5),
        (350, 0.4, 0.71, -3.5),
        (450, -0.4, 0.61, -4.2),
        (565, -5.9, 0.59, -7.6),
        (715, -11.7, 0.40, -15.8),
        (900, -12.0, 0.25, -22.0),
        (1125, -19.4, 0.22, -28.4),
        (1425, -18.0, 0.20, -29.6),
        (1800, -17.4, 0.15, -34.9),
        (2250, -16.1, 0.05, -36.3),
        (2750, -18.1, 0.04, -40.2),
        (3250, -16.3, 0.02, -40.4),
        (3700, -17.7, 0.01, -42.0),
        (4000, -25.0, 0.01, -50.0),
        (4300, -60.0, 0.01, -90.0),
        (8000, -60.0, 0.01, -90.0),
    ]
)
HZ, TRANSFER_DB, COHERENCE, SPECTRUM_DB = CURVES.T


def throat(wave: np.ndarray, seed: int, coherence: float = 1.0, snr_db: float = 30.0) -> np.ndarray:
    """Pass close-talk speech through the channel.

    Args:
        wave: float (samples,), 16 kHz, at least one frame of 30 ms.
        seed: of the sensor's noise; the same wave and seed give the same result.
        coherence: factor on the measured coherence; lower is harder (real recordings are as hard
            for Whisper as 0.5).
        snr_db: level of the speech over the sensor's noise.

    Returns:
        float32 (samples,), peak 0.5; silence stays silence, there being no speech to scale by.
    """
    speech = np.asarray(wave, np.float64) - np.mean(wave)
    if np.abs(speech).max() < SILENT:
        return np.zeros(len(speech), np.float32)
    share = np.clip(COHERENCE * coherence, 1e-4, 0.999)
    shaped = _filtered(speech, TRANSFER_DB + 10 * np.log10(share))
    source = _residual(speech) * _voicing(speech)
    source = _filtered(source, SPECTRUM_DB + 10 * np.log10(1 - share))
    mixed = (shaped + source * _balance(shaped, source, share)) * _unvoiced_gain(speech)
    noise = np.random.default_rng(seed).standard_normal(len(mixed))
    noise = signal.sosfilt(signal.butter(8, FLOOR_HZ, fs=RATE, output="sos"), noise)
    mixed += noise * mixed.std() / noise.std() * 10 ** (-snr_db / 20)
    return (0.5 * mixed / np.abs(mixed).max()).astype(np.float32)


def _filtered(wave: np.ndarray, gain_db: np.ndarray) -> np.ndarray:
    """Filter by gains (dB) at the curves' frequencies, without delay."""
    taps = signal.firwin2(TAPS, HZ, 10 ** (gain_db / 20), fs=RATE, window="hann")
    return signal.fftconvolve(wave, taps, "same")


def _residual(wave: np.ndarray) -> np.ndarray:
    """What linear prediction leaves: the voice source at an even level, formants gone."""
    padded = np.pad(wave, (ORDER, FRAME))
    starts = range(0, len(wave), HOP)
    frames = np.stack([padded[at : at + ORDER + FRAME] for at in starts])
    window = signal.windows.hann(FRAME)
    body = frames[:, ORDER:]
    power = np.abs(np.fft.rfft(body * window, 2 * FRAME)) ** 2
    predictors = _levinson(np.fft.irfft(power)[:, : ORDER + 1])
    errors = sum(
        predictors[:, lag, None] * frames[:, ORDER - lag : ORDER - lag + FRAME]
        for lag in range(ORDER + 1)
    )
    errors /= errors.std(axis=1, keepdims=True) + 1e-9
    out = np.zeros(len(wave) + FRAME + HOP)
    for at, error in zip(starts, errors * window, strict=True):
        out[at : at + FRAME] += error
    return out[: len(wave)]


def _levinson(autocorrelation: np.ndarray) -> np.ndarray:
    """Levinson-Durbin for many frames at once: (frames, order + 1) -> predictors, first one 1."""
    r = autocorrelation.copy()
    r[:, 0] = r[:, 0] * 1.0001 + 1e-9  # white-noise correction keeps silence solvable
    a = np.zeros_like(r)
    a[:, 0], error = 1.0, r[:, 0].copy()
    for lag in range(1, r.shape[1]):
        reflection = -np.einsum("fk,fk->f", a[:, :lag], r[:, lag:0:-1]) / error
        a[:, : lag + 1] += reflection[:, None] * a[:, lag::-1]
        error *= 1 - reflection**2
    return a


def _voicing(wave: np.ndarray) -> np.ndarray:
    """Envelope of the 100-500 Hz band, where the neck vibrates with the voice."""
    band = signal.sosfiltfilt(signal.butter(2, [100, 500], "band", fs=RATE, output="sos"), wave)
    smooth = signal.butter(2, 25, fs=RATE, output="sos")
    return np.sqrt(np.maximum(signal.sosfiltfilt(smooth, band**2), 1e-12))


def _balance(shaped: np.ndarray, source: np.ndarray, share: np.ndarray) -> float:
    """Factor that gives the source path its power share 1 - coherence at 300 Hz."""
    band = signal.butter(3, [150, 500], "band", fs=RATE, output="sos")
    at_300_hz = np.interp(300, HZ, share)
    ratio = signal.sosfilt(band, shaped).var() / (signal.sosfilt(band, source).var() + 1e-20)
    return float(np.sqrt(ratio * (1 - at_300_hz) / at_300_hz))


def _unvoiced_gain(wave: np.ndarray) -> np.ndarray:
    """UNVOICED_DB where there is more power above 3 kHz than below 1 kHz, else 1."""
    hz, seconds, bins = signal.stft(wave, RATE, nperseg=min(512, len(wave)), noverlap=384)
    power = np.abs(bins) ** 2
    high, low = power[hz > 3_000].sum(0), power[(hz > 80) & (hz < 1_000)].sum(0)
    gain = signal.medfilt(np.where(high > low, 10 ** (UNVOICED_DB / 20), 1.0), 3)
    return np.interp(np.arange(len(wave)), seconds * RATE, gain)
