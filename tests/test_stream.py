"""A run's batches: the same whoever makes them, made ahead, and a dead loader is one sentence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from peft_whisper.data.audio import AudioRef
from peft_whisper.data.audit import Clip
from peft_whisper.data.batches import Batch
from peft_whisper.data.epochs import Context, Layout
from peft_whisper.data.labels import Labels
from peft_whisper.errors import DataError, NoRoomError
from peft_whisper.recipe_speech import Data, Source
from peft_whisper.training.stream import Course, living_loaders, stream_updates
from tests.whispers import VOCABULARIES, tokenizer

RATE = 16_000
SOURCE = Source(manifest="unused.jsonl")


def stored(path: Path, seconds: float = 1.0, seed: int = 0) -> None:
    wave = 0.1 * np.random.default_rng(seed).standard_normal(round(RATE * seconds))
    soundfile.write(path, wave, RATE)


def clip(number: int, audio: AudioRef, seconds: float) -> Clip:
    return Clip(f"x {number}", audio, "so it is" * (1 + number % 3), "en", None, seconds, 9, "0")


def course(clips: list[Clip], updates: int, workers: int) -> Course:
    return Course(
        clips=clips,
        labels=Labels(tokenizer(".en"), VOCABULARIES[".en"]),
        n_mels=80,
        context=Context(8),
        data=Data(train=SOURCE, validation=SOURCE, test=SOURCE, workers=workers, timestamps=0.5),
        layout=Layout(2, 2, 1),
        updates=updates,
        seed=3,
    )


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    made = []
    for number in range(10):
        seconds, path = 0.4 + 0.7 * number, tmp_path / f"{number}.wav"
        stored(path, seconds, number)
        made.append(clip(number, AudioRef(path=str(path)), round(RATE * seconds) / RATE))
    return made


def as_bytes(batch: Batch) -> tuple[bytes, ...]:
    tensors = (batch.sound, batch.decoder_input_ids, batch.index, batch.targets)
    return tuple(tensor.numpy().tobytes() for tensor in tensors)


def test_loader_processes_change_nothing(clips: list[Clip]) -> None:
    """Three epochs of three updates, drawn timestamps included: equal to the last bit."""
    runs = [
        [[(b.clip_ids, as_bytes(b)) for b in step] for step in stream_updates(made, rank=0)]
        for made in (course(clips, 8, workers) for workers in (0, 1, 2))
    ]
    assert len(runs[0]) == 8
    assert runs[0] == runs[1] == runs[2]
    epochs = [
        sorted(name for step in runs[0][first : first + 3] for names, _ in step for name in names)
        for first in (0, 3)
    ]
    assert epochs == [sorted(one.id for one in clips)] * 2
    assert runs[0][0] != runs[0][3]  # another epoch, another order


def test_loader_processes_live_as_long_as_the_run(clips: list[Clip]) -> None:
    seen = []
    for _ in stream_updates(course(clips, 9, workers=2), rank=0):
        seen.append({child.pid for child in multiprocessing.active_children()})
    assert len(seen[0]) >= 2
    assert seen[0] == seen[4] == seen[6]  # three epochs; at the very end they are let go


class Counted:
    """A table's cells that count how often they are read."""

    def __init__(self, data: bytes):
        self.data, self.reads = data, 0

    def __getitem__(self, row: int) -> bytes:
        self.reads += 1
        return self.data


def test_without_loader_processes_the_next_update_is_made_during_a_step(tmp_path: Path) -> None:
    stored(tmp_path / "a.wav")
    cells = Counted((tmp_path / "a.wav").read_bytes())
    clips = [clip(number, AudioRef(cells=cells, row=number), 1.0) for number in range(8)]
    updates = stream_updates(course(clips, 2, workers=0), rank=0)
    next(updates)
    deadline = time.monotonic() + 20
    while cells.reads < 8 and time.monotonic() < deadline:  # nobody asks for more
        time.sleep(0.01)
    assert cells.reads == 8
    updates.close()


def test_every_tensor_of_a_batch_moves(clips: list[Clip]) -> None:
    (batch, *_) = next(stream_updates(course(clips, 1, workers=0), rank=0))
    moved = batch.to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 4 and all(tensor.is_meta for tensor in tensors)


# What goes wrong


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """A hang is a failure here, not a wait."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"nothing for {seconds} s"))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_loader_process_is_one_sentence(how, clips: list[Clip]) -> None:
    others = set(multiprocessing.active_children())

    def train() -> None:
        for number, _ in enumerate(stream_updates(course(clips, 90, workers=2), rank=0)):
            if number == 1:
                os.kill((set(multiprocessing.active_children()) - others).pop().pid, how)

    with no_longer_than(60), pytest.raises(NoRoomError) as caught, living_loaders():
        train()
    said = str(caught.value)
    print(said)
    assert said.startswith("a process that loads speech died: ") and "\n" not in said
    assert "lower data.workers" in said


def test_other_errors_of_a_step_pass_by() -> None:
    with pytest.raises(RuntimeError, match="shapes"), living_loaders():
        raise RuntimeError("shapes do not match")


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:16_000])


def lengthen(path: Path) -> None:
    stored(path, 6.0)  # beyond the 256 positions of its batch


def shorten(path: Path) -> None:
    stored(path, 0.5)


CHANGES = {
    delete: "unreadable: no such file; ",
    cut: "shortened: ",
    lengthen: "duration differs: 1.0000 s then, 6.0000 s now; ",
    shorten: "duration differs: 1.0000 s then, 0.5000 s now; ",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_changed_since_the_audit_is_one_sentence(change, workers, tmp_path: Path) -> None:
    stored(tmp_path / "a.wav")
    changed = clip(1, AudioRef(path=str(tmp_path / "a.wav")), 1.0)
    assert len(next(stream_updates(course([changed], 1, workers), rank=0))) == 1
    change(tmp_path / "a.wav")
    with pytest.raises(DataError) as caught:
        next(stream_updates(course([changed], 1, workers), rank=0))
    said = str(caught.value)
    assert said.startswith("clip x 1 has changed since it was checked: " + CHANGES[change])
    assert said.endswith("; put it back as it was, or start again")
    assert "\n" not in said
