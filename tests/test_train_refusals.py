"""Runs in real processes that must be refused, named or kept, and those that only look alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import whispers
from test_train import REPOSITORY, make_place, train


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def test_the_tuned_scores_are_those_of_what_was_trained(place: Path) -> None:
    hard = ("training.learning_rate=0.1", "training.updates=8", "evaluation.every=8")
    train(place, "tiny.yaml", "name=hard", *hard)
    lines = (place / "outputs" / "hard" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert any(row["base"] != row["tuned"] for row in rows)
    assert any(row["base_full_context"] != row["tuned_full_context"] for row in rows)


def test_two_runs_cannot_write_into_one_folder(place: Path) -> None:
    from peft_whisper.run_folder import lock

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # holds the lock as a run does, until it is told to end
        lock(place / "outputs" / "twin")
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(reader, 1) == b"x"
        refused = train(place, "tiny.yaml", "name=twin", expect=4)
        assert "another run is writing" in refused.stderr
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not (place / "outputs" / "twin").exists()


def test_a_warmup_longer_than_the_run_is_refused(place: Path) -> None:
    changes = ("name=warm", "training={epochs: 1, batch: 16, learning_rate: 1e-3, warmup: 50}")
    refused = train(place, "tiny.yaml", *changes, expect=2)
    assert "training.warmup (50) must be less than the run's updates (2" in refused.stderr


def test_a_fresh_start_that_fails_leaves_the_old_run_where_it_is(place: Path) -> None:
    train(place, "tiny.yaml", "name=kept", "training.updates=2")
    metrics = (place / "outputs" / "kept" / "metrics.json").read_bytes()
    train(place, "tiny.yaml", "name=kept", "base.model=no_such_folder/x/y", "--fresh", expect=2)
    assert (place / "outputs" / "kept" / "metrics.json").read_bytes() == metrics
    assert not (place / "outputs" / "kept.old-1").exists()


def test_transcripts_without_a_word_are_named_before_training(place: Path) -> None:
    rows = [json.loads(line) for line in (place / "test.jsonl").read_text().splitlines()]
    for name, count in (("one", 1), ("all", len(rows))):
        told = [row | {"text": "[noise]"} for row in rows[:count]] + rows[count:]
        text = "".join(json.dumps(row) + "\n" for row in told)
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
    quick = ("training.updates=2", "evaluation.every=2")
    heard = train(place, "tiny.yaml", "name=noisy", "data.test.manifest=one.jsonl", *quick)
    assert "1 of 7 test clips have no word" in heard.stdout
    stopped = train(place, "tiny.yaml", "name=mute", "data.test.manifest=all.jsonl", expect=3)
    assert "there is nothing to score against" in stopped.stderr
    assert not (place / "outputs" / "mute" / "log.jsonl").exists()


def test_an_english_base_is_not_taught_another_language(place: Path) -> None:
    whispers.save_base(place / "english", ".en", 80)
    changes = ("name=german", "base.model=english", "data.language=de")
    assert "English only" in train(place, "tiny.yaml", *changes, expect=2).stderr
    train(
        place,
        "tiny.yaml",
        "name=plain",
        "base.model=english",
        "data.language=null",
        "training.updates=2",
        "evaluation.every=2",
    )
    card = (place / "outputs" / "plain" / "README.md").read_text()
    assert "language=" not in card.split("```")[1]


def test_an_output_that_cannot_be_made_is_one_sentence(place: Path) -> None:
    (place / "a_file").write_text("x", encoding="utf-8")
    refused = train(place, "tiny.yaml", "output=a_file", expect=2)
    assert "a_file" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_reader_that_goes_away_does_not_end_a_training(place: Path) -> None:
    shell = (
        f"{sys.executable} -m peft_whisper.train tiny.yaml name=headed training.updates=2 | head -1"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        ["bash", "-c", shell], cwd=place, env=environment, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr
    assert (place / "outputs" / "headed" / "metrics.json").is_file()


def test_a_base_elsewhere_is_published_by_its_name_alone(place: Path) -> None:
    base = f"base.model={(place / 'base').resolve()}"
    train(place, "tiny.yaml", "name=elsewhere", base, "training.updates=2", "evaluation.every=2")
    run = place / "outputs" / "elsewhere"
    for name in ("README.md", "environment.json", "adapter/adapter_config.json"):
        text = (run / name).read_text(encoding="utf-8")
        assert '"base"' in text or "base," in text
        assert str(place.resolve()) not in text
