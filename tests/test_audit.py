"""Every row becomes a clip or a named reject, and nothing is lost between the two."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from peft_whisper.data.audio import AudioRef
from peft_whisper.data.audit import (
    CAUSES,
    Clip,
    audit,
    data_fingerprint,
    hours,
    sample_hash,
    write_rejected,
)
from peft_whisper.data.corpus import Row, read_rows
from peft_whisper.errors import DataError
from peft_whisper.files import write_jsonl
from peft_whisper.recipe_speech import Source

REPOSITORY = Path(__file__).resolve().parent.parent
RATE = 16_000


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


def encoded(wave: np.ndarray, container: str = "WAV", subtype: str = "PCM_16") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format=container, subtype=subtype)
    return out.getvalue()


def row(data: bytes, name: str = "a", text: str = "some words", **fields) -> Row:
    filled = {"language": None, "speaker": None, "duration_s": None, "where": f"rows.jsonl:{name}"}
    return Row(id=name, audio=AudioRef(data=data), text=text, **(filled | fields))


def count(text: str, language: str | None) -> int:
    return len(text) // 3 + 5


def verdict(checked: Row, channel: str = "mean") -> tuple[str, str]:
    found = audit([checked], count, channel)
    if found.clips:
        return "kept", ""
    (rejected,) = found.rejected
    assert rejected.cause in CAUSES
    assert (rejected.id, rejected.where) == (checked.id, checked.where)
    return rejected.cause, rejected.detail


def test_a_good_clip_carries_what_the_rest_needs():
    wave = noise(1.5)
    (clip,) = audit([row(encoded(wave), language="no", speaker="kari")], count).clips
    assert (clip.id, clip.text, clip.language, clip.speaker) == ("a", "some words", "no", "kari")
    assert (clip.duration_s, clip.tokens) == (1.5, 8)
    assert len(clip.sha256) == 64


with_nan = noise(1.0)
with_nan[5_000:5_010] = np.nan
loud = noise(1.0)

BAD = {
    "unreadable": [row(b"no sound"), row(b""), row(encoded(loud)[:20])],
    "shortened": [
        row(encoded(loud)[:16_000]),
        row(encoded(loud, "FLAC")[:9_000]),
        row(encoded(loud, "OGG", "VORBIS")[:5_000]),
        row(encoded(loud, "MP3", "MPEG_LAYER_III")[:3_000]),
        row(encoded(loud), duration_s=1.2),
    ],
    "empty": [row(encoded(noise(n / RATE))) for n in (0, 1, 159, 160, 799)],
    "silent": [
        row(encoded(np.zeros(RATE))),
        row(encoded(noise(1.0, 10 ** (-90 / 20)))),
        row(encoded(np.stack([loud, -loud], axis=1))),
    ],
    "too long": [row(encoded(noise(s))) for s in (30 + 1 / RATE, 30.01, 45.0)],
    "too many tokens": [row(encoded(loud), text="x" * 3 * (449 - 5))],
    "empty transcript": [row(encoded(loud), text=text) for text in ("", " ", "\t\n\u3000")],
    "nan samples": [row(encoded(with_nan, "WAV", "FLOAT"))],
    "duration differs": [row(encoded(loud), duration_s=0.8)],
    "checksum differs": [row(encoded(loud), file_sha256="0123456789ab" + 52 * "c")],
}


def test_there_is_a_bad_clip_for_every_cause():
    assert set(BAD) == set(CAUSES)


@pytest.mark.parametrize(
    ("expected", "checked"), [(cause, bad) for cause, listed in BAD.items() for bad in listed]
)
def test_each_kind_of_bad_clip_is_named(expected, checked):
    assert verdict(checked)[0] == expected


@pytest.mark.parametrize(
    "checked",
    [
        row(encoded(noise(0.05))),
        row(encoded(noise(29.99))),
        row(encoded(noise(30.0))),
        row(encoded(loud), text="x" * 3 * (448 - 5)),
        row(encoded(loud), text="..."),
        row(encoded(loud), duration_s=1.09),
        row(encoded(loud), duration_s=0.91),
        row(encoded(loud), file_sha256=hashlib.sha256(encoded(loud)).hexdigest()),
        row(encoded(noise(1.0, 10 ** (-70 / 20)))),
    ],
)
def test_clips_just_inside_the_limits_are_kept(checked):
    assert verdict(checked) == ("kept", "")


def test_details_say_what_was_found_and_expected():
    assert verdict(BAD["too many tokens"][0])[1] == "449 with the prefix; at most 448"
    assert verdict(row(encoded(noise(45.0))))[1] == "45.00 s; at most 30 s"
    assert verdict(BAD["duration differs"][0])[1] == "0.80 s declared, 1.00 s decoded"
    found = hashlib.sha256(encoded(loud)).hexdigest()[:12]
    said = f"SHA-256 0123456789ab... declared, {found}... found"
    assert verdict(BAD["checksum differs"][0])[1] == said
    assert "data.channel to first" in verdict(BAD["silent"][2])[1]
    assert verdict(BAD["silent"][2], "first") == ("kept", "")


def test_the_sum_of_a_segment_is_that_of_its_file(tmp_path):
    (tmp_path / "long.wav").write_bytes(encoded(noise(60.0)))
    digest = hashlib.sha256((tmp_path / "long.wav").read_bytes()).hexdigest()
    rows = [
        {"audio": "long.wav", "text": "t", "start": at, "end": at + 2, "sha256": digest}
        for at in range(0, 60, 2)
    ]
    rows[7]["sha256"] = "0" * 64
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = audit(read_rows(Source(manifest=str(tmp_path / "rows.jsonl"))), count)
    assert len(found.clips) == 29
    assert [(one.where, one.cause) for one in found.rejected] == [
        ("rows.jsonl:8", "checksum differs")
    ]


def test_sums_that_are_made_as_the_docs_say_fit(tmp_path):
    docs = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    command = docs.partition("## Damaged sound")[2].partition("```sh\n")[2].partition("```")[0]
    assert command.startswith("python ") and command.rstrip().endswith(" train.jsonl")
    names = ("clips/a.wav", "clips/b.wav", "clips/Straße.wav")
    (tmp_path / "clips").mkdir()
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(noise(1.0, seed=number)))
    write_jsonl(tmp_path / "train.jsonl", [{"audio": name, "text": name} for name in names])
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    (tmp_path / "clips" / "b.wav").write_bytes(encoded(noise(1.0, seed=9)))
    source = {"manifest": str(tmp_path / "train.sums.jsonl"), "columns": {"sha256": "sha256"}}
    found = audit(read_rows(Source.model_validate(source)), count)
    assert [one.text for one in found.clips] == [names[0], names[2]]
    assert [one.cause for one in found.rejected] == ["checksum differs"]


def test_kept_and_rejected_are_all_that_was_listed_in_their_order():
    rows = []
    for number in range(60):
        data = encoded(noise(0.1 + number % 7 / 10, seed=number))
        rows.append(row(data[:1_000] if number % 5 == 0 else data, f"clip{number:02d}"))
    found = audit(rows, count)
    assert [r.id for r in found.rejected] == [f"clip{n:02d}" for n in range(0, 60, 5)]
    assert [c.id for c in found.clips] == [r.id for r in rows if int(r.id[4:]) % 5]
    for clip in found.clips:
        assert clip.duration_s == pytest.approx(0.1 + int(clip.id[4:]) % 7 / 10, abs=1e-4)


def test_rows_are_read_only_a_little_ahead_of_what_is_decoded():
    """A million rows must not be queued at once: when the last is asked for, most are done."""
    decoded, ahead = [], []

    class Cell:
        def __getitem__(self, number: int) -> bytes:
            decoded.append(number)
            return data

    def rows():
        for number in range(200):
            ahead.append(number - len(decoded))
            ref = AudioRef(cells=Cell(), row=number)
            yield Row(f"{number}", ref, "words", None, None, None, "here")

    data = encoded(loud)
    assert len(audit(rows(), count).clips) == 200
    assert sorted(decoded) == list(range(200))  # each once
    assert max(ahead) < 50


def test_a_row_whose_tokens_cannot_be_counted_stops_with_its_name():
    def no_language(text: str, language: str | None) -> int:
        raise ValueError("a multilingual model needs a language: set data.language")

    before = threading.active_count()
    with pytest.raises(DataError, match=r"rows.jsonl:a \(a\): .*set data.language"):
        audit([row(encoded(loud))], no_language)
    assert threading.active_count() == before


def test_progress_counts_clips_and_rejects():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    rows = [row(encoded(loud)), row(b"", "b")]
    audit(rows, count, console=console, title="audit of train", most=2)
    said = console.file.getvalue()
    assert "audit of train" in said and "2/2" in said and "1 rejected" in said


def test_an_audited_clip_takes_little_memory(tmp_path):
    """100,000 of them, and what was needed to check them, in about 100 MB."""
    soundfile.write(tmp_path / "a.wav", noise(0.06), RATE)

    def peak(clips: int) -> int:
        lines = (f'{{"audio": "a.wav", "text": "words of clip {n}"}}\n' for n in range(clips))
        (tmp_path / "train.jsonl").write_text("".join(lines))
        tracemalloc.start()
        rows = read_rows(Source(manifest=str(tmp_path / "train.jsonl")))
        assert len(audit(rows, count, most=rows.most).clips) == clips
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # what is imported and cached on the way counts once
    each = (peak(3_000) - peak(1_000)) / 2_000
    print(f"{each:.0f} bytes a clip at the peak")
    assert 200 < each < 1_200


# Hashes


def test_the_hash_of_samples_is_that_of_the_sound_not_of_its_file():
    wave = np.round(noise(1.0) * 32768).astype(np.int16)
    hashes = [
        audit([row(encoded(wave, *kind))], count).clips[0].sha256
        for kind in [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("RF64", "PCM_16")]
    ]
    assert len(set(hashes)) == 1
    other = wave.copy()
    other[8_000] += 1
    assert audit([row(encoded(other))], count).clips[0].sha256 != hashes[0]


def test_the_hash_is_of_little_endian_16_bit_samples():
    wave = np.array([0.0, 1.0, -1.0, 0.5], np.float32)
    expected = np.array([0, 32767, -32768, 16384], "<i2").tobytes()
    assert sample_hash(wave) == hashlib.sha256(expected).hexdigest()
    assert sample_hash(wave + np.float32(1e-7)) == sample_hash(wave)


def clip(name: str = "a", sha256: str = "00", text: str = "t", language: str | None = "en") -> Clip:
    return Clip(name, AudioRef(data=b""), text, language, None, 1800.0, 5, sha256)


def test_the_fingerprint_moves_with_ids_sounds_texts_languages_and_order():
    base = (clip(), clip("b"))
    changed = [
        (clip("c"), clip("b")),
        (clip(sha256="01"), clip("b")),
        (clip(text="T"), clip("b")),
        (clip(language=None), clip("b")),
        (clip("b"), clip()),
        (clip(),),
        (clip("a0", "0"), clip("b")),  # the same letters, cut elsewhere
    ]
    prints = [data_fingerprint(clips) for clips in (base, *changed)]
    assert len(set(prints)) == len(prints)
    assert data_fingerprint((clip(), clip("b"))) == prints[0]


def test_hours():
    assert hours([clip(), clip("b"), clip("c")]) == 1.5


def test_rejected_rows_are_written_with_their_split(tmp_path):
    found = audit([row(b"", text="Straße 🎧")], count)
    write_rejected(tmp_path / "run" / "rejected.jsonl", {"train": found.rejected, "test": ()})
    (line,) = (tmp_path / "run" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == {
        "split": "train",
        "id": "a",
        "where": "rows.jsonl:a",
        "cause": "unreadable",
        "detail": "the sound has 0 bytes",
    }


def test_no_reject_is_an_empty_file_not_a_missing_one(tmp_path):
    write_rejected(tmp_path / "rejected.jsonl", {"train": ()})
    assert (tmp_path / "rejected.jsonl").read_bytes() == b""
