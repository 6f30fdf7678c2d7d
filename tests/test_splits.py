"""Splits: cut by transcript, leaks named, rejects counted, and nothing decided in silence."""

from __future__ import annotations

import hashlib
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from peft_whisper.data.audio import AudioRef
from peft_whisper.data.audit import Clip, Rejected, data_fingerprint, write_rejected
from peft_whisper.data.splits import (
    Shared,
    Splits,
    open_splits,
    overlapping,
    place,
    refuse_leaks_and_rejects,
    transcript_key,
)
from peft_whisper.errors import DataError
from peft_whisper.recipe_speech import Data

CUT = {"validation": {"from_train": 0.2}, "test": {"from_train": 0.3}}


def count(text: str, language: str | None) -> int:
    return len(text) // 3 + 5


def speech(seed: int, seconds: float = 0.1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16_000))


def listed(folder: Path, name: str, rows: list[dict]) -> dict[str, str]:
    """Write a manifest; the source that reads it."""
    (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return {"manifest": name}


def clips(
    folder: Path, seeds: range, text: str = "sentence {}", prefix: str = "clip"
) -> list[dict]:
    """Write one file per seed; their rows."""
    for seed in seeds:
        soundfile.write(folder / f"{prefix}{seed}.wav", speech(seed), 16_000)
    return [{"audio": f"{prefix}{seed}.wav", "text": text.format(seed)} for seed in seeds]


def opened(folder: Path, **data) -> tuple[Splits, Data]:
    checked = Data.model_validate(data)
    return open_splits(checked, count, folder, quiet=True), checked


def refusal(folder: Path, **data) -> str:
    splits, checked = opened(folder, **data)
    with pytest.raises(DataError) as caught:
        refuse_leaks_and_rejects(splits, checked)
    return str(caught.value)


def ids(members: tuple[Clip, ...]) -> set[str]:
    return {clip.id for clip in members}


def three(folder: Path) -> dict[str, dict]:
    """Three sources with nothing in common."""
    names = ("train", "validation", "test")
    parts = [clips(folder, range(n * 10, n * 10 + 4)) for n in range(3)]
    return {
        name: listed(folder, f"{name}.jsonl", rows) for name, rows in zip(names, parts, strict=True)
    }


def test_three_sources_become_three_splits(tmp_path):
    splits, data = opened(tmp_path, **three(tmp_path))
    assert [len(members) for _, members in splits.items()] == [4, 4, 4]
    assert splits.rejected == {"train": (), "validation": (), "test": ()}
    assert (splits.shared_audio, splits.shared_transcripts, splits.notes()) == ((), (), [])
    refuse_leaks_and_rejects(splits, data)


def test_the_language_of_the_recipe_reaches_rows_that_name_none(tmp_path):
    sources = three(tmp_path)
    rows = clips(tmp_path, range(4))
    rows[0]["language"] = "nn"
    sources["train"] = listed(tmp_path, "own.jsonl", rows)
    splits, _ = opened(tmp_path, **sources, language="no")
    assert [clip.language for clip in splits.train] == ["nn", "no", "no", "no"]


# Cutting


def test_clips_of_one_transcript_stay_together(tmp_path):
    rows = clips(tmp_path, range(120))
    for number, row in enumerate(rows):
        row["text"] = ["It's {}!", "its {}", "ITS, {}."][number % 3].format(number // 3)
    splits, data = opened(tmp_path, train=listed(tmp_path, "m.jsonl", rows), **CUT)
    where = {clip.id: name for name, members in splits.items() for clip in members}
    assert len(where) == 120
    for number in range(0, 120, 3):
        assert len({where[f"clip{number + k}"] for k in range(3)}) == 1
    assert splits.shared_transcripts == () and list(splits.rejected) == ["train"]
    refuse_leaks_and_rejects(splits, data)


def test_the_cut_depends_on_the_transcripts_alone(tmp_path):
    rows = clips(tmp_path, range(60))
    before, _ = opened(tmp_path, train=listed(tmp_path, "m.jsonl", rows[:40]), **CUT)
    random.Random(1).shuffle(rows)
    after, _ = opened(tmp_path, train=listed(tmp_path, "m.jsonl", rows), **CUT)
    for (_, old), (_, new) in zip(before.items(), after.items(), strict=True):
        assert old and ids(old) == ids(new) & {f"clip{n}" for n in range(40)}
    larger = {"validation": {"from_train": 0.5}, "test": {"from_train": 0.3}}
    other, _ = opened(tmp_path, train=listed(tmp_path, "m.jsonl", rows), **larger)
    assert other.test == after.test and ids(other.validation) > ids(after.validation)


def test_places_are_spread_evenly_and_never_change():
    places = [place(f"sentence {n}") for n in range(10_000)]
    shares = np.histogram(places, bins=10, range=(0, 1))[0] / 10_000
    print(f"shares of ten equal parts: {shares.min():.3f} to {shares.max():.3f}")
    assert abs(shares - 0.1).max() < 0.015
    first = int(hashlib.sha256(b"hello world").hexdigest()[:16], 16)
    assert place("Hello, world!") == first / 2**64 == pytest.approx(0.72383354)


def test_a_share_may_be_limited_and_joined_with_another_source(tmp_path):
    sources = three(tmp_path)
    sources["train"] = listed(tmp_path, "m.jsonl", clips(tmp_path, range(100, 140)))
    sources["validation"] = {"from_train": 0.5, "limit": 3}
    splits, _ = opened(tmp_path, **sources)
    assert len(splits.validation) == 3 and len(splits.test) == 4
    assert not ids(splits.validation) & ids(splits.train)


def test_shares_that_leave_nothing_are_refused(tmp_path):
    rows = listed(tmp_path, "m.jsonl", clips(tmp_path, range(3)))
    halves = {"validation": {"from_train": 0.5}, "test": {"from_train": 0.5}}
    with pytest.raises(DataError, match="take all of train"):
        opened(tmp_path, train=rows, **halves)
    tiny = {"validation": {"from_train": 0.001}, "test": {"from_train": 0.5}}
    said = refusal(tmp_path, train=rows, **tiny)
    assert said.startswith("data.validation: no transcript of train fell into its share of 0.001")
    assert "raise data.validation.from_train" in said


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't stop!", "dont  stop"),
        ("STRASSE", "Straße"),
        ("Cafe\u0301", "CAFÉ"),
        ("ｆｕｌｌ", "full"),
        ("one-two", "one two"),
        ("it\u2019s", "it's"),
    ],
)
def test_case_and_punctuation_make_no_other_sentence(one, other):
    assert transcript_key(one) == transcript_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("नमस्ते", "नमसत"), ("a b", "ab"), ("1", "2"), ("👍", "🎧"), ("...", "!"), ("שלום", "שלמ")],
)
def test_letters_marks_digits_and_words_make_another_sentence(one, other):
    assert transcript_key(one) != transcript_key(other)


# Leaks


def test_shared_sound_is_refused_with_its_pairs(tmp_path):
    sources = three(tmp_path)
    for seed in range(13):  # the same samples in another container, under another name and text
        samples, _ = soundfile.read(_copy(tmp_path, seed), dtype="int16")
        soundfile.write(tmp_path / f"again{seed}.flac", samples, 16_000)
    rows = [{"audio": f"again{seed}.flac", "text": f"other {seed}"} for seed in range(13)]
    sources["test"] = listed(tmp_path, "leak.jsonl", rows)
    sources["train"] = listed(tmp_path, "m.jsonl", clips(tmp_path, range(20)))
    sources["validation"] = listed(tmp_path, "v.jsonl", clips(tmp_path, range(50, 52)))
    said = refusal(tmp_path, **sources)
    assert said.startswith("13 recordings in more than one split")
    assert "  train clip0 = test again0 (the same samples)\n" in said
    assert said.count("the same samples") == 10 and "... and 3 more" in said
    assert said.endswith("Remove them from one side.")


def _copy(folder: Path, seed: int) -> Path:
    soundfile.write(folder / f"clip{seed}.wav", speech(seed), 16_000)
    return folder / f"clip{seed}.wav"


def test_sound_shared_by_validation_and_test_is_a_leak_too(tmp_path):
    sources = three(tmp_path)
    sources["test"] = sources["validation"]
    assert "validation clip10 = test clip10" in refusal(tmp_path, **sources)


def test_one_source_for_two_splits_is_refused_before_it_is_read(tmp_path):
    same = {"manifest": "never_written.jsonl"}
    with pytest.raises(DataError, match=r"data.test is the same source.*from_train"):
        opened(tmp_path, train=same, validation={"from_train": 0.1}, test=same)


def test_one_source_under_two_names_is_recognised(tmp_path):
    sources = three(tmp_path)
    sources["test"] = {"manifest": "./train.jsonl"}
    said = refusal(tmp_path, **sources)
    assert "4 recordings" in said and "two splits the same source? Then use from_train" in said


def test_overlapping_segments_of_one_recording_are_a_leak(tmp_path):
    soundfile.write(tmp_path / "long.wav", speech(1, 10.0), 16_000)
    row = {"audio": "long.wav", "text": "a"}
    sources = {
        "train": listed(tmp_path, "a.jsonl", [row | {"start": 0, "end": 4}]),
        "validation": listed(tmp_path, "b.jsonl", [row | {"start": 3.95, "end": 6, "text": "b"}]),
        "test": listed(tmp_path, "c.jsonl", [row | {"start": 5.5, "end": 7, "text": "c"}]),
    }
    said = refusal(tmp_path, **sources)
    assert (
        "1 recording in more" in said
    )  # 0.05 s between train and validation are the rounding of times
    assert "validation long-3.95-6.00 = test long-5.50-7.00 (overlapping segments" in said


def test_a_whole_file_overlaps_with_its_segments():
    def clip(name: str, start_s: float | None, seconds: float) -> Clip:
        ref = AudioRef(path="long.wav", start_s=start_s)
        return Clip(name, ref, name, None, None, seconds, 5, sha256=name)

    parts = {"train": [clip("whole", None, 10.0)], "test": [clip("a", 8.0, 1.0), clip("b", 9, 0.5)]}
    assert [pair.ids for pair in overlapping(parts)] == [
        {"train": ("whole",), "test": ("a",)},
        {"train": ("whole",), "test": ("b",)},
    ]
    parts["train"] = [clip("before", 2.0, 6.0)]
    assert list(overlapping(parts)) == []


def test_shared_transcripts_are_named_and_no_reason_to_stop(tmp_path):
    sources = three(tmp_path)
    rows = clips(tmp_path, range(20, 25))
    rows[0]["text"] = rows[3]["text"] = "Sentence 0!"
    rows[1]["text"] = "sentence 10"  # of validation
    sources["test"] = listed(tmp_path, "t.jsonl", rows)
    splits, data = opened(tmp_path, **sources)
    refuse_leaks_and_rejects(splits, data)
    assert splits.shared_transcripts == (
        Shared("sentence 0", {"train": ("clip0",), "test": ("clip20", "clip23")}),
        Shared("sentence 10", {"validation": ("clip10",), "test": ("clip21",)}),
    )
    assert splits.notes() == [
        '2 of 5 test clips have a transcript that train has too ("sentence 0")'
    ]


# Rejects


def _spoiled(folder: Path, sources: dict, bad: int) -> None:
    rows = clips(folder, range(200, 206 + bad))
    for row in rows[6:]:
        (folder / row["audio"]).write_bytes(b"no sound")
    sources["train"] = listed(folder, "spoiled.jsonl", rows)


def test_one_bad_clip_of_a_manifest_stops_the_run(tmp_path):
    sources = three(tmp_path)
    _spoiled(tmp_path, sources, 1)
    said = refusal(tmp_path, **sources)
    assert said.splitlines() == [
        "1 clip can't be used (1 unreadable); data.max_rejected allows 0:",
        "  spoiled.jsonl:7 (clip206): unreadable: Format not recognised",
        "All are in rejected.jsonl. Repair or remove them, or raise data.max_rejected.",
    ]


def test_the_first_ten_are_named_and_the_rest_counted(tmp_path):
    sources = three(tmp_path)
    _spoiled(tmp_path, sources, 25)
    said = refusal(tmp_path, **sources, max_rejected=24)
    assert said.startswith("25 clips can't be used (25 unreadable); data.max_rejected allows 24:")
    assert said.count("Format not recognised") == 10 and "... and 15 more" in said


def test_as_many_as_allowed_go_on_and_are_all_written_down(tmp_path):
    sources = three(tmp_path)
    _spoiled(tmp_path, sources, 25)
    splits, data = opened(tmp_path, **sources, max_rejected=25)
    refuse_leaks_and_rejects(splits, data)
    write_rejected(tmp_path / "rejected.jsonl", splits.rejected)
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert len(rows) + len(splits.train) == 31
    assert {row["split"] for row in rows} == {"train"}
    assert str(tmp_path) not in (tmp_path / "rejected.jsonl").read_text()


def test_only_a_hub_may_lose_clips_unless_the_recipe_says_a_number():
    bad = Rejected("a", "row 1", "silent", "level 0")
    clip = Clip("c", AudioRef(data=b""), "t", None, None, 1.0, 5, "0")
    splits = Splits(
        (clip,), (clip,), (clip,), {"train": (bad,), "validation": (), "test": ()}, (), ()
    )
    hub, local = {"hub": "someone/speech"}, {"manifest": "m.jsonl"}
    on_hub = {"train": hub, "validation": local, "test": hub | {"split": "test"}}
    refuse_leaks_and_rejects(splits, Data.model_validate(on_hub))
    for refused in (on_hub | {"max_rejected": 0}, on_hub | {"train": {"folder": "f"}}):
        with pytest.raises(DataError, match=r"row 1 \(a\): silent: level 0"):
            refuse_leaks_and_rejects(splits, Data.model_validate(refused))


def test_a_split_without_clips_says_why(tmp_path):
    sources = three(tmp_path)
    sources["test"] = listed(tmp_path, "none.jsonl", [])
    assert refusal(tmp_path, **sources) == "data.test: the source has no row"
    (tmp_path / "bad.wav").write_bytes(b"")
    sources["test"] = listed(tmp_path, "bad.jsonl", [{"audio": "bad.wav", "text": "t"}])
    said = refusal(tmp_path, **sources, max_rejected=5)
    assert said == "data.test: no clip is left; all were rejected: 1 unreadable"


def test_opening_twice_gives_the_same_clips_and_fingerprints(tmp_path):
    sources = three(tmp_path) | CUT
    first, second = (opened(tmp_path, **sources)[0] for _ in range(2))
    assert first == second
    assert data_fingerprint(first.train) == data_fingerprint(second.train)


def test_progress_is_shown_unless_it_is_unwanted(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    data = Data.model_validate(three(tmp_path))
    open_splits(data, count, tmp_path, quiet=True)
    assert capsys.readouterr() == ("", "")
    open_splits(data, count, tmp_path)
    assert "audit of validation" in capsys.readouterr().err


def test_parquet_goes_the_whole_way(tmp_path, monkeypatch):
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    rows = []
    for seed in range(40):
        out = io.BytesIO()
        soundfile.write(out, speech(seed), 16_000, format="FLAC")
        cell = {"bytes": out.getvalue() if seed else b"broken", "path": f"{seed}.flac"}
        rows.append({"audio": cell, "text": f"sentence {seed}"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "all.parquet")
    splits, data = opened(tmp_path, train={"parquet": "all.parquet"}, **CUT, max_rejected=1)
    refuse_leaks_and_rejects(splits, data)
    assert sum(len(members) for _, members in splits.items()) == 39
    assert [bad.where for bad in splits.rejected["train"]] == ["all.parquet row 0"]
