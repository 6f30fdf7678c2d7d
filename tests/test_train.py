"""Whole runs in real processes, on tiny random models and generated sound."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import whispers

from peft_whisper.errors import Stopped
from peft_whisper.signals import SIGNALS, Stop
from peft_whisper.train import agreed

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = ["red", "bravo", "six", "cover", "hold", "fire", "left", "right", "move", "stop"]


def sound(number: int) -> np.ndarray:
    """A noisy tone of one to three seconds, another for each number."""
    rng = np.random.default_rng(number)
    time = np.arange(int(16_000 * rng.uniform(1, 3))) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 30 * number) * time)
    return (tone + 0.01 * rng.standard_normal(time.size)).astype(np.float32)


def transcript(number: int) -> str:
    rng = np.random.default_rng(1000 + number)
    return " ".join([WORDS[i] for i in rng.integers(len(WORDS), size=3)] + [str(number)])


def manifest(folder: Path, name: str, numbers: range) -> None:
    rows = []
    for number in numbers:
        soundfile.write(folder / f"{number}.wav", sound(number), 16_000)
        rows.append({"audio": f"{number}.wav", "text": transcript(number)})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


RECIPE = """
base: {model: base}
data:
  train: {manifest: train.jsonl}
  validation: {manifest: validation.jsonl}
  test: {manifest: test.jsonl}
  language: en
adapter: {rank: 4, alpha: 8}
training: {updates: 4, batch: 4, accumulation: 2, learning_rate: 1e-3, warmup: 1}
evaluation: {every: 2, batch: 4, bootstrap: 100, max_tokens: 8}
checkpoints: {keep_last: 1}
"""


def make_place(folder: Path) -> Path:
    """A working folder with a tiny multilingual base, speech, and a recipe."""
    whispers.save_base(folder / "base", "multilingual", 80)
    for name, numbers in (
        ("train", range(20)),
        ("validation", range(20, 25)),
        ("test", range(25, 32)),
    ):
        manifest(folder, name, numbers)
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def command(place: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(place / "hub"),
    }
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def train(place: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
    return command(place, "peft_whisper.train", *arguments, expect=expect)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "train"]


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A run of the tiny recipe that went to its end."""
    train(place, "tiny.yaml")
    return place / "outputs" / "tiny"


def test_a_run_leaves_the_promised_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "log.jsonl",
        "rejected.jsonl",
        "predictions.jsonl",
        "metrics.json",
        "report.html",
        "README.md",
        "adapter",
        "checkpoints",
    }
    metrics = json.loads((finished / "metrics.json").read_text())
    systems = {"base", "tuned", "base_full_context", "tuned_full_context"}
    assert set(metrics) == systems | {"difference", "training"}
    for system in systems:
        assert metrics[system]["clips"] == 7
        assert metrics[system]["words"] == 28
    assert metrics["training"]["updates"] == 4
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(number) for number in range(25, 32)]
    assert all(systems <= set(row) for row in rows)


def test_no_file_of_a_run_names_a_path_of_this_machine(finished: Path, place: Path) -> None:
    looked = [path for path in finished.rglob("*") if path.is_file()]
    assert len(looked) > 12
    for path in looked:
        content = path.read_bytes()
        for secret in (str(place), str(REPOSITORY), str(Path.home()) + "/"):
            assert secret.encode() not in content, f"{path.name} holds {secret}"


def test_the_best_checkpoint_survives_rotation(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    validations = [row for row in rows if row["event"] == "validation" and row["update"]]
    assert [row["update"] for row in validations] == [2, 4]
    best = min(validations, key=lambda row: (row["mer"], row["update"]))["update"]
    kept = {path.name for path in (finished / "checkpoints").iterdir()}
    assert kept == {f"update-{best:06d}", "update-000004"}
    facts = json.loads((finished / "adapter" / "peft_whisper.json").read_text())
    assert facts["update"] == best


def test_an_existing_run_is_refused_and_kept_by_fresh(place: Path, finished: Path) -> None:
    metrics = (finished / "metrics.json").read_bytes()
    refused = train(place, "tiny.yaml", expect=4)
    assert "--fresh" in refused.stderr
    assert (finished / "metrics.json").read_bytes() == metrics


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    place: Path, finished: Path
) -> None:
    train(place, "tiny.yaml", "name=again")
    train(place, "tiny.yaml", "name=other", "seed=2")
    again, other = place / "outputs" / "again", place / "outputs" / "other"
    assert losses(again) == losses(finished)
    assert losses(other) != losses(finished)
    weights = "adapter/adapter_model.safetensors"
    assert (again / weights).read_bytes() == (finished / weights).read_bytes()
    assert (other / weights).read_bytes() != (finished / weights).read_bytes()
    predictions = (again / "predictions.jsonl").read_bytes()
    assert predictions == (finished / "predictions.jsonl").read_bytes()


def test_two_processes_follow_the_path_of_one(place: Path, finished: Path) -> None:
    """Two ranks of 2 clips see other micro-batches than one of 4, but the same 8 clips."""
    launch = ("torch.distributed.run", "--nproc_per_node", "2", "-m", "peft_whisper.train")
    same = "context.margin_positions=1500"  # whatever a clip shares a batch with
    command(place, *launch, "tiny.yaml", "name=two", "training.batch=2", same)
    train(place, "tiny.yaml", "name=one", same)
    one, two = losses(place / "outputs" / "one"), losses(place / "outputs" / "two")
    worst = max(abs(a - b) for a, b in zip(one, two, strict=True))
    print(f"two processes: loss differs from one process by at most {worst:.1e}")
    assert worst < 1e-4


def test_a_signal_that_comes_while_processes_agree_is_not_forgotten() -> None:
    """It stops nobody at an update that the others do not know of, but all at the next."""
    stop, came, begun = Stop(), [], []

    def gather(heard: torch.Tensor) -> torch.Tensor:
        if not came:
            came.append(signal.raise_signal(signal.SIGTERM))
        return heard

    def updates(check: Callable[[], None]) -> None:
        with stop.waiting(lambda _text: None):
            for update in (1, 2, 3):
                begun.append(update)
                check()

    before = [(one, signal.getsignal(one)) for one in SIGNALS]
    try:
        stop.listen()
        with pytest.raises(Stopped):
            updates(agreed(stop, SimpleNamespace(device="cpu", gather=gather)))
        assert begun == [1, 2]
    finally:
        for one, handler in before:
            signal.signal(one, handler)


TWO = ("torch.distributed.run", "--nproc_per_node", "2", "-m", "peft_whisper.train")
ENDLESS = ("training.updates=1000000", "evaluation.every=10", "training.batch=2")
ENDLESS += ("checkpoints.keep_last=10000", "checkpoints.minutes=0.0005")


def stopped(place: Path, name: str, after: int) -> int:
    """Two processes on a run without end, sent SIGTERM after an update; the one it stopped at."""
    run = place / "outputs" / name
    running = subprocess.Popen(
        [sys.executable, "-m", *TWO, "tiny.yaml", *ENDLESS, f"name={name}"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (run / "log.jsonl").exists() or len(losses(run)) < after:
        assert running.poll() is None
        time.sleep(0.02)
    running.terminate()
    running.wait(timeout=60)
    made = len(losses(run))
    assert (run / "checkpoints" / f"update-{made:06d}").is_dir()
    return made


def test_two_processes_stop_at_one_update_and_go_on(place: Path) -> None:
    """The launcher passes SIGTERM on; each process may hear it at another update.

    However late that is, the run is held against an unbroken one at an update that both kept.
    """
    made = stopped(place, "broken", after=3)
    refused = train(place, "tiny.yaml", *ENDLESS, "name=broken", expect=4)
    assert "begun by 2 processes" in refused.stderr
    until = (made // 10 + 1) * 10
    for name in ("broken", "unbroken"):
        assert stopped(place, name, after=until + 1) > until
    runs = [place / "outputs" / name for name in ("broken", "unbroken")]
    assert losses(runs[0])[:until] == losses(runs[1])[:until]
    for file in ("adapter_model.safetensors", "optimizer.safetensors"):
        broken, unbroken = (run / "checkpoints" / f"update-{until:06d}" / file for run in runs)
        assert broken.read_bytes() == unbroken.read_bytes()


def test_evaluate_repeats_the_runs_figures(place: Path, finished: Path) -> None:
    before = json.loads((finished / "metrics.json").read_text())
    command(place, "peft_whisper.evaluate", "outputs/tiny")
    assert json.loads((finished / "metrics.json").read_text()) == before
    refused = command(
        place, "peft_whisper.evaluate", "outputs/tiny", "evaluation.normalizer=raw", expect=2
    )
    assert "--into" in refused.stderr
    command(
        place,
        "peft_whisper.evaluate",
        "outputs/tiny",
        "evaluation.normalizer=raw",
        "--into",
        "scores",
    )
    scores = json.loads((place / "scores" / "metrics.json").read_text())
    assert scores["tuned"]["normalizer"] == "raw"
    assert (place / "scores" / "report.html").is_file()


def test_full_fine_tune_publishes_a_model(place: Path) -> None:
    from safetensors.torch import load_file

    train(place, "tiny.yaml", "name=full", "adapter={method: none}", "training.updates=2")
    run = place / "outputs" / "full"
    before = load_file(place / "base" / "model.safetensors")
    after = load_file(run / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == set(before) - {"model.encoder.embed_positions.weight"}
    assert not (run / "adapter").exists()
    assert json.loads((run / "metrics.json").read_text())["tuned"]["clips"] == 7


def test_timestamps_and_workers_train_too(place: Path) -> None:
    changes = ("name=stamped", "data.timestamps=0.5", "data.workers=1", "training.updates=2")
    train(place, "tiny.yaml", *changes)
    assert len(losses(place / "outputs" / "stamped")) == 2


def test_patience_stops_early(place: Path) -> None:
    changes = ("name=patient", "training.updates=40", "evaluation.every=1", "evaluation.patience=2")
    train(place, "tiny.yaml", *changes, "training.learning_rate=1e-7")
    run = place / "outputs" / "patient"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["event"] == "stop"
    assert len(losses(run)) == 3  # the first is best, two more do not improve
    assert json.loads((run / "environment.json").read_text())["best"]["update"] == 1


def test_a_bad_clip_stops_the_run_with_its_name(place: Path) -> None:
    good = (place / "train.jsonl").read_text()
    soundfile.write(place / "silence.wav", np.zeros(16_000), 16_000)
    row = json.dumps({"audio": "silence.wav", "text": "nothing"})
    (place / "bad.jsonl").write_text(good + row + "\n", encoding="utf-8")
    stopped = train(place, "tiny.yaml", "name=bad", "data.train.manifest=bad.jsonl", expect=3)
    assert "silence" in stopped.stderr
    rejected = (place / "outputs" / "bad" / "rejected.jsonl").read_text()
    assert json.loads(rejected)["cause"] == "silent"
    (place / "bad.jsonl").write_text(good, encoding="utf-8")  # repaired: nothing to move aside
    train(place, "tiny.yaml", "name=bad", "data.train.manifest=bad.jsonl", "training.updates=2")
    assert (place / "outputs" / "bad" / "metrics.json").is_file()


def test_a_folder_with_other_files_is_not_taken_for_a_run(place: Path) -> None:
    mine = place / "outputs" / "mine"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("keep me", encoding="utf-8")
    refused = train(place, "tiny.yaml", "name=mine", expect=4)
    assert "other files" in refused.stderr
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_a_tracker_gets_the_curves_and_a_missing_one_is_named(place: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(place, "tiny.yaml", "name=tracked", "track=tensorboard", "training.updates=2")
    events = EventAccumulator(str(place / "outputs" / "tracked" / "tracked")).Reload()
    assert {"train/loss", "validation/mer"} <= set(events.Tags()["scalars"])
    shown = [event.value for event in events.Scalars("train/loss")]
    assert shown == pytest.approx(losses(place / "outputs" / "tracked"))
    refused = train(place, "tiny.yaml", "name=untracked", "track=trackio", expect=2)
    assert "peft-whisper[track]" in refused.stderr
    assert not (place / "outputs" / "untracked").exists()


def test_the_a10_recipe_trains_two_steps(tmp_path: Path) -> None:
    """lora_a10.yaml as it ships, on a random large-v3: 128 mels, 51,866 tokens, bf16, 8-bit Adam.

    The data set's id is also a folder here, which is where `datasets` looks first; so the Hub
    source is read by the code that reads the Hub.
    """
    from datasets import Audio, Dataset

    whispers.save_base(tmp_path / "tiny-v3", "large-v3", 128)
    folder = tmp_path / "pauljunsukhan" / "throatmic_codered"
    folder.mkdir(parents=True)
    paths = []
    for number in range(60):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, sound(number), 16_000)
        paths.append({"bytes": path.read_bytes(), "path": path.name})
    columns = {
        "audio": paths,
        "text": [transcript(number) for number in range(60)],
        "duration": [len(sound(number)) / 16_000 for number in range(60)],
    }
    rows = Dataset.from_dict(columns).cast_column("audio", Audio(decode=False))
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    recipe = REPOSITORY / "recipes" / "lora_a10.yaml"
    two_steps = ("training.updates=2", "training.warmup=1", "evaluation.every=1")
    short = ("evaluation.max_tokens=8",)  # a random model never says that it is done
    launch = ("accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1")
    quiet = ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "peft_whisper.train")
    command(tmp_path, *launch, *quiet, str(recipe), "base.model=tiny-v3", *two_steps, *short)
    run = tmp_path / "outputs" / "lora_a10"
    found = losses(run)
    assert len(found) == 2
    assert all(np.isfinite(found))
    recorded = (run / "recipe.yaml").read_text()
    for promise in ("bfloat16", "bf16", "adamw8bit", "pauljunsukhan/throatmic_codered"):
        assert promise in recorded
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    print(f"lora_a10.yaml on a random large-v3: 2 updates, losses {found}, rank {config['r']}")
