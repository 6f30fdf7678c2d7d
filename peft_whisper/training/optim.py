"""Optimizers, fp32 master weights and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter

from peft_whisper.errors import RecipeError

if TYPE_CHECKING:
    from peft_whisper.recipe_sections import Training

EIGHT_BIT_DEVICES = ("cpu", "cuda", "xpu")  # where bitsandbytes has its 8-bit update


class Masters:
    """fp32 master weights of the trainable parameters.

    A model held in bf16 computes in bf16, but Adam's small updates would be lost in its 8 bits of
    mantissa (at lr 1e-5, 85 % of tiny.en's weights would not move at all). So the optimizer steps
    fp32 copies, and the model gets their rounding. Parameters that are fp32 are their own masters.

    With `in_place`, for a full fine-tune, so are the large matrices of a bf16 model: SplitAdamW8bit
    keeps what their rounding cuts off. The small rest has masters. `model` holds the parameters and
    `fp32`, in the same order, their masters.
    """

    def __init__(
        self, parameters: dict[str, Parameter], compute: torch.dtype, *, in_place: bool = False
    ):
        self.in_place = in_place and compute == torch.bfloat16
        self.model = list(parameters.values())
        self.fp32 = [
            p
            if compute == torch.float32 or (self.in_place and _is_large(p))
            else Parameter(p.detach().to(torch.float32, copy=True))
            for p in self.model
        ]
        self.named = dict(zip(parameters, self.fp32, strict=True))
        both = zip(self.fp32, self.model, strict=True)
        self._copies = [
            (master, parameter) for master, parameter in both if master is not parameter
        ]
        for master, parameter in self._copies:
            parameter.data = master.detach().to(compute)

    def take_gradients(self) -> None:
        """Move gradients from the model to the masters, as fp32."""
        given: list[torch.Tensor] = []
        taken: list[torch.Tensor] = []
        for master, parameter in self._copies:
            master.grad = None
            if parameter.grad is not None:
                master.grad = torch.empty_like(master)
                given.append(parameter.grad)
                taken.append(master.grad)
                parameter.grad = None
        if given:  # one kernel for many tensors, where the device has it
            torch._foreach_copy_(taken, given)

    def clip(self, longest: float) -> torch.Tensor:
        """Shorten the gradients to a norm of `longest`; returns their norm before, a scalar."""
        grads = [master.grad for master in self.fp32 if master.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)).float())
        torch._foreach_mul_(grads, (longest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def publish(self) -> None:
        """Copy the masters' new values, rounded, into the model."""
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(
                    [parameter for _, parameter in self._copies],
                    [master for master, _ in self._copies],
                )

    @contextmanager
    def exposed(self, *, saving: bool = False) -> Iterator[None]:
        """While open, the model itself holds the fp32 masters.

        A model trained `in_place` shows its vectors' masters only for `saving` (without loss):
        decoding on CUDA wants one dtype, and the saved file loaded in bf16 is what was decoded.
        """
        shown = [] if self.in_place and not saving else self._copies
        rounded = [parameter.data for _, parameter in shown]
        for master, parameter in shown:
            parameter.data = master.detach()
        try:
            yield
        finally:
            for (_, parameter), data in zip(shown, rounded, strict=True):
                parameter.data = data


def _is_large(parameter: Parameter) -> bool:
    """Whether bitsandbytes keeps the state in 8 bits, and it is a matrix."""
    return parameter.ndim >= 2 and parameter.numel() >= 4096


def build_optimizer(
    name: str,
    masters: Masters,
    learning_rate: float,
    weight_decay: float,
    up_ratio: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW of torch (fused) or of bitsandbytes (8-bit state, optionally paged to the host).

    Weight decay pulls matrices only; norms and biases are left alone. `ratio` in each group is what
    the learning rate is multiplied by: `up_ratio` for LoRA's B (LoRA+; Hayou, Ghosh and Yu 2024),
    else 1. Raises RecipeError where bitsandbytes can't step what is on the device.
    """
    members: dict[tuple[float, float], list[Parameter]] = {}
    for called, one in masters.named.items():
        decay = weight_decay if one.ndim >= 2 else 0.0
        ratio = up_ratio if ".lora_B." in called else 1.0
        members.setdefault((decay, ratio), []).append(one)
    groups = [
        {"params": params, "weight_decay": decay, "ratio": ratio}
        for (decay, ratio), params in members.items()
    ]
    if name == "adamw":
        assert not masters.in_place  # the recipe's rules ask for 8 bits
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    device = masters.fp32[0].device.type
    if device not in EIGHT_BIT_DEVICES:
        raise RecipeError(
            f"training.optimizer: {name} does not run on {device}; write adamw, or train on one "
            f"of {', '.join(EIGHT_BIT_DEVICES)}"
        )
    from peft_whisper.training.adam8bit import AdamW8bit
    from peft_whisper.training.split import SplitAdamW8bit

    kind = SplitAdamW8bit if masters.in_place else AdamW8bit
    # On the CPU the state is where it would be paged to.
    paged = name == "paged_adamw8bit" and device != "cpu"
    return kind(groups, lr=learning_rate, is_paged=paged)


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
