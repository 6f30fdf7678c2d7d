"""The project's own operators: to torch each is one, whatever kernels it runs.

So a layer computed again in backward keeps or repeats an operator as a whole, and a trace follows
it in one step. What torch can't see then is said with each: shapes, FLOPs, and the memory that it
takes and gives back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

# Bytes that an operator takes beside its outputs, by operator.
SCRATCH: dict[Any, Callable[..., int]] = {}

_library = torch.library.Library("peft_whisper", "DEF")
own: Any = torch.ops.peft_whisper


def define(
    schema: str,
    made: Callable[..., Any],
    meta: Callable[..., Any],
    flops: Callable[..., int],
    scratch: Callable[..., int] | None,
) -> None:
    """Make `made` the operator `own.<its name>` on any device.

    `meta` gives its outputs on tensors without storage, `flops` and `scratch` (bytes) its costs;
    all take the operator's arguments.
    """
    name = made.__name__
    _library.define(name + schema)
    _library.impl(name, made, "CompositeExplicitAutograd")
    _library.impl(name, meta, "Meta")
    register_flop_formula(getattr(own, name), get_raw=True)(flops)
    if scratch:
        SCRATCH[getattr(own, name).default] = scratch
