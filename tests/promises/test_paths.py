"""R19: no path in a manifest leads out of its folder; every file that is opened is watched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import soundfile
from killed_runs import FULL, Runs
from test_train import sound


def hostile_names(place: Path) -> list[Any]:
    """What a manifest may call a sound: each leads out of place/in, or nowhere."""
    secret, inside = place / "secret", place / "in"
    for folder in (secret, inside / "sub", place / "in2"):
        folder.mkdir(parents=True)
    for path in (secret / "a.wav", place / "in2" / "a.wav", inside / "good.wav"):
        soundfile.write(path, sound(1), 16_000)
    (inside / "link.wav").symlink_to(secret / "a.wav")
    (inside / "hop.wav").symlink_to("link.wav")
    (inside / "way").symlink_to(secret)
    (inside / "circle.wav").symlink_to("circle.wav")
    (inside / "noise.wav").symlink_to("/dev/urandom")
    return [
        "../secret/a.wav",
        "sub/../../secret/a.wav",
        "./.././secret/a.wav",
        "../in/../secret/a.wav",
        "../in2/a.wav",
        "../SECRET/a.wav",
        "../" * 1_700 + "etc/passwd",
        str(secret / "a.wav"),
        "/etc/passwd",
        "//etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "~/a.wav",
        "~root/a.wav",
        "$HOME/a.wav",
        "link.wav",
        "hop.wav",
        "way/a.wav",
        "sub/../way/a.wav",
        "circle.wav",
        "noise.wav",
        "..",
        ".",
        " ",
        "file:///etc/passwd",
        "file:../secret/a.wav",
        "https://example.com/a.wav",
        "good.wav\0.txt",
        "C:\\Windows\\a.wav",
        "\\\\server\\share\\a.wav",
        "..\\secret\\a.wav",
        "%2e%2e/secret/a.wav",
        "....//secret/a.wav",
        "\uff0e\uff0e/secret/a.wav",
        "x" * 5_000,
        17,
        None,
        ["../secret/a.wav"],
        {"bytes": None, "path": "../secret/a.wav"},
    ]


def test_no_manifest_leads_out_of_its_folder(runs: Runs, tmp_path: Path) -> None:
    """Every file that the process opens is watched."""
    names = hostile_names(tmp_path)
    manifests = []
    for number, name in enumerate([*names, "good.wav"]):
        manifests.append(tmp_path / "in" / f"{number}.jsonl")
        row = {"audio": name, "text": "words", "id": "one"}
        manifests[-1].write_text(json.dumps(row) + "\n", encoding="utf-8")
    done = runs.command("reading", *map(str, manifests), reads=[str(tmp_path / "in")])
    assert done["code"] == 0, done["said"]
    *said, good = json.loads(done["said"].splitlines()[-1])
    assert good == "kept"  # what is watched is what reads
    assert len(said) == len(names) and "kept" not in said
    assert done["operations"] == []
    commanded = names if FULL else names[:1]
    for number in range(len(commanded)):
        manifest = f"data.train.manifest={manifests[number]}"
        watched = [str(runs.place), str(tmp_path / "in")]
        done = runs.command("peft_whisper.train", "tiny.yaml", "name=led", manifest, reads=watched)
        assert done["code"] == 3 and "Traceback" not in done["said"], done["said"]
        assert done["operations"] == []
    print(
        f"\n{len(said)} hostile paths, {len(commanded)} of them through the whole command: "
        "0 kept, 0 files opened outside of the manifest's folder"
    )


def test_the_watch_sees_what_is_read(runs: Runs, tmp_path: Path) -> None:
    manifest = tmp_path / "good.jsonl"
    soundfile.write(tmp_path / "good.wav", sound(1), 16_000)
    manifest.write_text('{"audio": "good.wav", "text": "words"}\n', encoding="utf-8")
    done = runs.command("reading", str(manifest), reads=[])
    assert [Path(one).name for one in done["operations"]].count("good.wav") >= 1
