"""fp32 masters, 8-bit optimizers, schedules."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from peft_whisper.recipe_sections import Training
from peft_whisper.training.optim import Masters, build_optimizer, scale_at


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
