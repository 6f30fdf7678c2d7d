"""Frozen layers run once: the same gradients and losses, nothing run twice, nothing left behind."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import whispers
from accelerate import Accelerator
from rich.console import Console
from test_stream import clip, stored
from test_train import REPOSITORY, command, losses, make_place, train

from peft_whisper.data.audio import AudioRef
from peft_whisper.data.audit import Clip
from peft_whisper.data.batches import Batch
from peft_whisper.data.epochs import Context, Layout, MicroBatch
from peft_whisper.data.labels import Labels
from peft_whisper.errors import NoRoomError
from peft_whisper.model.adapters import Adapter, FirstBackwardCheck, attach, trainable
from peft_whisper.model.encoder import whisper_of
from peft_whisper.recipe_sections import Training
from peft_whisper.recipe_speech import Data, Source
from peft_whisper.training import frozen
from peft_whisper.training.frozen import heard_pairs, micro_batches, run_frozen_layers
from peft_whisper.training.stream import Course, stream_updates
from peft_whisper.training.updater import Updater

LAYERS = 3
SOURCE = Source(manifest="unused.jsonl")
DECODER_ONLY, TOP_TWO = range(0), range(1, LAYERS)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder, made = tmp_path_factory.mktemp("clips"), []
    for number in range(10):
        seconds, path = 3.4 + 0.7 * number, folder / f"{number}.wav"
        stored(path, seconds, number)
        made.append(clip(number, AudioRef(path=str(path)), round(16_000 * seconds) / 16_000))
    return made


def course(clips: list[Clip], batch: int = 2, updates: int = 5, workers: int = 0) -> Course:
    return Course(
        clips=clips,
        labels=Labels(whispers.tokenizer(".en"), whispers.VOCABULARIES[".en"]),
        n_mels=80,
        context=Context(8),
        data=Data(train=SOURCE, validation=SOURCE, test=SOURCE, workers=workers),
        layout=Layout(batch, 2, 1),
        updates=updates,
        seed=3,
    )


def updater(
    encoder: range, cached: bool, dtype: torch.dtype = torch.float32, **settings: Any
) -> Updater:
    """Adapters on all decoder layers and on these of the encoder; dropout on."""
    base = whispers.model(whispers.config(layers=LAYERS)).to(dtype)
    chosen = Adapter(4, 8, 0.1, encoder, range(LAYERS), ("q", "v", "fc1"))
    torch.manual_seed(7)
    model = attach(base, chosen)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    training = Training(updates=9, learning_rate=1e-2, **settings)
    check = FirstBackwardCheck(whisper_of(model), chosen)
    first = (encoder[0] if encoder else LAYERS) if cached else None
    return Updater(Accelerator(cpu=True), model, training, check, first)


def with_outputs(made: Updater, heard: Course, folder: Path, where: str = "memory") -> Course:
    return run_frozen_layers(heard, made, where, folder, QUIET)


def gradients(made: Updater, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss per token and gradients of the model's own weights, dropout drawn from one seed."""
    torch.manual_seed(5)
    made.model.zero_grad()
    loss = float(made.backward(batches))
    return loss, {name: p.grad.clone() for name, p in trainable(made.model).items()}


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[dict[str, int]]:
    """How often each part of the encoder is run."""
    encoder, calls = whisper_of(model).model.encoder, {}
    parts = {"conv1": encoder.conv1, "conv2": encoder.conv2, "layer_norm": encoder.layer_norm}
    parts |= {f"layer {number}": layer for number, layer in enumerate(encoder.layers)}

    def counter(name: str) -> Any:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    hooks = []
    for name, part in parts.items():
        calls[name] = 0
        hooks.append(part.register_forward_pre_hook(counter(name)))
    yield calls
    for hook in hooks:
        hook.remove()


# The same result


@pytest.mark.parametrize("encoder", [DECODER_ONLY, TOP_TWO], ids=["decoder only", "top 2"])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float32, {}),
        (torch.float32, {"precision": "bf16"}),
        (torch.bfloat16, {"precision": "bf16"}),
        (torch.float32, {"recompute": "all"}),
        (torch.float32, {"recompute": "1/2"}),
    ],
    ids=["fp32", "autocast", "bf16", "recompute all", "recompute half"],
)
def test_gradients_are_equal_bit_for_bit(encoder, dtype, settings, clips, tmp_path) -> None:
    """Where the very clips of a step were run together: here there are but these two."""
    heard = course(clips[:2], updates=1)
    stock = updater(encoder, False, dtype, **settings)
    made = updater(encoder, True, dtype, **settings)
    kept = with_outputs(made, heard, tmp_path)
    (plain,), (batches,) = (list(stream_updates(one, 0)) for one in (heard, kept))
    assert batches[0].sound.dtype == dtype
    stock.forward.train()
    made.forward.train()
    loss, expected = gradients(stock, plain)
    again, found = gradients(made, batches)
    assert again == loss
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert max(float(one.abs().max()) for one in expected.values()) > 1e-3


@pytest.mark.parametrize("encoder", [DECODER_ONLY, TOP_TWO], ids=["decoder only", "top 2"])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_whole_run_follows_the_same_path(encoder, where, clips, tmp_path) -> None:
    """Two epochs and a half of updates; the frozen layers see other batches than the steps do."""
    heard, paths, worst = course(clips, updates=7), [], 0.0
    for cached in (False, True):
        made = updater(encoder, cached)
        ours = with_outputs(made, heard, tmp_path, where) if cached else heard
        path = []
        for number, batches in enumerate(stream_updates(ours, 0)):
            torch.manual_seed(number)
            path.append(made.step(batches, 1.0))
        paths.append((path, dict(made.masters.named)))
    (plain, expected), (again, found) = paths
    for (loss, norm), (loss_, norm_) in zip(plain, again, strict=True):
        worst = max(worst, abs(loss_ / loss - 1), abs(norm_ / norm - 1))
    print(f"{where}: losses and gradient norms differ by {worst:.1e} of themselves at most")
    assert worst < 1e-6
    assert plain[-1][0] < plain[0][0]
    assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-5) for name in expected)


def test_memory_and_disk_and_loader_processes_hold_the_same(clips, tmp_path) -> None:
    made = updater(TOP_TWO, True)
    held = [
        with_outputs(made, course(clips, workers=workers), tmp_path, where).frozen
        for where, workers in (("memory", 0), ("disk", 0), ("disk", 2))
    ]
    assert all(torch.equal(one.rows, held[0].rows) for one in held[1:])
    assert held[0].rows.abs().sum() > 0
    assert list(tmp_path.iterdir()) == []


# What is run, and when


@pytest.mark.parametrize("encoder", [DECODER_ONLY, TOP_TWO], ids=["decoder only", "top 2"])
def test_frozen_layers_are_run_before_training_alone(encoder, clips, tmp_path) -> None:
    made, heard = updater(encoder, True), course(clips)
    first = encoder[0] if encoder else LAYERS
    frozen_parts = ["conv1", "conv2", *(f"layer {number}" for number in range(first))]
    with counted(made.model) as calls:
        kept = with_outputs(made, heard, tmp_path)
        pairs = heard_pairs(heard, 0)
        once = len(list(micro_batches(pairs, len(clips))))
        assert [calls[part] for part in frozen_parts] == [once] * len(frozen_parts)
        assert calls["layer_norm"] == 0
    audio = [replace(one, audio=AudioRef(path="gone.wav")) for one in clips]  # nor is it read again
    with counted(made.model) as calls:
        updates = list(stream_updates(replace(kept, clips=audio), 0))
        for batches in updates:
            made.step(batches, 1.0)
        assert [calls[part] for part in frozen_parts] == [0] * len(frozen_parts)
        assert calls["layer_norm"] == sum(map(len, updates)) >= 5
    assert not made.model.get_base_model().model.encoder.conv1.weight.requires_grad


def test_every_clip_is_kept_at_every_length_it_is_heard_at_and_no_other(clips) -> None:
    heard = replace(course(clips, batch=3, updates=200), layout=Layout(3, 1, 2, audio_s=20.0))
    kept = [set(heard_pairs(heard, rank).tolist()) for rank in (0, 1)]
    for rank in (0, 1):
        needed = {
            (one, micro.positions)
            for _, update in heard.plan(rank)
            for micro in update
            for one in micro.clips
        }
        assert {(pair % 10, pair // 10) for pair in kept[rank]} == needed
    made = list(micro_batches(heard_pairs(heard, 0), 10))
    assert all(len(micro.clips) * micro.positions <= frozen.AT_ONCE for micro in made)
    assert sum(len(micro.clips) for micro in made) == len(kept[0])
    assert len({(n, micro.positions) for micro in made for n in micro.clips}) == len(kept[0])


def test_a_backward_into_frozen_layers_is_still_found(clips, tmp_path) -> None:
    """The check looks at what enters the first layer run, wherever that came from."""
    from peft_whisper.errors import StateError

    for encoder in (DECODER_ONLY, TOP_TWO):
        made = updater(encoder, True)
        (batches, *_) = stream_updates(with_outputs(made, course(clips), tmp_path), 0)
        asks = [replace(one, sound=one.sound.requires_grad_()) for one in batches]
        with pytest.raises(StateError, match="walked frozen layers"):
            made.step(asks, 1.0)


def test_halves_of_kept_outputs_give_the_gradients_of_the_whole(clips, tmp_path) -> None:
    made = updater(DECODER_ONLY, True)
    heard = with_outputs(made, course(clips, batch=5), tmp_path)
    (whole, *_) = next(stream_updates(heard, 0))
    halves = list(whole.split())
    assert torch.equal(torch.cat([half.sound for half in halves]), whole.sound)
    made.forward.eval()  # dropout would draw other masks for halves
    loss, expected = gradients(made, [whole])
    again, found = gradients(made, halves)
    worst = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    print(f"halves of kept outputs: largest gradient difference {worst:.1e}")
    assert again == pytest.approx(loss, rel=1e-6)
    assert worst < 1e-6


# What goes wrong


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_too_little_room_is_said_before_anything_is_run(
    where, clips, tmp_path, monkeypatch
) -> None:
    made, heard = updater(DECODER_ONLY, True), course(clips)
    needed = with_outputs(made, heard, tmp_path).frozen.rows.nbytes
    usage = frozen.shutil.disk_usage(tmp_path)
    little = math.ceil(needed / frozen.MOST) - 1
    monkeypatch.setattr(frozen, "available_memory", lambda: little)
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda _: usage._replace(free=little))
    with counted(made.model) as calls, pytest.raises(NoRoomError) as refused:
        with_outputs(made, heard, tmp_path, where)
    said = str(refused.value)
    print(said)
    assert set(calls.values()) == {0}
    assert "GB are free " in said and "training.frozen_cache=none" in said
    assert f"training.frozen_cache={'disk' if where == 'memory' else 'memory'}" in said
    monkeypatch.setattr(frozen, "available_memory", lambda: little + 1)
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda _: usage._replace(free=little + 1))
    with_outputs(made, heard, tmp_path, where)


def test_a_disk_that_turns_out_full_is_one_sentence(clips, tmp_path, monkeypatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frozen.os, "posix_fallocate", full)
    with pytest.raises(NoRoomError, match=r"No space left on device.*frozen_cache=memory"):
        with_outputs(updater(DECODER_ONLY, True), course(clips), tmp_path, "disk")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_addressed_by_clip_and_length(clips, tmp_path) -> None:
    kept = with_outputs(updater(TOP_TWO, True), course(clips), tmp_path).frozen
    pair = int(kept.pairs[3])
    micro = MicroBatch((pair % 10,) * 2, pair // 10)
    first = int((kept.pairs[:3] // 10).sum())
    expected = kept.rows[first : first + micro.positions]
    assert torch.equal(kept[micro], torch.stack([expected, expected]))


# Whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


TOP = ("adapter.encoder_layers=top 1", "context.margin_positions=1500")  # alike in any batch


def test_runs_with_and_without_it_are_equal(place: Path) -> None:
    """In processes of their own, one and two; and the disk's file is in no folder afterwards."""
    launch = ("torch.distributed.run", "--nproc_per_node", "2", "-m", "peft_whisper.train")
    train(place, "tiny.yaml", "name=plain", *TOP)
    disk = train(place, "tiny.yaml", "name=disk", *TOP, "training.frozen_cache=disk")
    memory = ("name=memory", "training.frozen_cache=memory", "data.workers=1")
    train(place, "tiny.yaml", *TOP, *memory)
    two = ("name=two", "training.batch=2", "training.frozen_cache=disk")
    command(place, *launch, "tiny.yaml", *TOP, *two)
    said = re.search(r"frozen layers: .*", disk.stdout)
    print(said and said[0])
    assert said and "1 of 2 in the encoder" in said[0] and "of disk in outputs/disk" in said[0]
    expected = losses(place / "outputs" / "plain")
    for name in ("disk", "memory", "two"):
        run = place / "outputs" / name
        assert losses(run) == pytest.approx(expected, rel=1e-5 if name == "two" else 1e-6), name
        assert '"event": "frozen_layers"' in (run / "log.jsonl").read_text()
        assert {one.name for one in run.iterdir()} == {
            one.name for one in (place / "outputs" / "plain").iterdir()
        }


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_nothing_is_left_of_it_where_a_run_is_killed(place: Path) -> None:
    """Its file has no name: mapped while training goes on, and gone with the process."""
    run = place / "outputs" / "killed"
    overrides = ("name=killed", *TOP, "training.frozen_cache=disk", "training.updates=100000")
    training = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "peft_whisper.train",
            "tiny.yaml",
            *overrides,
            "evaluation.every=90000",
        ],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        log, deadline = run / "log.jsonl", time.monotonic() + 120
        while not (log.exists() and '"train"' in log.read_text()):
            assert training.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        maps = Path(f"/proc/{training.pid}/maps").read_text().splitlines()
        assert any(str(run) in line and line.endswith("(deleted)") for line in maps)
    finally:
        training.kill()
        training.wait()
    names = {one.name for one in run.iterdir()}
    assert names == {"recipe.yaml", "environment.json", "log.jsonl", "rejected.jsonl"}


def test_a_base_whose_layers_are_all_adapted_is_refused(place: Path) -> None:
    overrides = ("adapter.encoder_layers=top 2", *TOP[1:], "training.frozen_cache=memory")
    refused = train(place, "tiny.yaml", "name=all", *overrides, expect=2)
    assert "'top 2' begins at this base's layer 0" in refused.stderr


# What it takes
