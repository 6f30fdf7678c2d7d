"""What trains fastest on this computer's CPU: measured, not looked up.

Seconds of one core are counted, in turns, so that other work on the machine does not choose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peft_whisper.model.tiled import Tiled

if TYPE_CHECKING:
    from transformers import WhisperConfig

SHORT, LONG = 256, 1500  # positions of clips of 5 and of 30 seconds
TURNS = 3
PAYS = 1.2  # times as fast must be what costs digits, to be taken


def bf16_times_as_fast(sizes: WhisperConfig) -> float:
    """How many times as fast an encoder layer trains in bf16 as in fp32.

    On a layer of the model's own sizes: products, attention, casts, and the way back to its input.
    A CPU without instructions for bf16 is several times slower in it.
    """
    from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

    sizes._attn_implementation = "sdpa"
    layer: Any = WhisperEncoderLayer(sizes).requires_grad_(False)
    hidden = torch.randn(1, SHORT, sizes.d_model, requires_grad=True)

    def train(in_bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            loss = layer(hidden, None).float().sum()
        loss.backward()

    return _times_as_fast(train)


def tiles_times_as_fast(sizes: WhisperConfig, dtype: torch.dtype) -> float:
    """How many times as fast attention in tiles is as torch's, there and back.

    For a clip of 5 and for one of 30 seconds; returns the smaller gain.
    """
    heads = sizes.encoder_attention_heads
    width = sizes.d_model // heads

    def at(clips: int, positions: int) -> float:
        made = (torch.randn(clips, positions, heads, width, dtype=dtype) for _ in range(3))
        query, key, value = (one.transpose(1, 2).requires_grad_() for one in made)
        grad = torch.randn(clips, positions, heads, width, dtype=dtype)

        def attend(in_tiles: bool) -> None:
            if in_tiles:
                found: Tensor = Tiled.apply(query, key, value, None, width**-0.5)
            else:
                torchs = torch.nn.functional.scaled_dot_product_attention
                found = torchs(query, key, value).transpose(1, 2)
            torch.autograd.grad(found, (query, key, value), grad)

        return _times_as_fast(attend)

    return min(at(4, SHORT), at(1, LONG))


def _times_as_fast(train: Callable[[bool], None]) -> float:
    """Seconds of `train(False)` over those of `train(True)`."""
    spent: dict[bool, float] = {}
    with _one_thread():
        for turn in range(1 + TURNS):
            for other in (False, True):
                began = time.process_time()
                train(other)
                seconds = time.process_time() - began
                # The first of each makes its kernels.
                spent[other] = seconds if turn < 2 else min(seconds, spent[other])
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
