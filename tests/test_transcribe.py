"""Transcribe: what is written, what is said of what can't be heard, and whose words they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whispers

from peft_whisper import transcribe
from peft_whisper.errors import DataError, RecipeError, StateError
from peft_whisper.files import seal
from peft_whisper.model.adapters import Adapter, attach, trainable
from peft_whisper.model.find import find_base
from peft_whisper.training import checkpoint
from peft_whisper.training.optim import Masters

REPOSITORY = Path(__file__).resolve().parent.parent
RATE = 16_000


def train(folder: Path, name: str, seed: int) -> None:
    """A run called `name`, whose adapter has random weights that matter."""
    base = find_base(str(folder / "base"))
    torch.manual_seed(seed)
    model = attach(base.load("float32"), Adapter(4, 8, 0.0, range(2), range(2), ("q", "v", "fc2")))
    for key, parameter in trainable(model).items():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=3.0)
    masters = Masters(trainable(model), torch.float32)
    weights = checkpoint.folder_of(folder / "checkpoints" / name, 1)
    checkpoint.save_weights(weights, model, masters)
    seal(weights, {})
    target = folder / "outputs" / name / "adapter"
    target.parent.mkdir(parents=True)
    checkpoint.publish(folder / "checkpoints" / name, 1, target, base, {"method": "lora"})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with a base, two runs on it, and sounds good and bad."""
    folder = tmp_path_factory.mktemp("place")
    whispers.save_base(folder / "base", ".en", 80)
    before = Path.cwd()
    os.chdir(folder)  # so that the adapters' base is found by a relative name
    try:
        train(Path(), "one", 1)
        train(Path(), "two", 2)
    finally:
        os.chdir(before)
    (folder / "talks" / "more").mkdir(parents=True)
    noise = np.random.default_rng(1).standard_normal((3 * RATE, 2)) * 0.1
    soundfile.write(folder / "talks" / "a.wav", noise, RATE)
    soundfile.write(folder / "talks" / "more" / "b.flac", noise[:RATE, 0], 8_000)
    (folder / "talks" / "notes.txt").write_text("no sound, and not looked at")
    (folder / "bad").mkdir()
    (folder / "bad" / "empty.wav").write_bytes(b"")
    (folder / "bad" / "text.mp3").write_text("no sound at all")
    soundfile.write(folder / "bad" / "good.wav", noise[:RATE], RATE)
    whole = (folder / "talks" / "a.wav").read_bytes()
    (folder / "bad" / "cut.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "silent.wav", np.zeros(40 * RATE), RATE)
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch) -> None:
    """In that folder; and a model that knows nothing is not let talk for long."""
    monkeypatch.chdir(place)
    whispers.say_little(monkeypatch)


def files(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


def process(*arguments: str, sound: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "peft_whisper.transcribe", *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"},
        stdin=sound.open("rb") if sound else None,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_gives_a_file_for_each_sound_and_format(tmp_path: Path, capsys) -> None:
    command = ["outputs/one/adapter", "talks", "--to", str(tmp_path), "--format", "txt", "json"]
    assert transcribe.main(command) == 0
    found = files(tmp_path)
    assert set(found) == {"a.txt", "a.json", "more/b.txt", "more/b.json"}
    assert found["a.txt"].splitlines() == [
        one["text"] for one in json.loads(found["a.json"])["segments"]
    ]
    assert found["a.txt"]
    assert capsys.readouterr().out == ""
    # What is there is kept, what is missing is made.
    (tmp_path / "a.txt").write_text("corrected by hand")
    (tmp_path / "more" / "b.json").unlink()
    assert transcribe.main(command) == 0
    assert files(tmp_path) == found | {"a.txt": "corrected by hand"}
    assert "a.txt is there already" in capsys.readouterr().err
    with pytest.raises(StateError, match="all of it is in"):
        transcribe.main(command)


def test_what_cannot_be_heard_is_named_and_the_others_go_on(tmp_path: Path, capsys) -> None:
    command = ["base", "bad", "gone.wav", "--to", str(tmp_path), "--format", "srt"]
    assert transcribe.main(command) == 1
    said = capsys.readouterr().err
    for name, cause in {
        "bad/empty.wav": "unreadable: the file has 0 bytes",
        "bad/text.mp3": "unreadable: ",
        "bad/cut.wav": "shortened: 50%",
        "gone.wav": "unreadable: no such file",
    }.items():
        assert said.count(f"{name}: {cause}") == 1
    assert "4 failed: " in said
    assert set(files(tmp_path)) == {"good.srt"}


def test_sound_from_a_pipe_and_text_into_one(demo: Path) -> None:
    """By Whisper tiny.en, in processes of their own."""
    model, sound = str(demo / "whisper-tiny.en"), demo / "speech" / "clean" / "conf-muted.flac"
    piped = process(model, "-", sound=sound)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == "You are now muted.\n"
    several = process(model, "gone.wav", str(sound), "bad/empty.wav")
    assert several.returncode == 1
    assert several.stdout == piped.stdout
    assert "Traceback" not in several.stderr


def test_silence_has_no_words_and_that_is_said(capsys) -> None:
    assert transcribe.main(["base", "silent.wav", "--format", "vtt"]) == 0
    out, err = capsys.readouterr()
    assert out == "WEBVTT\n\n"
    assert "silent.wav: base heard no speech in it" in err


def test_each_adapter_says_beside_others_what_it_says_alone(tmp_path: Path, capsys) -> None:
    together = ["base", "talks", "--adapter", "outputs/one", "--adapter", "outputs/two/adapter"]
    assert transcribe.main([*together, "--to", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out
    for name in ("one", "two"):
        assert f"talks/a.wav: base and {name} differ in" in said
    assert "[-" in said and "{+" in said
    for name in ("base", "outputs/one", "outputs/two"):
        alone = tmp_path / Path(name).name
        assert transcribe.main([name, "talks", "--to", str(alone)]) == 0
        assert files(alone) == files(tmp_path / "all" / Path(name).name)
    assert len({str(files(tmp_path / name)) for name in ("base", "one", "two")}) == 3


def test_compared_with_its_base(capsys) -> None:
    assert transcribe.main(["outputs/one", "talks/a.wav", "--compare"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("talks/a.wav: base and one differ in")
    assert len(said) > 1


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        (["base", "bad", "--format", "srt"], RecipeError, "^--format: .*give --to"),
        (["base", "silent.wav", "--format", "srt", "vtt"], RecipeError, "^--format: "),
        (["base", "silent.wav", "--compare"], RecipeError, "^--compare: base is no trained model"),
        (["base", "silent.wav", "--to", "silent.wav"], RecipeError, "^--to: .* is a file"),
        (["base", "silent.wav", "--to", "/proc/a/b"], RecipeError, "^--to: .*give another"),
        (["base", "silent.wav", "--language", "de"], RecipeError, "^--language: .*'de'"),
        (["base", "talks/a.wav", "bad/../talks/a.wav"], RecipeError, "both be called a"),
        (["nowhere/at/all", "silent.wav"], RecipeError, "^nowhere/at/all is not a folder"),
        (["base", "outputs/one"], DataError, "outputs/one holds no .wav"),
        (["base", "silent.wav", "--adapter", "base"], StateError, "holds no peft_whisper.json"),
        (["outputs/one", "silent.wav", "--adapter", "outputs/one"], RecipeError, "called one"),
    ],
)
def test_clumsy_arguments_get_a_sentence(arguments, kind, match) -> None:
    with pytest.raises(kind, match=match):
        transcribe.main(arguments)


def test_an_adapter_of_another_base_is_refused(place: Path) -> None:
    whispers.save_base(place / "other", ".en", 80, seed=2)
    with pytest.raises(StateError, match="Equal shapes do not make it fit"):
        transcribe.main(["other", "silent.wav", "--adapter", "outputs/one"])


def test_real_speech_has_its_words_at_their_times(demo: Path, tmp_path: Path, monkeypatch) -> None:
    """Three prompts with pauses, by Whisper tiny.en: found within half a second."""
    monkeypatch.undo()
    parts, places, at = [], [], 0
    for name in ("conf-getchannel", "conf-getconfno", "conf-onlyperson"):
        wave, rate = soundfile.read(demo / "speech" / "clean" / f"{name}.flac", dtype="float32")
        parts += [np.zeros(2 * rate, np.float32), wave]
        places.append(((at + 2 * rate) / rate, (at + 2 * rate + len(wave)) / rate))
        at += 2 * rate + len(wave)
    soundfile.write(tmp_path / "three.wav", np.concatenate(parts), rate)
    command = [str(demo / "whisper-tiny.en"), str(tmp_path / "three.wav"), "--format", "json"]
    assert transcribe.main([*command, "--to", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "three.json").read_text(encoding="utf-8"))["segments"]
    assert len(found) == 3
    for one, (start, end) in zip(found, places, strict=True):
        assert one["start_s"] == pytest.approx(start, abs=0.5)
        assert one["end_s"] == pytest.approx(end, abs=0.5)
        assert " ".join(word["text"] for word in one["words"]) == one["text"]
