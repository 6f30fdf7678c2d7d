"""fp32 masters, 8-bit optimizers, schedules."""

from __future__ import annotations

import warnings
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
import whispers
from safetensors.torch import load_file
from torch.nn import Parameter
from transformers import WhisperForConditionalGeneration

from peft_whisper.errors import RecipeError
from peft_whisper.model.adapters import train_everything, trainable
from peft_whisper.recipe_sections import Training
from peft_whisper.training.adam8bit import AdamW8bit
from peft_whisper.training.optim import Masters, build_optimizer, scale_at
from peft_whisper.training.split import SplitAdamW8bit


def test_bf16_weights_move_by_less_than_their_own_rounding() -> None:
    """At lr 1e-5 a bf16 weight of 1.0 never moves by itself; its fp32 master does."""
    model = {"w": Parameter(torch.ones(4, 4, dtype=torch.bfloat16))}
    masters = Masters(model, torch.bfloat16)
    optimizer = build_optimizer("adamw", masters, 1e-5, 0.0)
    for _ in range(1000):
        model["w"].grad = torch.ones_like(model["w"])
        masters.take_gradients()
        optimizer.step()
        masters.publish()
    assert model["w"].dtype == torch.bfloat16
    assert model["w"].float().mean().item() == pytest.approx(0.99, abs=0.003)
    assert masters.fp32[0].mean().item() == pytest.approx(0.99, abs=1e-4)


def test_fp32_weights_are_their_own_masters() -> None:
    weight = Parameter(torch.ones(2, 2))
    masters = Masters({"w": weight}, torch.float32)
    assert masters.fp32[0] is weight


def test_saving_sees_fp32_and_training_goes_on_in_bf16() -> None:
    weight = Parameter(torch.full((2, 2), 1.0))
    masters = Masters({"w": weight}, torch.bfloat16)
    with torch.no_grad():
        masters.fp32[0].add_(1e-4)
    masters.publish()
    with masters.exposed():
        assert weight.dtype == torch.float32
        assert weight[0, 0].item() == pytest.approx(1.0001, abs=1e-7)
    assert weight.dtype == torch.bfloat16


def whole_model() -> tuple[WhisperForConditionalGeneration, Masters]:
    """A Whisper in bf16, trained itself; each tensor's master is a little off its rounding."""
    model = train_everything(whispers.model(whispers.config()).bfloat16())
    masters = Masters(trainable(model), torch.bfloat16, in_place=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for master in masters.fp32:
            if master.dtype == torch.float32:
                master.add_(torch.randn_like(master))
    masters.publish()
    return model, masters


def test_trained_in_place_only_small_tensors_have_masters() -> None:
    model, masters = whole_model()
    large = {name for name, p in trainable(model).items() if p.ndim >= 2 and p.numel() >= 4096}
    assert large == {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"}
    for name, parameter in trainable(model).items():
        assert (masters.named[name] is parameter) == (name in large)
        assert masters.named[name].dtype == (torch.bfloat16 if name in large else torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_gradients_of_large_matrices_stay_bf16() -> None:
    """A whole fp32 copy of them would be 5.7 GiB in Large V3."""
    _, masters = whole_model()
    for parameter in masters.model:
        parameter.grad = torch.ones_like(parameter)
    masters.take_gradients()
    assert all(master.grad.dtype == master.dtype for master in masters.fp32)
    count = sum(master.numel() for master in masters.fp32)
    norm = torch.nn.utils.clip_grad_norm_(masters.fp32, 1.0)
    assert float(norm) == pytest.approx(count**0.5, rel=0.01)


def test_trained_in_place_decodes_in_one_dtype_and_saves_without_loss(tmp_path: Path) -> None:
    """And the saved file, loaded in bf16 again, is what was decoded."""
    model, masters = whole_model()
    with masters.exposed():
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with masters.exposed(saving=True):
        model.save_pretrained(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    held = load_file(tmp_path / "model.safetensors")
    for name, master in masters.named.items():
        assert torch.equal(held[name], master)
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path, dtype=model.dtype)
    for one, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adapters_have_plain_8_bit_adam_and_whole_models_the_split_one() -> None:
    parameters = {"w": Parameter(torch.ones(64, 64))}
    adapter = build_optimizer("adamw8bit", Masters(parameters, torch.bfloat16), 1e-3, 0.0)
    assert type(adapter) is AdamW8bit
    parameters = {"w": Parameter(torch.ones(64, 64, dtype=torch.bfloat16))}
    masters = Masters(parameters, torch.bfloat16, in_place=True)
    assert type(build_optimizer("adamw8bit", masters, 1e-3, 0.0)) is SplitAdamW8bit


def test_8_bit_adam_steps_as_that_of_bitsandbytes() -> None:
    found = []
    for kind in (bnb.optim.AdamW8bit, AdamW8bit):
        torch.manual_seed(0)
        weights = [
            Parameter(torch.randn(96, 64)),
            Parameter(torch.randn(7)),
            Parameter(torch.ones(3)),
        ]
        optimizer = kind(weights, lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            for weight in weights[:2]:  # the last one has no gradient
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        found.append(weights)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_paging_on_the_cpu_is_quietly_none() -> None:
    """No warning, and the same step as without."""
    stepped = []
    for name in ("paged_adamw8bit", "adamw8bit"):
        masters = Masters({"w": Parameter(torch.ones(400, 400))}, torch.float32)
        optimizer = build_optimizer(name, masters, 1e-3, 0.0)
        masters.fp32[0].grad = torch.ones(400, 400)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
        stepped.append(masters.fp32[0])
    assert torch.equal(*stepped) and not torch.equal(stepped[0], torch.ones(400, 400))


def test_a_device_without_8_bit_updates_is_refused() -> None:
    masters = Masters({"w": Parameter(torch.ones(2, 2, device="meta"))}, torch.float32)
    with pytest.raises(RecipeError, match=r"^training.optimizer: adamw8bit .* meta; write adamw"):
        build_optimizer("adamw8bit", masters, 1e-3, 0.0)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "paged_adamw8bit"])
def test_every_optimizer_descends(name: str) -> None:
    torch.manual_seed(0)
    weight = Parameter(torch.randn(128, 64))  # bitsandbytes keeps small tensors in 32 bits
    goal = torch.randn(128, 64)
    masters = Masters({"w": weight}, torch.float32)
    optimizer = build_optimizer(name, masters, 0.05, 0.0)
    distance = lambda: (weight - goal).detach().square().mean().item()  # noqa: E731
    first = distance()
    for _ in range(40):
        optimizer.zero_grad()
        (weight - goal).square().mean().backward()
        optimizer.step()
    assert distance() < 0.2 * first


def test_weight_decay_spares_norms_and_biases() -> None:
    masters = Masters(
        {"matrix": Parameter(torch.ones(2, 2)), "bias": Parameter(torch.ones(2))}, torch.float32
    )
    groups = build_optimizer("adamw", masters, 0.1, 0.5).param_groups
    assert [(group["weight_decay"], group["params"][0].ndim) for group in groups] == [
        (0.5, 2),
        (0.0, 1),
    ]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("linear", [1 / 3, 2 / 3, 1.0, 0.5, 0.125]),
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.5, 0.0380602]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    training = Training(updates=10, learning_rate=1.0 / 10, warmup=2, schedule=schedule)
    found = [scale_at(update, 10, training) for update in (0, 1, 2, 6, 9)]
    assert found == pytest.approx(expected)
