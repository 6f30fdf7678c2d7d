"""Sixteen bits: what autocast computes in, where it pays, and the scale float16 gradients need."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import WhisperConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GROW_AFTER = 500  # updates without overflow before the loss scale is tried at twice its size
ROWS, TURNS = 256, 3  # of the measurement on a CPU
PAYS = 1.2  # times as fast must bf16 be on a CPU to be taken: it costs digits
SMALLEST = 1.0  # at a scale of 1 it is the gradients themselves that float16 can't hold


def autocast_dtype(precision: str, weights: torch.dtype) -> torch.dtype | None:
    """Type that matrices are multiplied in where it is not that of the weights; else None."""
    computed = DTYPES[precision]
    return None if weights != torch.float32 or computed == weights else computed


def times_as_fast(sizes: WhisperConfig) -> float:
    """How many times as fast an encoder layer trains in bf16 as in fp32 on this computer's CPU.

    Measured, in turns, on a layer of the model's own sizes (`ROWS` positions; products, attention,
    casts, and the way back to its input). A CPU without instructions for bf16 is several times
    slower in it. Seconds of one core are counted, so that other work there is does not choose.
    """
    from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

    sizes._attn_implementation = "sdpa"
    layer: Any = WhisperEncoderLayer(sizes).requires_grad_(False)
    hidden = torch.randn(1, ROWS, sizes.d_model, requires_grad=True)
    spent: dict[bool, float] = {}
    with _one_thread():
        for turn in range(1 + TURNS):
            for in_bf16 in (False, True):
                began = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                    loss = layer(hidden, None).float().sum()
                loss.backward()
                seconds = time.process_time() - began
                # The first of each makes its kernels.
                spent[in_bf16] = seconds if turn < 2 else min(seconds, spent[in_bf16])
            if turn and spent[True] > 2 * spent[False]:
                break  # without instructions for bf16 it can take seconds
    return spent[False] / spent[True]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
