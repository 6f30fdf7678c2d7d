"""The demo's assets are what they say they are, whole, and split without a leak."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import soundfile

from peft_whisper.data.splits import transcript_key
from peft_whisper.demo import VERSION, call, check, is_whole, sha256, sums
from peft_whisper.demo_speech import SOUNDS, TRANSCRIPTS, Prompt, read_prompts
from peft_whisper.errors import DataError
from peft_whisper.files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
SPLITS = ("train", "validation", "test")


@pytest.fixture
def assets(tmp_path) -> Path:
    """A small folder with a manifest as the demo writes it."""
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.flac").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "weights").write_bytes(b"w" * 3_000_000)
    (tmp_path / "empty").write_bytes(b"")
    write_json(tmp_path / "MANIFEST.json", {"version": VERSION, "files": sums(tmp_path)})
    assert is_whole(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["speech/a.flac", "weights"])
def test_one_flipped_bit_is_noticed_wherever_it_is(assets, name):
    path = assets / name
    content = path.read_bytes()
    for at in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert path.stat().st_size == len(content)
        assert not is_whole(assets)
    path.write_bytes(content)
    assert is_whole(assets)


@pytest.mark.parametrize("name", ["speech/a.flac", "empty", "MANIFEST.json"])
def test_a_missing_file_is_noticed(assets, name):
    (assets / name).unlink()
    assert not is_whole(assets)


@pytest.mark.parametrize("name", ["speech/b.flac", "extra", "speech/MANIFEST.json", "new/x"])
def test_a_file_too_many_is_noticed(assets, name):
    (assets / name).parent.mkdir(exist_ok=True)
    (assets / name).write_bytes(b"")
    assert not is_whole(assets)


def test_a_renamed_file_is_noticed(assets):
    (assets / "empty").rename(assets / "void")
    assert not is_whole(assets)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'"files"'])
def test_a_damaged_manifest_is_not_whole(assets, content):
    (assets / "MANIFEST.json").write_bytes(content)
    assert not is_whole(assets)


def test_assets_of_another_version_are_not_whole(assets):
    write_json(assets / "MANIFEST.json", {"version": VERSION + 1, "files": sums(assets)})
    assert not is_whole(assets)


def test_an_absent_folder_is_not_whole(tmp_path):
    assert not is_whole(tmp_path / "nothing")


def test_a_file_of_another_sum_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"abc")
    right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert sha256(path) == right
    check(path, right)
    path.write_bytes(b"abd")
    with pytest.raises(DataError, match=r"^model\.bin is not the file .*expected ba7816bf8f01cfea"):
        check(path, right)


def test_a_program_that_fails_is_reported_with_its_last_line(tmp_path):
    command = [sys.executable, "-c", "import sys; print('x'); sys.exit('first\\nno network')"]
    with pytest.raises(DataError, match=r"could not get the prompts: no network\. With access"):
        call(command, tmp_path, "the prompts")
    call([sys.executable, "-c", ""], tmp_path, "nothing")


@pytest.mark.parametrize(("present", "missing"), [([], "apt-get"), (["apt-get"], "dpkg-deb")])
def test_without_debians_tools_one_sentence_names_the_other_way(tmp_path, present, missing):
    tools, place = tmp_path / "tools", tmp_path / "place"
    tools.mkdir()
    place.mkdir()
    for name in present:
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "peft_whisper.demo", "--force"],
        cwd=place,
        env=os.environ | {"PATH": str(tools), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == (
        f"the demo's speech comes in a Debian package, and {missing} is not on this machine. "
        "With access to the Hugging Face Hub, use recipes/demo_hub.yaml instead.\n"
    )
    assert list(place.iterdir()) == []


# Pairing of transcripts and sounds


def test_what_is_left_out_of_the_package_has_a_reason(tmp_path):
    written = {
        "digits/1": "one",
        "time": "It is: noon",
        "tone": "[a tone]",
        "beep": "<beep>",
        "dots": "...",
        "silent": "",
        "lost": "no such sound",
    }
    folder = tmp_path / SOUNDS
    for name in [*written, "unnamed"]:
        if name != "lost":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.g722").write_bytes(b"")
    (tmp_path / TRANSCRIPTS).parent.mkdir(parents=True)
    lines = "; a comment: is none\n\n" + "".join(f"{k}:  {v}\n" for k, v in written.items())
    (tmp_path / TRANSCRIPTS).write_bytes(gzip.compress(lines.encode()))
    prompts, excluded = read_prompts(tmp_path)
    assert [(one.id, one.text) for one in prompts] == [("digits_1", "one"), ("time", "It is: noon")]
    assert {name: reason for name, reason, _ in excluded} == {
        "tone": "not speech alone",
        "beep": "not speech alone",
        "dots": "not speech alone",
        "silent": "no transcript",
        "unnamed": "no transcript",
        "lost": "no sound in the package",
    }


def test_a_package_without_sounds_is_refused(tmp_path):
    (tmp_path / TRANSCRIPTS).parent.mkdir(parents=True)
    (tmp_path / TRANSCRIPTS).write_bytes(gzip.compress(b"a: b\n"))
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompts(tmp_path)


# The real assets


def rows_of(demo: Path, name: str) -> list[dict]:
    lines = (demo / "speech" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def table(demo: Path, name: str) -> list[dict[str, str]]:
    with (demo / "speech" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_real_assets_are_whole_and_attributed(demo):
    assert is_whole(demo)
    said = (demo / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(word in said for word in ("OpenAI", "Asterisk", "CC BY-SA 3.0", "TAPS", "MIT"))


def test_no_transcript_is_in_two_splits(demo):
    where = defaultdict(set)
    for split in SPLITS:
        for row in rows_of(demo, split):
            where[transcript_key(row["text"])].add(split)
    counts = {split: len(rows_of(demo, split)) for split in SPLITS}
    print(f"{len(where)} transcripts in {sum(counts.values())} prompts: {counts}")
    assert len(where) > 300
    assert [key for key, splits in where.items() if len(splits) > 1] == []
    assert counts["test"] >= 80
    assert counts["train"] > counts["test"] > counts["validation"] > 30


def test_the_list_of_the_split_and_the_manifests_agree(demo):
    listed = table(demo, "split.csv")
    ids = [row["id"] for row in listed]
    assert len(set(ids)) == len(ids) == sum(len(rows_of(demo, split)) for split in SPLITS)
    for split in SPLITS:
        of_list = [
            (row["id"], float(row["duration_s"]), row["transcript"])
            for row in listed
            if row["split"] == split
        ]
        of_manifest = [(row["id"], row["duration"], row["text"]) for row in rows_of(demo, split)]
        assert of_list == of_manifest
    for row in listed:
        assert Prompt(row["id"], row["transcript"], Path()).split == row["split"]


def test_the_clean_test_is_the_same_test_without_the_channel(demo):
    clean, test = rows_of(demo, "clean_test"), rows_of(demo, "test")
    assert [row["audio"] for row in clean] == [f"clean/{row['id']}.flac" for row in test]
    assert [row | {"audio": ""} for row in clean] == [row | {"audio": ""} for row in test]


def test_every_row_has_its_file_of_the_stated_length_and_no_file_is_left_over(demo):
    folder, named = demo / "speech", set()
    for name in (*SPLITS, "clean_test"):
        for row in rows_of(demo, name):
            info = soundfile.info(folder / row["audio"])
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert info.frames / 16_000 == pytest.approx(row["duration"], abs=6e-4)
            assert 0 < row["duration"] <= 30
            assert row["text"].strip()
            named.add(row["audio"])
    clips = {f"clips/{path.name}" for path in (folder / "clips").iterdir()}
    assert clips == {audio for audio in named if audio.startswith("clips/")}
    of_clean = {path.name for path in (folder / "clean").iterdir()}
    assert of_clean == {audio.removeprefix("clips/") for audio in clips}
    print(f"{len(clips)} clips, each of its stated length")


def test_every_prompt_left_out_has_its_reason(demo):
    excluded = table(demo, "excluded.csv")
    assert excluded
    for row in excluded:
        reason = row["reason"]
        known = {"not speech alone", "no transcript", "no sound in the package"}
        assert reason in known or reason.endswith("s is longer than 30 s"), row
    kept = {row["id"] for row in table(demo, "split.csv")}
    assert not kept & {row["name"].replace("/", "_") for row in excluded}
