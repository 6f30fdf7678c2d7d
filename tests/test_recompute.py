"""What is computed again in backward: the same gradients, and each rung repeats more."""

from __future__ import annotations

import pytest
import torch
import whispers
from torch.utils.flop_counter import FlopCounterMode

from peft_whisper.model.adapters import (
    Adapter,
    FirstBackwardCheck,
    attach,
    train_everything,
    trainable,
)
from peft_whisper.model.encoder import TokenLoss
from peft_whisper.model.recompute import LADDER, recompute

KINDS = ("q", "k", "v", "out", "fc1", "fc2")
CHOICES = [choice for choice in LADDER if choice != "none"]


def step(choice: str, chosen: Adapter | None) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of one step, and its FLOPs."""
    whisper = whispers.model(whispers.config(layers=4))
    torch.manual_seed(3)
    model = train_everything(whisper) if chosen is None else attach(whisper, chosen)
    model.train()
    recompute(whisper, choice)
    check = FirstBackwardCheck(whisper, chosen)
    torch.manual_seed(4)
    mel, fed = torch.randn(2, 80, 640), torch.randint(100, (2, 7))
    with FlopCounterMode(display=False) as counter:
        loss = TokenLoss(model)(mel, fed, torch.arange(14), torch.randint(100, (14,)))
        loss.backward()
    check.finish(trainable(model))
    gradients = {name: p.grad for name, p in trainable(model).items()}
    return gradients, counter.get_total_flops()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_lora_gradients_are_those_of_keeping_all(choice: str, dropout: float) -> None:
    chosen = Adapter(4, 8, dropout, range(4), range(4), KINDS)
    plain, _ = step("none", chosen)
    again, _ = step(choice, chosen)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("choice", CHOICES)
def test_full_gradients_are_those_of_keeping_all(choice: str) -> None:
    plain, _ = step("none", None)
    again, _ = step(choice, None)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("chosen", [None, Adapter(2, 8, 0.0, range(4), range(4), KINDS)])
def test_each_rung_of_the_ladder_repeats_more(chosen: Adapter | None) -> None:
    flops = {choice: step(choice, chosen)[1] for choice in LADDER}
    print({choice: f"{count / flops['none'] - 1:.1%}" for choice, count in flops.items()})
    counts = list(flops.values())
    assert counts == sorted(counts)
    assert flops["cheap"] < 1.03 * flops["none"]


def test_layers_below_the_lowest_adapter_are_not_walked() -> None:
    chosen = Adapter(4, 8, 0.0, range(0), range(2, 4), KINDS)
    for choice in CHOICES:
        step(choice, chosen)  # whose FirstBackwardCheck would raise
