"""The simulated throat microphone has the measured one's spectrum, and is as hard as it is told."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import signal

from peft_whisper.data.throat import HZ, RATE, SPECTRUM_DB, TRANSFER_DB, throat


def white(seconds: float, seed: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))


@pytest.fixture(scope="module")
def clean(demo: Path) -> list[np.ndarray]:
    """Real prompts of one to four seconds, float64."""
    paths = sorted((demo / "speech" / "clean").glob("*.flac"))
    chosen = [path for path in paths if 1 < soundfile.info(path).duration < 4][::40]
    assert len(chosen) > 5
    return [soundfile.read(path)[0] for path in chosen]


def spectrum_db(waves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(Hz, dB) of the mean power of all waves, each at the same level."""
    power = []
    for wave in waves:
        hz, one = signal.welch(wave / wave.std(), RATE, nperseg=1024)
        power.append(one)
    return hz, 10 * np.log10(np.mean(power, axis=0) + 1e-30)


def band(spectrum: tuple[np.ndarray, np.ndarray], low: float, high: float) -> float:
    """Mean level of a band, in dB over that of 150-500 Hz."""
    hz, level = spectrum
    power = 10 ** (level / 10)
    inside = power[(hz >= low) & (hz < high)].mean()
    return float(10 * np.log10(inside / power[(hz >= 150) & (hz < 500)].mean()))


def test_the_same_seed_gives_the_same_samples():
    wave = white(0.5)
    np.testing.assert_array_equal(throat(wave, 1), throat(wave, 1))
    assert np.abs(throat(wave, 1) - throat(wave, 2)).max() > 0


def test_another_seed_changes_the_sensors_noise_alone(clean):
    for snr_db in (20.0, 30.0, 40.0):
        one, other = (throat(clean[0], seed, snr_db=snr_db).astype(float) for seed in (1, 2))
        quotient = other @ one / (one @ one)  # both are scaled to a peak of 0.5
        difference = other - quotient * one
        level_db = 10 * np.log10(difference.var() / one.var())
        assert level_db == pytest.approx(3 - snr_db, abs=1)  # two independent noises
        hz, power = signal.welch(difference, RATE, nperseg=512)
        assert power[hz > 5_000].mean() < 1e-3 * power[(hz > 500) & (hz < 3_500)].mean()


def test_the_result_is_float32_of_peak_a_half_and_of_the_same_length(clean):
    for wave in [*clean[:3], white(0.03), white(1.0).astype(np.float32), 1e-3 * white(0.7)]:
        kept = wave.copy()
        made = throat(wave, 1)
        assert made.dtype == np.float32
        assert made.shape == wave.shape
        assert np.abs(made).max() == pytest.approx(0.5)
        np.testing.assert_array_equal(wave, kept)


def test_nothing_is_left_above_4_khz(clean):
    before, after = spectrum_db(clean), spectrum_db([throat(wave, 1) for wave in clean])
    high = band(before, 4_300, 8_000), band(after, 4_300, 8_000)
    print(f"4.3-8 kHz: {high[0]:.0f} dB before, {high[1]:.0f} dB after, over 150-500 Hz")
    assert high[0] > -40
    assert high[1] < -55


def test_the_level_falls_behind_a_knee_at_500_hz(clean):
    before, after = spectrum_db(clean), spectrum_db([throat(wave, 1) for wave in clean])
    lost = {
        centre: band(before, low, high) - band(after, low, high)
        for centre, low, high in [
            (300, 200, 400),
            (450, 400, 500),
            (715, 640, 800),
            (900, 800, 1e3),
        ]
    }
    print("dB lost at Hz:", {hz: round(db, 1) for hz, db in lost.items()})
    assert abs(lost[300]) < 3
    assert lost[715] > lost[450] + 5
    assert lost[900] > 8


def test_the_spectrum_is_the_throats_own(clean):
    """Long-term level of the noise-free channel by band, against the measured voiced spectrum."""
    after = spectrum_db([throat(wave, 1, snr_db=90) for wave in clean])
    edges = [(250, 450), (500, 640), (640, 800), (800, 1_000), (1_000, 1_300), (1_300, 1_600)]
    edges += [(1_600, 2_000), (2_000, 2_500), (2_500, 3_000), (3_000, 3_500)]
    found = np.array([band(after, *edge) for edge in edges])
    expected = np.array([np.interp(np.mean(edge), HZ, SPECTRUM_DB) for edge in edges])
    apart = found - expected - np.mean(found - expected)  # a level of its own is no matter
    print(
        f"spectrum from 250 to 3500 Hz: at most {np.abs(apart).max():.1f} dB off the measured one"
    )
    assert np.abs(apart).max() < 5  # as speakers differ


def test_with_full_coherence_the_channel_is_the_measured_transfer(clean):
    made = [throat(wave, 1, coherence=1e6, snr_db=90) for wave in clean]
    before, after = np.concatenate(clean), np.concatenate(made)
    hz, cross = signal.csd(before, after, RATE, nperseg=1024)
    _, power = signal.welch(before, RATE, nperseg=1024)
    centres = [175, 250, 350, 450, 715, 1_125, 1_800, 2_750]
    found = np.interp(centres, hz, 20 * np.log10(np.abs(cross) / power))
    apart = found - np.interp(centres, HZ, TRANSFER_DB)
    apart -= apart[1:4].mean()
    print(f"transfer from 175 to 2750 Hz: at most {np.abs(apart).max():.1f} dB off the curve")
    assert np.abs(apart).max() < 3


def test_fricatives_lose_eight_decibels_more():
    """The same low noise twice, the second time under a hiss that outweighs it."""
    rng = np.random.default_rng(1)
    below = signal.butter(4, [150, 900], "band", fs=RATE, output="sos")
    above = signal.butter(4, 4_000, "high", fs=RATE, output="sos")
    low = signal.sosfilt(below, rng.standard_normal(RATE))
    high = signal.sosfilt(above, rng.standard_normal(RATE))
    low, high = low / low.std(), high / high.std()
    made = throat(np.concatenate([low + 0.4 * high, low + 2.5 * high]), 1, snr_db=90)
    kept = signal.sosfilt(below, made)
    lost = 20 * np.log10(kept[RATE + 2_000 :].std() / kept[2_000 : RATE - 2_000].std())
    print(f"unvoiced frames: {lost:.1f} dB")
    assert lost == pytest.approx(-8, abs=1)


def likeness(clean: list[np.ndarray], factor: float) -> float:
    """Mean squared coherence of what goes in and what comes out, from 200 to 900 Hz."""
    made = np.concatenate([throat(wave, 1, factor) for wave in clean])
    hz, coherence = signal.coherence(np.concatenate(clean), made, RATE, nperseg=512)
    return float(coherence[(hz > 200) & (hz < 900)].mean())


def test_lower_coherence_leaves_less_of_the_speech(clean):
    found = {factor: likeness(clean, factor) for factor in (1.3, 1.0, 0.5, 0.25, 0.0)}
    print("coherence with the mouth, 200-900 Hz:", {f: round(v, 2) for f, v in found.items()})
    values = list(found.values())
    assert values == sorted(values, reverse=True)
    assert found[1.0] > found[0.5] + 0.1
    assert found[0.5] > found[0.0] + 0.03


def test_the_floor_is_as_far_below_the_speech_as_it_is_told(clean):
    for snr_db in (10.0, 30.0):
        pause = np.zeros(RATE)
        made = throat(np.concatenate([clean[0], pause]), 1, snr_db=snr_db)
        floor, whole = made[-RATE // 2 :].astype(float), made.astype(float)
        assert 10 * np.log10(whole.var() / floor.var()) == pytest.approx(snr_db, abs=1.5)


def test_a_clip_of_one_frame_is_heard_without_a_warning():
    tone = np.sin(2 * np.pi * 150 * np.arange(480) / RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wave in (white(0.03), tone, tone[:480].astype(np.float32)):
            made = throat(wave, 1)
            assert np.isfinite(made).all()
            assert np.abs(made).max() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wave",
    [np.zeros(480), np.zeros(16_000, np.float32), np.full(1_000, 0.1, np.float32), -np.ones(999)],
    ids=["short", "long", "offset", "full scale"],
)
def test_silence_stays_silence(wave):
    """There is no speech to set the sensor's noise by, and noise alone is not to be blown up."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = throat(wave, 1)
    np.testing.assert_array_equal(made, np.zeros(len(wave), np.float32))
    assert made.dtype == np.float32


def test_silence_around_speech_stays_finite(clean):
    made = throat(np.concatenate([np.zeros(RATE), clean[0], np.zeros(RATE)]), 1)
    assert np.isfinite(made).all()
    assert np.abs(made[: RATE // 2]).max() < 0.1
