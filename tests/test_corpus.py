"""Manifests, folders, parquet, Hub data sets -> the same rows, or an error that says where."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import time
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from peft_whisper.data.audio import AudioError, AudioRef, load_wave
from peft_whisper.data.corpus import Ids, Row, read_rows
from peft_whisper.data.tables import Spool
from peft_whisper.errors import DataError, NoRoomError
from peft_whisper.recipe_speech import Source

DECOMPOSED = "Ge\u0301nie, A\u030angstro\u0308m, \u1100\u1161"  # NFD: letter, then its mark
WORDS = {
    "latin": "Straße, naïve façade",
    "arabic": "مرحبا بالعالم",
    "hebrew": "שָׁלוֹם עולם",
    "hindi": "नमस्ते दुनिया",
    "chinese": "你好，世界",
    "emoji": "fine 👩‍🚀 🎧",
    "separators": "one\u2028two\u0085three",  # line ends for str.splitlines, not for a manifest
}


def flac(seconds: float = 1.0, seed: int = 0, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    wave = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(out, wave, rate, format="FLAC")
    return out.getvalue()


def manifest(folder: Path, rows: list[dict], name: str = "train.jsonl") -> Source:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Source(manifest=str(folder / name))


def rows_of(source: Source, **options) -> list[Row]:
    return list(read_rows(source, **options))


def error_of(source: Source, **options) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(source, **options)
    return str(caught.value)


# Manifests


def test_a_full_row_of_a_manifest(tmp_path):
    source = manifest(
        tmp_path,
        [
            {"audio": "clips/a.flac", "text": "one"},
            {
                "audio": "clips/b.flac",
                "text": "to",
                "start": 1.5,
                "end": 2.25,
                "language": "no",
                "speaker": 7,
                "id": "second",
                "duration": 0.75,
                "unknown": [1],
            },
        ],
    )
    first, second = rows_of(source, language="en")
    assert (first.id, first.text, first.language, first.where) == (
        "a",
        "one",
        "en",
        "train.jsonl:1",
    )
    assert first.audio.path == str(tmp_path.resolve() / "clips/a.flac")
    assert (first.speaker, first.duration_s, first.audio.start_s) == (None, None, None)
    assert (second.id, second.language, second.speaker) == ("second", "no", "7")
    assert (second.audio.start_s, second.audio.end_s, second.duration_s) == (1.5, 2.25, 0.75)


def test_csv_and_tsv_say_the_same_as_jsonl(tmp_path):
    (tmp_path / "m.csv").write_text(
        'id,audio,text,start,end,language\nx,a.flac,"one, ""two""\nthree",,1.5,de\n'
        "\ny,a.flac,b,,,\n"
    )
    (tmp_path / "m.tsv").write_text("audio\ttext\r\na.flac\tone, two\r\n")
    first, second = rows_of(Source(manifest=str(tmp_path / "m.csv")))
    assert (first.id, first.text, first.language) == ("x", 'one, "two"\nthree', "de")
    assert (first.audio.start_s, first.audio.end_s) == (None, 1.5)
    assert (second.id, second.where, second.language) == ("y", "m.csv:5", None)
    (only,) = rows_of(Source(manifest=str(tmp_path / "m.tsv")))
    assert only.text == "one, two"


def test_names_of_columns_and_limit_come_from_the_recipe(tmp_path):
    source = manifest(tmp_path, [{"path": f"{n}.wav", "sentence": str(n)} for n in range(5)])
    columns = {"audio": "path", "text": "sentence"}
    found = rows_of(
        Source.model_validate({"manifest": source.manifest, "columns": columns, "limit": 3})
    )
    assert [row.text for row in found] == ["0", "1", "2"]


SUM = "0123456789abcdef" * 4


def test_a_resolved_recipe_reads_the_folder_that_the_recipe_read(tmp_path):
    """A run's recipe.yaml spells the columns' default names out, and is what evaluate reads."""
    (tmp_path / "metadata.csv").write_text("file_name,text\na.wav,t\n")
    source = Source(folder=str(tmp_path))
    resolved = Source.model_validate(source.model_dump())
    assert rows_of(resolved) == rows_of(source)


def test_sums_of_files_are_taken_from_where_they_are(tmp_path):
    given = [{"audio": "a.wav", "text": "t", "sha256": one} for one in (SUM, SUM.upper(), None, "")]
    source = manifest(tmp_path, [*given, {"audio": "a.wav", "text": "t"}])
    assert [row.file_sha256 for row in rows_of(source)] == [SUM, SUM, None, None, None]
    (tmp_path / "metadata.csv").write_text(f"file_name,text,sha256\na.wav,t,{SUM}\n")
    assert rows_of(Source(folder=str(tmp_path)))[0].file_sha256 == SUM


@pytest.mark.parametrize("wrong", [SUM[1:], SUM + "0", "g" + SUM[1:], "md5", 5, True, [SUM]])
def test_what_is_no_sum_is_refused_with_its_line(tmp_path, wrong):
    rows = [{"audio": "a.wav", "text": "t", "sha256": one} for one in (SUM, wrong)]
    said = error_of(manifest(tmp_path, rows))
    assert "train.jsonl:2: sha256: expected a SHA-256, the 64 hex digits" in said
    assert repr(wrong)[:60] in said


def test_where_the_recipe_names_a_column_of_sums_every_row_must_have_one(tmp_path):
    rows = [{"audio": "a.wav", "text": "t", "sum": SUM, "sha256": "another's"}]
    source = {"manifest": manifest(tmp_path, rows).manifest, "columns": {"sha256": "sum"}}
    assert rows_of(Source.model_validate(source))[0].file_sha256 == SUM
    manifest(tmp_path, [*rows, rows[0] | {"sum": None}])
    assert "train.jsonl:2: sum: expected a SHA-256" in error_of(Source.model_validate(source))
    manifest(tmp_path, [*rows, {"audio": "a.wav", "text": "t"}])
    assert "train.jsonl:2: no column sum" in error_of(Source.model_validate(source))


def test_relative_paths_begin_at_the_base_folder(tmp_path):
    manifest(tmp_path, [{"audio": "a.wav", "text": "t"}])
    (row,) = rows_of(Source(manifest="train.jsonl"), base_dir=tmp_path)
    assert row.audio.path == str(tmp_path.resolve() / "a.wav")


def test_a_start_with_a_duration_is_a_segment(tmp_path):
    source = manifest(tmp_path, [{"audio": "a.wav", "text": "t", "start": 2, "duration": 1.5}])
    (row,) = rows_of(source)
    assert (row.audio.start_s, row.audio.end_s, row.id) == (2.0, 3.5, "a-2.00-3.50")


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_transcripts_of_every_script_arrive_as_written(name, suffix, tmp_path):
    text = WORDS[name]
    path = tmp_path / f"m.{suffix}"
    escaped = json.dumps(text, ensure_ascii=False)
    line = (
        f'{{"audio": "a.wav", "text": {escaped}}}'
        if suffix == "jsonl"
        else f'audio,text\na.wav,"{text}"'
    )
    path.write_text(line, encoding="utf-8")
    (row,) = rows_of(Source(manifest=str(path)))
    assert row.text == unicodedata.normalize("NFC", text)


def test_composed_and_decomposed_letters_become_the_same(tmp_path):
    composed = unicodedata.normalize("NFC", DECOMPOSED)
    source = manifest(tmp_path, [{"audio": "a.wav", "text": t} for t in (DECOMPOSED, composed)])
    first, second = rows_of(source)
    assert first.text == second.text == composed != DECOMPOSED


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_byte_order_mark_is_accepted(suffix, tmp_path):
    text = '{"audio": "a.wav", "text": "t"}' if suffix == "jsonl" else "audio,text\na.wav,t"
    (tmp_path / f"m.{suffix}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [row.text for row in rows_of(Source(manifest=str(tmp_path / f"m.{suffix}")))] == ["t"]


# What is wrong in a manifest, and where


def test_invalid_utf8_is_named_with_line_and_offset(tmp_path):
    head = b'\xef\xbb\xbf{"audio": "a.wav", "text": "t"}\n'
    line = '{"audio": "b.wav", "text": "Straße"}\n'.encode("cp1252")
    (tmp_path / "m.jsonl").write_bytes(head + line)
    said = error_of(Source(manifest=str(tmp_path / "m.jsonl")))
    offset = (head + line).index(b"\xdf")
    assert said.startswith(f"{tmp_path}/m.jsonl:2: not UTF-8, at byte {offset} of the file")
    assert "near b'\"Stra\\xdfe\"}\\n'" in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"audio": "a.wav", "text": "é"}'.encode("utf-16"), ":1: it looks like UTF-16, at byte 0"),
        (b'{"audio": "a.wav", "text": "a\xff"}', ":1: not UTF-8, at byte 29 "),
        (b'\n{"audio": "a.wav"', ":2: no valid JSON"),
        (b'["a.wav", "t"]', ":1: expected one JSON object per line, found a list"),
        (
            b'{"audio": "a.wav", "text": "t", "text": "u"}',
            ":1: no valid JSON: a key is given twice",
        ),
        (b'{"audio": "a.wav", "sentence": "t"}', ":1: no column text; found audio, sentence"),
        (b'{"file": "a.wav", "text": "t"}', ":1: no column audio; found file, text"),
        (b'{"audio": "a.wav", "text": 5}', ":1: expected a transcript in quotes, found 5"),
        (b'{"audio": 5, "text": "t"}', ":1: expected the name of a sound file, found 5"),
        (b'{"audio": "", "text": "t"}', ":1: expected the name of a sound file, found ''"),
        (b'{"audio": "a.wav", "text": "a\\ud800"}', r":1: the transcript holds a NUL or half a"),
        (b'{"audio": "a.wav", "text": "a\\u0000"}', ":1: the transcript holds a NUL or half a"),
        (b'{"audio": "a.wav", "text": "a\x00"}', ":1: a NUL character"),
        (b'{"audio": "a.wav", "text": "t", "language": "xx"}', ":1: Whisper knows no language xx"),
        (b'{"audio": "a.wav", "text": "t", "language": true}', ":1: language: expected a name"),
        (b'{"audio": "a.wav", "text": "t", "start": "soon"}', ":1: start: expected seconds, found"),
        (b'{"audio": "a.wav", "text": "t", "start": -1}', ":1: start: expected seconds, found -1"),
        (b'{"audio": "a.wav", "text": "t", "end": NaN}', ":1: end: expected seconds, found nan"),
        (b'{"audio": "a.wav", "text": "t", "duration": true}', ":1: duration: expected seconds"),
        (
            b'{"audio": "a.wav", "text": "t", "start": 2, "end": 2}',
            "end 2 s is not after start 2 s",
        ),
        (b"[" * 100_000, ":1: no valid JSON"),
    ],
)
def test_each_wrong_line_is_named(content, expected, tmp_path):
    (tmp_path / "m.jsonl").write_bytes(content)
    said = error_of(Source(manifest=str(tmp_path / "m.jsonl")))
    assert f"{tmp_path}/m.jsonl:" in said and expected in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("audio,text\na.wav,one,two\n", ":2: 3 columns where the header has 2"),
        ("audio,text\na.wav,one\nb.wav\n", ":3: 1 columns where the header has 2"),
        ('audio,text\na.wav,"one\n', ":2: no valid CSV: unexpected end of data"),
        ('audio,text\na.wav,"one"two\n', ":2: no valid CSV"),
        (
            "audio;text\na.wav;one\n",
            ":1: found one column, 'audio;text'; separated by semicolons? expected commas",
        ),
        ("audio;text\na.wav;one, two\n", "separated by semicolons? expected commas"),
        ("audio\ttext\na.wav\tone\n", "separated by tabs? expected commas"),
        ("audio\na.wav\n", ":2: no column text; found audio"),
        ("audio,text,text\na.wav,one,two\n", ":1: a column is given twice: audio, text, text"),
    ],
)
def test_each_wrong_csv_is_named(content, expected, tmp_path):
    (tmp_path / "m.csv").write_text(content)
    assert expected in error_of(Source(manifest=str(tmp_path / "m.csv")))


def test_a_missing_or_unknown_manifest_is_named(tmp_path):
    assert error_of(Source(manifest=str(tmp_path / "m.jsonl"))).endswith(
        "No such file or directory"
    )
    (tmp_path / "m.xlsx").write_bytes(b"PK")
    assert "expected a .jsonl, .csv or .tsv file" in error_of(
        Source(manifest=str(tmp_path / "m.xlsx"))
    )


def test_a_separator_must_be_the_one_of_the_files_name(tmp_path):
    (tmp_path / "m.tsv").write_text("audio,text\na.wav,one\n")
    said = error_of(Source(manifest=str(tmp_path / "m.tsv")))
    assert said.endswith("separated by commas? expected tabs; save it with those")


def test_a_manifest_that_is_a_folder_says_how_to_use_one(tmp_path):
    for name in ("corpus", "corpus.csv"):
        (tmp_path / name).mkdir()
        said = error_of(Source(manifest=str(tmp_path / name)))
        assert f"for a folder use data.train.folder={tmp_path / name}" in said


def test_a_relative_path_that_leads_nowhere_says_where_it_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hint = f"; paths are relative to the folder where the command runs, here {tmp_path}"
    for kind, said in [
        ("manifest", "nope.jsonl: No such file or directory"),
        ("folder", "nope.jsonl: no such folder"),
        ("parquet", "nope.jsonl: no parquet file there"),
    ]:
        assert error_of(Source.model_validate({kind: "nope.jsonl"})) == said + hint


def test_a_known_language_by_its_english_name_is_its_code(tmp_path):
    named = [{"audio": "a.wav", "text": "t", "language": n} for n in ("Norwegian", "EN", "yue", "")]
    assert [row.language for row in rows_of(manifest(tmp_path, named))] == ["no", "en", "yue", None]


# Ids


def test_an_id_given_twice_is_an_error_and_a_file_used_twice_is_not(tmp_path):
    twice = [{"audio": f"{n}.wav", "text": "t", "id": "same"} for n in range(2)]
    said = error_of(manifest(tmp_path, twice))
    assert said.endswith(
        f"train.jsonl:2: the id same was given already at {tmp_path}/train.jsonl:1"
    )
    rows = [{"audio": a, "text": "t"} for a in ("x/a.wav", "y/a.wav", "a.flac")]
    rows += [{"audio": "a.wav", "text": "t", "start": s, "end": s + 1} for s in (0, 1)]
    ids = [row.id for row in rows_of(manifest(tmp_path, rows))]
    assert ids == ["a", "a-2", "a-3", "a-0.00-1.00", "a-1.00-2.00"]


def test_fifty_thousand_equal_names_are_numbered_at_once():
    ids, begun = Ids(strict=True), time.process_time()
    made = [ids.of(None, "clip", f"m:{number}") for number in range(50_000)]
    seconds = time.process_time() - begun
    print(f"50,000 equal names in {seconds:.2f} s")
    assert made == ["clip", *(f"clip-{number}" for number in range(2, 50_001))]
    assert seconds < 2


def test_a_given_id_that_looks_derived_is_passed_over():
    ids = Ids(strict=False)
    names = [(None, "a"), ("a-3", "a"), (None, "a"), (None, "a"), ("a-2", "x"), ("a", "x")]
    made = [ids.of(given, derived, "m") for given, derived in [*names, (None, "a-2")]]
    assert made == ["a", "a-3", "a-2", "a-4", "a-2-2", "a-5", "a-2-3"]


# Sounds must lie where the manifest lies


@pytest.mark.parametrize(
    "name", ["~/a.wav", "C:\\a.wav", "..a.wav", "a..wav", "sub/../a.wav", "x" * 3000]
)
def test_odd_names_stay_inside_and_are_left_to_the_audit(name, tmp_path):
    (row,) = rows_of(manifest(tmp_path, [{"audio": name, "text": "t"}]))
    assert Path(str(row.audio.path)).is_relative_to(tmp_path.resolve())


def test_a_link_in_a_circle_is_no_sound(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "a.wav")
    source = manifest(tmp_path, [{"audio": "a.wav", "text": "t"}])
    with pytest.raises((DataError, AudioError)):  # which of them depends on Python's version
        load_wave(rows_of(source)[0].audio)


def test_absolute_paths_and_links_within_the_folder_are_fine(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "a.wav").write_bytes(flac())
    (real / "b.wav").symlink_to("a.wav")
    (tmp_path / "alias").symlink_to(real)  # the manifest's own folder may be a link
    manifest(real, [{"audio": n, "text": "t"} for n in (str(real / "a.wav"), "b.wav")])
    found = rows_of(Source(manifest=str(tmp_path / "alias" / "train.jsonl")))
    assert [row.audio.path for row in found] == [str(real.resolve() / "a.wav")] * 2


# Folders


def test_an_audiofolder_with_csv_or_jsonl(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,transcription\nclips/a.flac,hello\n")
    source = {"folder": str(tmp_path), "columns": {"text": "transcription"}}
    (row,) = rows_of(Source.model_validate(source))
    assert (row.id, row.text, row.where) == ("a", "hello", "metadata.csv:2")
    assert row.audio.path == str(tmp_path.resolve() / "clips/a.flac")
    assert "found file_name, transcription" in error_of(Source(folder=str(tmp_path)))
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"audio": "a.flac", "text": "hello"}')
    assert [row.text for row in rows_of(Source(folder=str(tmp_path)))] == ["hello"]


def test_a_folder_must_have_one_list(tmp_path):
    assert error_of(Source(folder=str(tmp_path / "none"))).endswith("no such folder")
    assert "neither is there" in error_of(Source(folder=str(tmp_path)))
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("")
    assert "both are there" in error_of(Source(folder=str(tmp_path)))


# Parquet files and Hub data sets: opened by `datasets`, as local ones


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path / "cache"


def sound(number: int) -> dict:
    return {"bytes": flac(0.5 + number / 10, number), "path": f"clip{number}.flac"}


def table(path: Path, rows: list[dict], metadata: dict | None = None) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    made = pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(made, path)
    return path


def three(first: int = 0) -> list[dict]:
    numbers = range(first, first + 3)
    return [
        {"audio": sound(n), "text": f"text {n}", "start": 9.0, "duration": 99.0} for n in numbers
    ]


def test_parquet_files_hold_the_sound_itself(tmp_path, cache):
    path = table(tmp_path / "data" / "a.parquet", three())
    found = rows_of(Source(parquet=str(path)), language="no")
    assert [row.id for row in found] == ["clip0", "clip1", "clip2"]
    assert [row.where for row in found] == [f"a.parquet row {n}" for n in range(3)]
    assert [len(load_wave(row.audio)) for row in found] == [8_000, 9_600, 11_200]
    assert {row.language for row in found} == {"no"}
    assert found[1].duration_s is None and found[1].audio.start_s is None
    assert found[1].audio.data is None  # read when needed, not held


def test_a_folder_of_parquet_files_is_read_in_the_order_of_names(tmp_path, cache):
    table(tmp_path / "data" / "b.parquet", three(3))
    table(tmp_path / "data" / "a.parquet", three(0))
    found = rows_of(Source(parquet=str(tmp_path / "data"), limit=5))
    assert [row.text for row in found] == [f"text {n}" for n in range(5)]
    assert len(load_wave(found[4].audio)) == 14_400


def test_a_clip_in_a_table_travels_to_a_loader_process(tmp_path, cache):
    path = table(tmp_path / "data" / "a.parquet", three())
    row = pickle.loads(pickle.dumps(rows_of(Source(parquet=str(path)))[2]))
    assert len(load_wave(row.audio)) == 11_200


def test_a_parquet_file_may_name_files_in_its_folder_only(tmp_path, cache):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.flac").write_bytes(flac())
    good = table(tmp_path / "data" / "good.parquet", [{"audio": "a.flac", "text": "t"}])
    (row,) = rows_of(Source(parquet=str(good)))
    assert len(load_wave(row.audio)) == 16_000
    for number, name in enumerate(["../secret.wav", "/etc/passwd"]):
        cell = {"bytes": None, "path": name}
        bad = table(tmp_path / "data" / f"bad{number}.parquet", [{"audio": cell, "text": "t"}])
        assert "leads outside" in error_of(Source(parquet=str(bad)))


def test_a_row_without_sound_is_left_to_the_audit(tmp_path, cache):
    rows = [{"audio": sound(0), "text": "a"}, {"audio": None, "text": None}]
    found = rows_of(Source(parquet=str(table(tmp_path / "data" / "a.parquet", rows))))
    assert (found[1].audio.data, found[1].text, found[1].id) == (b"", "", "000001")


def test_columns_of_a_table_are_named_when_one_is_missing(tmp_path, cache):
    nested = {"throat_microphone": sound(0), "acoustic_microphone": sound(1)}
    path = table(tmp_path / "data" / "a.parquet", [{"audio": nested, "sentence": "t"}])
    said = error_of(Source(parquet=str(path)))
    assert "no column text" in said
    assert "audio.throat_microphone" in said and "audio.acoustic_microphone, sentence" in said
    columns = {"audio": "audio.throat_microphone", "text": "sentence"}
    (row,) = rows_of(Source.model_validate({"parquet": str(path), "columns": columns}))
    assert len(load_wave(row.audio)) == 8_000


def test_sums_of_a_table_are_looked_at_only_where_the_recipe_names_them(tmp_path, cache):
    rows = [{"audio": sound(0), "text": "a", "sha256": SUM}]
    source = {"parquet": str(table(tmp_path / "data" / "a.parquet", rows))}
    assert rows_of(Source.model_validate(source))[0].file_sha256 is None
    (named,) = rows_of(Source.model_validate(source | {"columns": {"sha256": "sha256"}}))
    assert named.file_sha256 == SUM


def test_damaged_or_missing_parquet_is_one_sentence(tmp_path, cache):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    assert f"{tmp_path}/a.parquet: can't be read" in error_of(
        Source(parquet=str(tmp_path / "a.parquet"))
    )
    assert "no parquet file there" in error_of(Source(parquet=str(tmp_path / "b.parquet")))
    assert "no parquet file there" in error_of(Source(parquet=str(tmp_path / "cache")))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_laid_out_as_on_the_hub(streaming, tmp_path, cache):
    """With `Audio` columns, so that an undecoded read is what is tested."""
    import datasets

    rows = [
        {"audio": {"throat": sound(n), "air": sound(n)}, "text": f"t{n}", "id": 7} for n in range(3)
    ]
    nested = {"throat": datasets.Audio(), "air": datasets.Audio()}
    features = {"audio": nested, "text": datasets.Value("string"), "id": datasets.Value("int64")}
    info = {"info": {"features": datasets.Features(features).to_dict()}}
    table(tmp_path / "hub" / "train-00000.parquet", rows, {"huggingface": json.dumps(info)})
    source = {"hub": str(tmp_path / "hub"), "columns": {"audio": "audio.throat"}}
    found = rows_of(Source.model_validate(source | {"streaming": streaming, "limit": 2}))
    assert [row.id for row in found] == ["7", "7-2"]  # ids of a Hub's data set need not be unique
    assert [len(load_wave(row.audio)) for row in found] == [8_000, 9_600]
    assert all(row.audio.data is None for row in found)  # nothing of the sound stays in memory
    assert all(isinstance(row.audio.cells, Spool) == streaming for row in found)


def test_a_stream_is_kept_on_disk_while_it_is_used():
    spool = Spool()
    assert [spool.append(sound) for sound in (b"one", b"", b"three")] == [0, 1, 2]
    copy = pickle.loads(pickle.dumps(spool))  # as another process gets it
    path = Path(spool.path)
    assert [copy[row] for row in (2, 1, 0)] == [b"three", b"", b"one"]
    child = os.fork()
    if child == 0:  # a loader process forgets its copy
        del spool
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert path.exists()
    del spool
    assert not path.exists()
    with pytest.raises(AudioError, match="unreadable: No such file"):
        load_wave(AudioRef(cells=copy, row=0))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_stream_on_a_full_disk_is_one_sentence():
    spool = Spool()
    spool.path = "/dev/full"
    with pytest.raises(NoRoomError, match=r"^/dev/full: No space left.* TMPDIR .*limit$"):
        spool.append(b"sound")


@pytest.mark.skipif(find_spec("torchcodec") is not None, reason="torchcodec opens it")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_loose_files_says_how_to_use_it(streaming, tmp_path, cache):
    folder = tmp_path / "hub" / "train"
    folder.mkdir(parents=True)
    (folder / "a.flac").write_bytes(flac())
    (folder / "metadata.csv").write_text("file_name,text\na.flac,hello\n")
    assert "use data: folder" in error_of(Source(hub=str(tmp_path / "hub"), streaming=streaming))
    (row,) = rows_of(Source(folder=str(folder)))
    assert (row.text, len(load_wave(row.audio))) == ("hello", 16_000)


def test_a_data_set_cannot_name_files_of_this_machine(tmp_path, cache):
    (tmp_path / "secret.wav").write_bytes(flac())
    cell = {"bytes": None, "path": str(tmp_path / "secret.wav")}
    table(tmp_path / "hub" / "train-00000.parquet", [{"audio": cell, "text": "t"}])
    assert "leads outside" in error_of(Source(hub=str(tmp_path / "hub")))


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path, cache, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = error_of(Source(hub="nobody/no_such_data_set"))
    assert said == (
        "the Hub data set nobody/no_such_data_set: the Hub can't be reached; check the network, "
        "or use a folder or a manifest instead"
    )


@pytest.mark.parametrize("wrong", [{"split": "exam"}, {"config": "large"}])
def test_an_unknown_split_or_configuration_is_one_sentence(wrong, tmp_path, cache):
    table(tmp_path / "hub" / "train-00000.parquet", three())
    said = error_of(Source.model_validate({"hub": str(tmp_path / "hub")} | wrong))
    assert said.startswith(f"the Hub data set {tmp_path}/hub: can't be read: ")
    assert next(iter(wrong.values())) in said and "\n" not in said


def test_no_file_is_opened_before_its_rows_are_asked_for(tmp_path):
    rows = read_rows(Source(manifest=str(tmp_path / "none.jsonl")))
    assert rows.most is None
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        next(iter(rows))
    assert not os.path.exists(tmp_path / "none.jsonl")


def test_how_many_rows_come_at_most_is_known_before_they_are_read(tmp_path, cache):
    (tmp_path / "a.wav").write_bytes(flac())
    line = json.dumps({"audio": "a.wav", "text": "t"}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 5)
    (tmp_path / "a.csv").write_text("audio,text\na.wav,t\na.wav,u\n")
    table(tmp_path / "a.parquet", three())
    table(tmp_path / "hub" / "train-00000.parquet", three())
    known = {
        "jsonl": Source(manifest=str(tmp_path / "a.jsonl")),
        "limit": Source(manifest=str(tmp_path / "a.jsonl"), limit=4),
        "csv": Source(manifest=str(tmp_path / "a.csv")),
        "parquet": Source(parquet=str(tmp_path / "a.parquet")),
        "hub": Source(hub=str(tmp_path / "hub")),
        "stream": Source(hub=str(tmp_path / "hub"), streaming=True, limit=4),
    }
    found = {name: read_rows(source).most for name, source in known.items()}
    assert found == {
        "jsonl": 5,
        "limit": 4,
        "csv": 2,
        "parquet": 3,
        "hub": 3,
        "stream": None,
    }
