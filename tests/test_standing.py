"""A checkpoint read into a new process's updater: the same weights, moments and next update."""

from __future__ import annotations

import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import whispers
from accelerate import Accelerator
from peft import PeftModel
from test_loop import batch_of, clips

from peft_whisper.energy import Moment
from peft_whisper.errors import NoRoomError, StateError, Stopped
from peft_whisper.files import check_seal, sealed_with
from peft_whisper.model.adapters import (
    Adapter,
    FirstBackwardCheck,
    attach,
    train_everything,
)
from peft_whisper.model.encoder import whisper_of
from peft_whisper.model.find import find_base
from peft_whisper.model.pissa import start_of
from peft_whisper.recipe_sections import Training
from peft_whisper.signals import Stop
from peft_whisper.training import checkpoint
from peft_whisper.training.standing import Standing, read_standing
from peft_whisper.training.tally import Meter, Selection
from peft_whisper.training.updater import Updater

ADAPTER = Adapter(4, 8, 0.1, range(2), range(2), ("q", "k", "v", "out", "fc1", "fc2"))
WAYS = {
    "LoRA": (ADAPTER, torch.float32, "adamw", "fp32"),
    "LoRA, bf16, 8 bits": (ADAPTER, torch.bfloat16, "adamw8bit", "bf16"),
    "LoRA, fp16": (ADAPTER, torch.float16, "adamw", "fp16"),
    "DoRA, bf16": (replace(ADAPTER, method="dora"), torch.bfloat16, "adamw", "bf16"),
    "PiSSA": (replace(ADAPTER, start="pissa"), torch.float32, "adamw", "fp32"),
    "AdaLoRA, bf16": (replace(ADAPTER, method="adalora"), torch.bfloat16, "adamw", "bf16"),
    "layer norms": (replace(ADAPTER, method="layernorm"), torch.float32, "adamw", "fp32"),
    "full": (None, torch.float32, "adamw", "fp32"),
    "full, bf16, 8 bits": (None, torch.bfloat16, "adamw8bit", "bf16"),
}


def made(way: str) -> Updater:
    adapter, dtype, optimizer, precision = WAYS[way]
    base = whispers.model(whispers.config()).to(dtype)
    torch.manual_seed(3)
    model = train_everything(base) if adapter is None else attach(base, adapter)
    training = Training(updates=9, learning_rate=1e-3, optimizer=optimizer, precision=precision)
    check = FirstBackwardCheck(whisper_of(model), adapter)
    updater = Updater(Accelerator(cpu=True), model, training, check)
    updater.plan(3)  # so that AdaLoRA has all to cut in it
    return updater


def step(updater: Updater, update: int) -> tuple[float, float]:
    torch.manual_seed(update)
    return updater.step([batch_of(clips([3, 9, 5]))], 1.0)


def state(updater: Updater) -> list[torch.Tensor]:
    """Masters, the model's own weights, and all that the optimizer holds."""
    moments = [
        torch.as_tensor(value)
        for master in updater.masters.fp32
        for _, value in sorted(updater.optimizer.state[master].items())
    ]
    return [*updater.masters.fp32, *updater.masters.model, *moments]


@pytest.mark.parametrize("way", WAYS)
def test_a_new_updater_goes_on_bit_for_bit(way: str, tmp_path: Path) -> None:
    one = made(way)
    for update in (1, 2):
        step(one, update)
    one.room.limit = 700
    meter = Meter(1, 3.0, 4, 5.0)
    standing = Standing(2, due=True, best=Selection("mer", 1, 0.5, 2), meter=meter)
    folder = checkpoint.save_run(tmp_path, standing, one, {"base": "b"})
    check_seal(folder)
    assert sealed_with(folder).items() >= {"base": "b", "update": 2}.items()
    other = made(way)
    assert asdict(read_standing(folder, other)) == asdict(standing)
    assert other.room.limit == 700
    assert all(map(torch.equal, state(one), state(other)))
    assert step(one, 3) == step(other, 3)
    assert all(map(torch.equal, state(one), state(other)))
    assert (one.loss_scale is None) == (other.loss_scale is None)
    if one.loss_scale and other.loss_scale:
        assert asdict(one.loss_scale) == asdict(other.loss_scale)


def test_paged_moments_are_paged_again(tmp_path: Path, monkeypatch) -> None:
    """As a card would have them: here a buffer that is marked stands for one that CUDA moves."""
    one, other = made("LoRA, bf16, 8 bits"), made("LoRA, bf16, 8 bits")
    step(one, 1)
    standing = Standing(1, due=False, best=Selection("mer"), meter=Meter(1))
    folder = checkpoint.save_run(tmp_path, standing, one, {})

    def paged(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        buffer = torch.zeros_like(parameter, dtype=dtype)
        buffer.is_paged = True
        return buffer

    monkeypatch.setattr(other.optimizer, "is_paged", True)
    monkeypatch.setattr(other.optimizer, "get_state_buffer", paged)
    read_standing(folder, other)
    assert all(map(torch.equal, state(one), state(other)))
    for held in other.optimizer.state.values():
        assert held["state1"].is_paged and held["state2"].is_paged


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path) -> None:
    standing = Standing(1, due=False, best=Selection("mer"), meter=Meter(1))
    folder = checkpoint.save_run(tmp_path, standing, made("LoRA"), {})
    with pytest.raises(StateError, match=r"lacks \d+ trained tensors"):
        read_standing(folder, made("full"))


def test_a_run_of_other_directions_goes_on_with_those_it_began_with(tmp_path: Path) -> None:
    """Another machine may decompose the base's matrices with other signs."""
    one = made("PiSSA")
    step(one, 1)
    standing = Standing(1, due=False, best=Selection("mer"), meter=Meter(1))
    folder = checkpoint.save_run(tmp_path, standing, one, {})
    other = made("PiSSA")
    for layer in (one for one in other.model.modules() if hasattr(one, "lora_A")):
        a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
        layer.base_layer.weight.data += layer.scaling["default"] * b @ a  # the whole base
        a.neg_()
        b.mul_(-0.5)
        layer.base_layer.weight.data -= layer.scaling["default"] * b @ a
    other.start = start_of(other.model)
    read_standing(folder, other)
    bases = [
        [layer.base_layer.weight for layer in side.model.modules() if hasattr(layer, "lora_A")]
        for side in (one, other)
    ]
    for mine, theirs in zip(*bases, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stable", [False, True])
def test_what_began_in_the_base_is_published_for_the_whole_base(
    stable: bool, tmp_path: Path, monkeypatch
) -> None:
    """Plain peft on the untouched base gives what was trained."""
    adapter = replace(ADAPTER, start="pissa", rank_stabilized=stable)
    monkeypatch.setitem(WAYS, "PiSSA", (adapter, *WAYS["PiSSA"][1:]))
    one = made("PiSSA")
    for update in (1, 2, 3):
        step(one, update)
    standing = Standing(3, due=False, best=Selection("mer", 3, 0.5), meter=Meter(1))
    checkpoint.save_run(tmp_path, standing, one, {})
    base = find_base(str(whispers.save_base(tmp_path / "base", ".en", 80)))
    checkpoint.publish(tmp_path, 3, tmp_path / "adapter", base, {"method": "lora"})
    assert not (tmp_path / "adapter" / "start.safetensors").exists()
    plain = PeftModel.from_pretrained(
        whispers.model(whispers.config()), str(tmp_path / "adapter")
    ).eval()
    fed = {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": torch.arange(4)[None]}
    with torch.no_grad():
        trained, untouched = one.model.eval()(**fed).logits, plain(**fed).logits
        torch.testing.assert_close(trained, untouched, atol=1e-5, rtol=1e-4)
        with plain.disable_adapter():
            assert (plain(**fed).logits - untouched).abs().max() > 1e-3  # it did learn


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    free = checkpoint.shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _path: free)
    standing = Standing(1, due=False, best=Selection("mer"), meter=Meter(1))
    with pytest.raises(NoRoomError, match=r"0.01 GB of disk are free.* needs"):
        checkpoint.save_run(tmp_path, standing, made("LoRA"), {})
    assert not list(tmp_path.iterdir())


def test_a_damaged_later_checkpoint_pushes_no_good_one_out(tmp_path: Path) -> None:
    for update in (2, 4, 6):
        checkpoint.folder_of(tmp_path, update).mkdir()
    at = Standing(4, due=False, best=Selection("mer", 2, 0.5), meter=Meter(1))
    checkpoint.rotate(tmp_path, 1, at)
    assert [one.name for one in sorted(tmp_path.iterdir())] == ["update-000002", "update-000004"]


def test_a_damaged_best_checkpoint_is_not_published(tmp_path: Path) -> None:
    standing = Standing(1, due=False, best=Selection("mer", 1, 0.5), meter=Meter(1))
    weights = (
        checkpoint.save_run(tmp_path, standing, made("LoRA"), {}) / "adapter_model.safetensors"
    )
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    base: Any = None  # not come to
    with pytest.raises(StateError, match=r"adapter_model.safetensors is damaged"):
        checkpoint.publish(tmp_path, 1, tmp_path / "adapter", base, {})
    assert not (tmp_path / "adapter").exists()


def test_a_signal_after_the_last_check_is_not_forgotten() -> None:
    stop = Stop()
    with pytest.raises(Stopped) as raised, stop.waiting(lambda _text: None):
        stop.signum = signal.SIGTERM
    assert raised.value.signum == signal.SIGTERM and "saved" in raised.value.saved


def test_energy_is_summed_and_unknown_once_an_update_is_unknown() -> None:
    meter = Meter(1, warm=True)
    meter.update([], Moment(1.0, 5.0))
    meter.update([], Moment(1.0, 7.0))
    assert meter.summary()["joules"] == 12.0
    meter.update([], Moment(1.0, None))
    meter.update([], Moment(1.0, 7.0))
    assert meter.summary()["joules"] is None
