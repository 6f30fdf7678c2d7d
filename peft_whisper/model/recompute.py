"""Activations computed again in backward instead of kept: which, and in which layers.

Backward needs what the layers computed on the way. Of one 30 s clip an encoder layer of Large V3
with LoRA on all linears keeps 16 tensors as large as its input (61 MB in bfloat16; counted, without
the adapter's dropout, which copies its inputs). What is not kept is computed again when backward
arrives at the layer; the result is the same.

- `none`: all is kept.
- `cheap`: in each layer its input, the products of its wide matrices and its attention are kept.
  Norms, GELU, casts, dropout, copies and products of the adapter's rank are repeated.
- `a/b`: of each b layers, evenly spread, a keep only their input and their attention (which costs
  most to repeat for what it holds: 4.7 of the layer's 28.7 S d^2 products, in 1 of 10 tensors).
  The others are as in `cheap`.
- `all`: each layer keeps its input only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from peft_whisper.model import lora_ops, tiled

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

aten = torch.ops.aten
ATTENTION = {
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    tiled.own.tiled_attention.default,
}
PRODUCTS = {aten.mm.default, aten.addmm.default}  # their last argument is the matrix, transposed
# What `auto` tries, from the least repeated to the least kept.
LADDER = ("none", "cheap", "1/4", "1/2", "2/3", "3/4", "1/1", "all")

Policy = Callable[..., CheckpointPolicy]


def recompute(whisper: WhisperForConditionalGeneration, choice: str) -> None:
    """Make the layers of `whisper` keep in training what `choice` says.

    To be called after the adapter is attached: before, peft would make the first convolution's
    output ask for gradients, and backward walk through frozen layers.
    """
    width = whisper.config.d_model
    for stack in (whisper.model.encoder.layers, whisper.model.decoder.layers):
        for number, layer in enumerate(stack):
            layer.gradient_checkpointing = choice != "none"
            if choice != "none":
                layer._gradient_checkpointing_func = _checkpointed(_policy(choice, number, width))


def _policy(choice: str, number: int, width: int) -> Policy | None:
    """What layer `number` keeps beside its input; None for nothing."""
    if choice == "all":
        return None
    part, of = map(int, choice.split("/")) if "/" in choice else (0, 1)
    deep = (number + 1) * part // of > number * part // of
    return partial(_keep, width=None if deep else width)


def _keep(_context: Any, op: Any, *args: Any, width: int | None, **_: Any) -> CheckpointPolicy:
    """Keep attention, and the products of matrices whose inner dimension is `width`.

    These are q, k, v, out and fc1, with an adapter's part. Not fc2 (four times as wide), whose
    output no backward in the layer asks for.
    """
    inner = None
    if op in PRODUCTS:
        inner = args[-1].shape[-2]
    elif op is lora_ops.own.lora_up.default:
        inner = args[1].shape[-1]
    if (width is not None and inner == width) or op in ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _checkpointed(policy: Policy | None) -> Callable[..., Any]:
    if policy is None:
        return partial(checkpoint, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return partial(checkpoint, use_reentrant=False, context_fn=contexts)
