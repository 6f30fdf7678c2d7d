"""How many numbers a traced recipe holds and in which types: what its bytes can be checked by."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from peft_whisper.planning.tracing import TrainingTrace

PER_ELEMENT = {torch.uint8: 2}  # nf4 holds two weights in a byte


def counts(trace: TrainingTrace) -> dict[str, Any]:
    """Numbers held, by type: {"frozen": {dtype: count}, "trained": …, "optimizer": …}; and sizes.

    Of a type "4 bits", the weights are counted, not their bytes. `optimizer` is [what, how many,
    bytes of each].
    """
    frozen: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for parameter in trace.model.parameters():
        kind = "4 bits" if parameter.dtype == torch.uint8 else _name(parameter.dtype)
        held = trained if parameter.requires_grad else frozen
        held[kind] += parameter.numel() * PER_ELEMENT.get(parameter.dtype, 1)
    sizes = trace.sizes
    return {
        "frozen": dict(frozen),
        "trained": dict(trained),
        "optimizer": _optimizer(trace),
        "d_model": sizes.d_model,
        "encoder_layers": sizes.encoder_layers,
        "decoder_layers": sizes.decoder_layers,
        "vocabulary": sizes.vocab_size,
    }


def _optimizer(trace: TrainingTrace) -> list[tuple[str, int, int]]:
    masters = trace.updater.masters
    own = {id(parameter) for parameter in masters.model}
    found: Counter[tuple[str, int]] = Counter()
    for master in masters.fp32:
        if id(master) not in own:
            found["masters", 4] += master.numel()
    for state in trace.updater.optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and not key.startswith("qmap"):  # shared by all
                found[_role(key, value), value.element_size()] += value.numel()
    return [(what, count, size) for (what, size), count in found.items() if what]


def _role(key: str, value: Tensor) -> str:
    """What a tensor of the optimizer's state is for; "" for its counter of steps."""
    if key == "low":
        return "lower halves"
    if key.startswith("absmax"):
        return "scales"
    return "moments" if value.ndim else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
