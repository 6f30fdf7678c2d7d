"""Evaluate: what is damaged is told before any work, and a failure leaves everything as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import whispers
from test_train import RECIPE, manifest, train

from peft_whisper import evaluate
from peft_whisper.errors import DataError, RecipeError, StateError
from peft_whisper.scoring.decode import Decoder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with a finished run in outputs/tiny."""
    folder = tmp_path_factory.mktemp("place")
    whispers.save_base(folder / "base", "multilingual", 80)
    whispers.save_base(folder / "other", "multilingual", 80, seed=2)
    manifest(folder, "train", range(12))
    manifest(folder, "validation", range(12, 15))
    manifest(folder, "test", range(15, 18))
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    train(folder, "tiny.yaml", "training.updates=2")
    return folder


@pytest.fixture
def run(place: Path, monkeypatch) -> Path:
    """A copy of the run to damage; it is also where to look for what was left behind."""
    monkeypatch.chdir(place)
    copy = place / "copies" / "run"
    shutil.rmtree(copy.parent, ignore_errors=True)
    return Path(shutil.copytree(place / "outputs" / "tiny", copy))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, hidden ones too, with what it holds."""
    found = {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
             for p in folder.rglob("*")}  # fmt: skip
    assert found
    return found


def refused(run: Path, kind: type[Exception], match: str, *more: str) -> None:
    """Evaluating stops with a sentence; nothing beside or in the run has changed."""
    for into in ([], ["--into", str(run.parent / "scores")]):
        if more and not into:
            continue
        before = contents(run.parent)
        with pytest.raises(kind, match=match):
            evaluate.main([str(run), *into, *more])
        assert contents(run.parent) == before


DAMAGE = [
    ("recipe.yaml", "base: ["),
    ("recipe.yaml", "{}"),
    ("environment.json", None),
    ("environment.json", "{"),
    ("environment.json", "{}"),
    ("environment.json", "[]"),
    ("log.jsonl", None),
    ("log.jsonl", "{"),
    ("log.jsonl", "3\n"),
    ("metrics.json", "{"),
    ("adapter/peft_whisper.json", None),
    ("adapter/peft_whisper.json", "{"),
    ("adapter/peft_whisper.json", "{}"),
    ("adapter/adapter_config.json", None),
    ("adapter/adapter_model.safetensors", None),
    ("adapter/adapter_model.safetensors", "cut"),
]


@pytest.mark.parametrize(("name", "content"), DAMAGE)
def test_a_damaged_run_is_told_before_the_speech_is_read(run: Path, name, content) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content, encoding="utf-8")
    aside = Path("test.jsonl").rename("test.aside")  # reading speech would be another error
    try:
        last = name.rpartition("/")[2].replace("adapter_model", "")
        refused(run, StateError, last.replace(".", r"\."))
    finally:
        aside.rename("test.jsonl")


def test_a_nested_key_of_the_environment_is_named(run: Path) -> None:
    facts = json.loads((run / "environment.json").read_text())
    del facts["base"]["fingerprint"]
    (run / "environment.json").write_text(json.dumps(facts))
    refused(run, StateError, r"environment\.json lacks base\.fingerprint")


def test_no_run_at_all_is_told(run: Path) -> None:
    refused(run / "checkpoints", StateError, "not the folder of a finished run")
    (run / "recipe.yaml").unlink()
    refused(run, StateError, r"expected recipe\.yaml")


def test_another_base_is_refused_before_the_speech_is_read(run: Path) -> None:
    changes = ("base.model=other", "data.test.manifest=nowhere.jsonl")
    refused(run, StateError, "Equal shapes do not make it fit", *changes)


def test_a_failure_leaves_nothing_and_the_corrected_command_works(run: Path) -> None:
    Path("bad.jsonl").write_text('{"audio": "nowhere.wav", "text": "nothing"}\n')
    refused(run, DataError, "peft-whisper explore", "data.test.manifest=bad.jsonl")
    before = contents(run)
    into = run.parent / "scores"
    assert evaluate.main([str(run), "--into", str(into), "evaluation.max_tokens=4"]) == 0
    assert contents(run) == before
    assert {path.name for path in into.iterdir()} == {
        "recipe.yaml", "environment.json", "log.jsonl", "rejected.jsonl",
        "predictions.jsonl", "metrics.json", "report.html", "README.md",
    }  # fmt: skip
    assert "evaluated" in json.loads((into / "environment.json").read_text())
    assert [path.name for path in into.parent.iterdir() if path.name.startswith(".")] == []


def test_in_place_only_the_scores_change(run: Path) -> None:
    before = contents(run)
    assert evaluate.main([str(run)]) == 0
    after = contents(run)
    assert set(after) == set(before)
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= set(evaluate.WRITTEN)
    assert "environment.json" in changed
    assert after["metrics.json"] == before["metrics.json"]


def test_the_base_is_decoded_once_for_all_runs_on_the_same_speech(
    run: Path, monkeypatch, tmp_path: Path
) -> None:
    """What it made of the clips is kept; damaged, or of other clips, it is decoded again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    heard: list[int] = []
    decode = Decoder.transcribe

    def counted(self: Decoder, clips: Any, *rest: Any) -> dict[str, str]:
        heard.append(len(clips))
        return decode(self, clips, *rest)

    monkeypatch.setattr(Decoder, "transcribe", counted)

    def decoded(*arguments: str) -> list[int]:
        heard.clear()
        assert evaluate.main([str(run), *arguments]) == 0
        return list(heard)

    assert decoded() == [3, 3, 3, 3]
    first = (run / "predictions.jsonl").read_bytes()
    assert decoded() == [3, 3]
    assert (run / "predictions.jsonl").read_bytes() == first
    (kept,) = (tmp_path / "peft_whisper").glob("heard-*.json")
    for damage in ("{", "[]", '{"base": {}, "base_full_context": {}}'):
        kept.write_text(damage)
        assert decoded() == [3, 3, 3, 3]
        assert (run / "predictions.jsonl").read_bytes() == first
    fewer = ("--into", str(run.parent / "fewer"), "data.test.limit=2")
    assert decoded(*fewer) == [2, 2, 2, 2]


def test_a_failure_while_decoding_changes_nothing(run: Path) -> None:
    """LoRA of another width passes every check of headers and fails when it is loaded."""
    from safetensors.torch import load_file, save_file

    path = run / "adapter" / "adapter_model.safetensors"
    save_file({name: t.repeat(2, 2) for name, t in load_file(path).items()}, path)
    refused(run, StateError, r"can't load this adapter .*size mismatch")


def test_a_place_that_cannot_be_written_is_told_before_the_work(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run.parent / "file").write_text("mine")
    before = contents(run.parent)
    gone = "base.model=gone/gone"
    for into in (run.parent / "file" / "m", "/proc/m", ".", "x" * 300):
        with pytest.raises(RecipeError, match=r"^--into: "):
            evaluate.main([str(run), "--into", str(into), gone])
    with pytest.raises(StateError, match="is not empty"):
        evaluate.main([str(run), "--into", str(run), gone])
    assert contents(run.parent) == before


def test_speech_without_a_word_is_told_before_it_is_decoded(run: Path) -> None:
    rows = [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]
    told = "".join(json.dumps(row | {"text": "(laughs)"}) + "\n" for row in rows)
    Path("laughs.jsonl").write_text(told, encoding="utf-8")
    refused(run, DataError, "nothing to score against", "data.test.manifest=laughs.jsonl")
