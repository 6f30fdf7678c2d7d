"""The fused LoRA layer against peft's own, and its dropout against finite differences."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear

from peft_whisper.model.lora import Linear


def layer(kind: type, dropout: float = 0.0, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    base = torch.nn.Linear(24, 40).requires_grad_(False)
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout)
    made = kind(base, "default", config, r=8, lora_alpha=16)
    torch.nn.init.normal_(made.lora_B["default"].weight)
    return made.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_output_and_gradients_are_those_of_peft(dtype: torch.dtype, tolerance: float) -> None:
    found = []
    for kind in (PeftLinear, Linear):
        made = layer(kind, dtype=dtype)
        torch.manual_seed(1)
        x = torch.randn(3, 7, 24, dtype=dtype, requires_grad=True)
        y = made(x)
        y.backward(torch.randn_like(y))
        weights = made.lora_A["default"].weight, made.lora_B["default"].weight
        found.append([y, x.grad, *(one.grad for one in weights)])
    for theirs, ours in zip(*found, strict=True):
        assert (theirs - ours).norm() <= tolerance * theirs.norm()


def test_gradients_with_dropout_are_the_slopes() -> None:
    made = layer(Linear, dropout=0.3, dtype=torch.float64)
    x = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    y = made(x)
    along = torch.randn_like(y)
    y.backward(along)
    for tensor in (x, made.lora_A["default"].weight, made.lora_B["default"].weight):
        way = 1e-4 * torch.randn_like(tensor)
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                tensor.add_(way, alpha=sign)
                torch.manual_seed(5)
                ends.append(float((made(x) * along).sum()))
        slope = float((tensor.grad * way).sum())
        assert (ends[0] - ends[1]) / 2 == pytest.approx(slope, rel=1e-5)
        with torch.no_grad():
            tensor.add_(way)
