"""Optimizers, fp32 master weights and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter

if TYPE_CHECKING:
    from peft_whisper.recipe_sections import Training


class Masters:
    """fp32 master weights of the trainable parameters.

    A model held in bf16 computes in bf16, but Adam's small updates would be lost in its 8 bits of
    mantissa (at lr 1e-5, 85 % of tiny.en's weights would not move at all). So the optimizer steps
    fp32 copies, and the model gets their rounding. Parameters that are fp32 are their own masters.
    """

    def __init__(self, parameters: dict[str, Parameter], compute: torch.dtype):
        self.model = list(parameters.values())
        if compute == torch.float32:
            self.fp32 = self.model
        else:
            self.fp32 = [Parameter(p.detach().to(torch.float32, copy=True)) for p in self.model]
            self._point(self.fp32, compute)
        self.named = dict(zip(parameters, self.fp32, strict=True))

    def _point(self, at: list[Parameter], dtype: torch.dtype) -> None:
        for parameter, source in zip(self.model, at, strict=True):
            parameter.data = source.detach().to(dtype)

    def take_gradients(self) -> None:
        """Move gradients from the model to the masters, as fp32."""
        if self.fp32 is self.model:
            return
        for master, parameter in zip(self.fp32, self.model, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    def publish(self) -> None:
        """Copy the masters' new values, rounded, into the model."""
        if self.fp32 is self.model:
            return
        with torch.no_grad():
            for master, parameter in zip(self.fp32, self.model, strict=True):
                parameter.copy_(master)

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """While open, the model itself holds the fp32 masters: for saving without loss."""
        rounded = [parameter.data for parameter in self.model]
        self._point(self.fp32, torch.float32)
        try:
            yield
        finally:
            for parameter, data in zip(self.model, rounded, strict=True):
                parameter.data = data


def build_optimizer(
    name: str, masters: Masters, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW of torch (fused) or of bitsandbytes (8-bit state, optionally paged to the host).

    Weight decay pulls matrices only; norms and biases are left alone.
    """
    matrices = [p for p in masters.named.values() if p.ndim >= 2]
    vectors = [p for p in masters.named.values() if p.ndim < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, weight_decay), (vectors, 0.0))
        if params
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    import bitsandbytes as bnb

    kinds = {"adamw8bit": bnb.optim.AdamW8bit, "paged_adamw8bit": bnb.optim.PagedAdamW8bit}
    return kinds[name](groups, lr=learning_rate)


def scale_at(update: int, updates: int, training: Training) -> float:
    """Share of the peak learning rate used for `update` (counted from 0) of `updates`.

    Linear warm-up from 1 / (warmup + 1), then constant, or falling linearly or along a half
    cosine to 0 just after the last update.
    """
    if update < training.warmup:
        return (update + 1) / (training.warmup + 1)
    if training.schedule == "constant":
        return 1.0
    done = (update - training.warmup) / max(1, updates - training.warmup)
    return 1.0 - done if training.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
