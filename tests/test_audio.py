"""Files of every rate, layout and state of repair -> 16 kHz mono waves, or a named cause."""

from __future__ import annotations

import io
import os
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from peft_whisper.data.audio import AudioError, AudioRef, load_wave, rms
from peft_whisper.data.mel import SAMPLE_RATE

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "rf64": ("RF64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
LOSSY = ("ogg", "opus", "mp3")


def tone(hz: float, seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def speech_like(seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    """A tone that swells, with noise: nothing repeats, so that a shift would be seen."""
    swell = 0.5 + 0.4 * np.sin(2 * np.pi * 1.5 * np.arange(round(seconds * 16_000)) / 16_000)
    noise = np.random.default_rng(seed).standard_normal(len(swell))
    return tone(220, seconds, 16_000, 0.4) * swell + 0.02 * noise


def encoded(wave: np.ndarray, kind: str, rate: int = 16_000) -> bytes:
    container, subtype = FORMATS[kind]
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=container, subtype=subtype)
    return out.getvalue()


def stored(folder: Path, data: bytes, name: str) -> AudioRef:
    (folder / name).write_bytes(data)
    return AudioRef(path=str(folder / name))


def cause(ref: AudioRef, **options) -> tuple[str, str]:
    with pytest.raises(AudioError) as caught:
        load_wave(ref, **options)
    return caught.value.cause, caught.value.detail


def peak_hz(wave: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(np.argmax(spectrum) * SAMPLE_RATE / len(wave))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_a_tone_keeps_pitch_length_and_level(rate, tmp_path):
    ref = stored(tmp_path, encoded(tone(1000, 2.0, rate), "float.wav", rate), "a.wav")
    wave = load_wave(ref)
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert abs(len(wave) - 2 * SAMPLE_RATE) <= 1
    assert peak_hz(wave) == pytest.approx(1000, abs=1)
    middle = slice(4_000, 28_000)  # a filter rings where a tone begins and ends
    expected = tone(1000, 2.0, SAMPLE_RATE)[middle]
    error_db = 20 * np.log10(rms(wave[middle] - expected) / rms(expected))
    print(f"{rate} Hz: {error_db:.0f} dB from the exact tone")
    assert error_db < -60


def test_what_16_khz_cannot_hold_is_filtered_not_folded():
    wave = load_wave(AudioRef(data=encoded(tone(11_000, 1.0, 48_000), "float.wav", 48_000)))
    assert rms(wave[2_000:-2_000]) < 1e-4  # folded, it would be a tone at 5 kHz


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_from_a_file_and_from_bytes(kind, tmp_path):
    data, wave = encoded(speech_like(), kind), speech_like()
    read = load_wave(stored(tmp_path, data, f"a.{kind}"))
    assert np.array_equal(read, load_wave(AudioRef(data=data)))
    assert len(read) == len(wave)
    assert rms(read - wave) < (0.1 * rms(wave) if kind in LOSSY else 1e-4)


@pytest.mark.parametrize("name", ["a.mp3", "a.raw", "a", "a.txt"])
def test_the_name_of_a_file_does_not_matter(name, tmp_path):
    assert len(load_wave(stored(tmp_path, encoded(speech_like(), "wav"), name))) == 64_000


@pytest.mark.parametrize("kind", FORMATS)
def test_a_segment_is_the_same_samples_as_in_the_whole_file(kind):
    data = encoded(speech_like(), kind)
    whole = load_wave(AudioRef(data=data))
    middle = load_wave(AudioRef(data=data, start_s=1.2345, end_s=2.5))
    assert len(middle) == 40_000 - 19_752
    np.testing.assert_allclose(middle, whole[19_752:40_000], atol=1e-6)
    np.testing.assert_allclose(load_wave(AudioRef(data=data, start_s=3)), whole[48_000:], atol=1e-6)
    np.testing.assert_allclose(load_wave(AudioRef(data=data, end_s=0.5)), whole[:8_000], atol=1e-6)


def test_a_segment_beyond_the_end_is_refused_and_a_rounded_end_is_not():
    data = encoded(speech_like(4.0), "wav")
    assert len(load_wave(AudioRef(data=data, start_s=3.0, end_s=4.05))) == 16_000
    found, detail = cause(AudioRef(data=data, start_s=3.0, end_s=4.2))
    assert (found, detail) == ("shortened", "a segment to 4.20 s of a 4.00 s file")
    assert cause(AudioRef(data=data, start_s=5.0))[0] == "shortened"


# Channels


def test_channels_become_one_as_the_recipe_says():
    left, right = tone(440, 1.0, 16_000, 0.1), tone(700, 1.0, 16_000, 0.4)
    ref = AudioRef(data=encoded(np.stack([left, right], axis=1), "float.wav"))
    np.testing.assert_allclose(load_wave(ref, "mean"), (left + right) / 2, atol=1e-6)
    np.testing.assert_allclose(load_wave(ref, "first"), left, atol=1e-6)
    np.testing.assert_allclose(load_wave(ref, "loudest"), right, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("channel", ["mean", "first", "loudest"])
def test_a_wave_has_one_dimension_whatever_the_channels(channels, channel):
    waves = np.stack([speech_like(seed=seed) for seed in range(channels)], axis=1)
    assert load_wave(AudioRef(data=encoded(waves, "wav")), channel).shape == (64_000,)


def test_channels_that_cancel_out_are_named_with_the_way_out():
    wave = speech_like()
    ref = AudioRef(data=encoded(np.stack([wave, -wave], axis=1), "wav"))
    found, detail = cause(ref)
    assert found == "silent" and "cancel out" in detail and "data.channel to first" in detail
    assert rms(load_wave(ref, "first")) > 0.1


def test_one_dead_channel_is_no_cancellation():
    wave = speech_like()
    ref = AudioRef(data=encoded(np.stack([wave, np.zeros_like(wave)], axis=1), "wav"))
    np.testing.assert_allclose(load_wave(ref), wave / 2, atol=1e-4)


# Levels


def test_a_wave_beyond_full_scale_is_scaled_as_a_whole():
    loud = tone(440, 1.0, 16_000, 2.0)
    wave = load_wave(AudioRef(data=encoded(loud, "float.wav")))
    np.testing.assert_allclose(wave, loud / np.abs(loud).max(), atol=1e-6)


def test_integers_stored_as_floats_are_refused():
    found, detail = cause(AudioRef(data=encoded(speech_like() * 32767, "float.wav")))
    assert found == "unreadable" and "integers as floats" in detail


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17, 63_999])
def test_samples_that_are_no_numbers(bad, at):
    wave = speech_like()
    wave[at] = bad
    found, detail = cause(AudioRef(data=encoded(wave, "float.wav")))
    assert found == "nan samples" and detail == f"1 of 64,000, from {at / 16_000:.2f} s"


# Damage


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["float.wav", "rf64"])  # the others: tests/promises
def test_a_file_cut_anywhere_is_never_read_as_a_whole(kind, share, tmp_path):
    data = encoded(speech_like(), kind)
    ref = stored(tmp_path, data[: int(len(data) * share)], f"a.{kind}")
    found, detail = cause(ref)
    assert found == "shortened" or (share == 0.1 and found == "unreadable"), (found, detail)
    assert str(tmp_path) not in detail and "0x" not in detail


def test_the_share_that_a_wav_lacks_is_said():
    data = encoded(speech_like(), "wav")
    assert cause(AudioRef(data=data[: len(data) // 2]))[1].startswith("50% of the sound")


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_every_flipped_bit_of_an_ogg_file_is_found(kind):
    data = encoded(speech_like(1.0), kind)
    places = np.random.default_rng(1).integers(0, len(data) * 8, 100)
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        assert cause(AudioRef(data=bytes(flipped)))[0] in ("shortened", "unreadable")
    print(f"{len(places)}/{len(places)} flips found in {kind}")


def test_an_ogg_file_without_its_last_page_is_found():
    data = encoded(speech_like(), "opus")
    found, detail = cause(AudioRef(data=data[: data.rfind(b"OggS")]))
    assert found == "shortened" and "end mark" in detail


@pytest.mark.parametrize(
    "junk", [b"", b"just text, no sound\n" * 300, bytes(5_000), b"RIFF", b"ID3\x04", b"OggS"]
)
def test_what_is_no_sound_is_unreadable(junk, tmp_path):
    assert cause(stored(tmp_path, junk, "a.wav"))[0] in ("unreadable", "shortened")
    assert cause(AudioRef(data=junk))[0] in ("unreadable", "shortened")


def test_what_is_no_file_is_unreadable(tmp_path):
    assert cause(AudioRef(path=str(tmp_path / "none.wav"))) == ("unreadable", "no such file")
    assert cause(AudioRef(path=str(tmp_path))) == ("unreadable", "it is no file")
    os.mkfifo(tmp_path / "pipe.wav")  # opened, it would wait for ever
    assert cause(AudioRef(path=str(tmp_path / "pipe.wav"))) == ("unreadable", "it is no file")
    assert cause(AudioRef(path=str(tmp_path / ("x" * 5_000))))[0] == "unreadable"


def test_other_formats_are_refused_because_their_length_is_not_checked():
    out = io.BytesIO()
    soundfile.write(out, speech_like(), 16_000, format="AIFF")
    found, detail = cause(AudioRef(data=out.getvalue()))
    assert found == "unreadable" and detail.startswith("AIFF is not one of WAV, FLAC, OGG, MP3")


def test_a_header_with_an_impossible_rate_is_refused():
    data = bytearray(encoded(speech_like(), "wav"))
    data[24:28] = struct.pack("<I", 10)
    assert cause(AudioRef(data=bytes(data))) == ("unreadable", "a sampling rate of 10 Hz")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_written_into_a_pipe_promises_no_length_and_is_read(size):
    data = encoded(speech_like(), "wav")
    at = data.index(b"data") + 4
    piped = data[:4] + struct.pack("<I", size) + data[8:at] + struct.pack("<I", size)
    assert len(load_wave(AudioRef(data=piped + data[at + 4 :]))) == 64_000


def test_chunks_before_the_sound_and_bytes_behind_it_do_no_harm():
    data = encoded(speech_like(), "wav")
    note = b"note" + struct.pack("<I", 5) + b"hello\0"  # odd size: one byte of padding
    assert len(load_wave(AudioRef(data=data[:12] + note + data[12:] + b"tail" * 30))) == 64_000


# Length


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_30_s_pass_and_one_sample_more_does_not(rate):
    exact = encoded(tone(440, 30.0, rate), "wav", rate)
    assert len(load_wave(AudioRef(data=exact), max_s=30.0)) == 480_000
    longer = encoded(tone(440, 30.0 + 1 / rate, rate), "wav", rate)
    assert cause(AudioRef(data=longer), max_s=30.0)[0] == "too long"
    assert len(load_wave(AudioRef(data=longer))) >= 480_000


def test_an_hour_is_refused_before_it_is_decoded(tmp_path):
    path, frames = tmp_path / "hour.wav", 3600 * 16_000
    head = encoded(np.zeros(1), "wav")[:44]
    head = head[:4] + struct.pack("<I", 36 + 2 * frames) + head[8:40]
    path.write_bytes(head + struct.pack("<I", 2 * frames))
    os.truncate(path, 44 + 2 * frames)  # a hole in the file: no disk is used
    tracemalloc.start()
    try:
        assert cause(AudioRef(path=str(path)), max_s=30.0) == (
            "too long",
            "3600.00 s; at most 30 s",
        )
        wave = load_wave(AudioRef(path=str(path), start_s=1800.0, end_s=1810.0), max_s=30.0)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{most / 1e6:.1f} MB")
    assert len(wave) == 160_000 and most < 20e6


def test_decoding_is_the_same_every_time():
    data = encoded(tone(440, 1.0, 44_100), "mp3", 44_100)
    first = load_wave(AudioRef(data=data))
    assert all(np.array_equal(first, load_wave(AudioRef(data=data))) for _ in range(5))


def test_the_error_says_cause_and_detail():
    assert re.fullmatch("silent: nothing", str(AudioError("silent", "nothing")))
