"""Sixteen bits: what autocast computes in, and the scale that float16 gradients need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GROW_AFTER = 500  # updates without overflow before the loss scale is tried at twice its size
SMALLEST = 1.0  # at a scale of 1 it is the gradients themselves that float16 can't hold


def autocast_dtype(precision: str, weights: torch.dtype) -> torch.dtype | None:
    """Type that matrices are multiplied in where it is not that of the weights; else None."""
    computed = DTYPES[precision]
    return None if weights != torch.float32 or computed == weights else computed


@dataclass
class LossScale:
    """What the loss is multiplied by before backward, so that float16 keeps small gradients.

    float16 ends at 6e-8, below many gradients of a mean over tokens. A power of two changes no
    digit of them. It is found as torch's GradScaler finds it: halved where gradients overflow,
    doubled after `GROW_AFTER` good updates (2,000 there: longer than many runs here). `value` and
    `good` are its whole state.
    """

    value: float = 2.0**16
    good: int = 0

    def divide(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Take the scale out of the (fp32) gradients again."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, 1.0 / self.value)

    def shrink(self) -> bool:
        """Halve after an overflow; False where it is as small as it gets."""
        if self.value <= SMALLEST:
            return False
        self.value, self.good = self.value / 2, 0
        return True

    def succeed(self) -> None:
        """Count a good update, and double after enough of them."""
        self.good += 1
        if self.good == GROW_AFTER:
            self.value, self.good = 2 * self.value, 0
