"""Frozen linear layers held in 8 or 4 bits, quantised by bitsandbytes and multiplied in 16 or 32.

- `int8`: a row's largest magnitude is 127 (LLM.int8's weights, arXiv 2208.07339).
- `nf4`: 16 levels, in blocks of 64 weights; the blocks' scales are quantised too (QLoRA, arXiv
  2305.14314).

The tensors are bit for bit those of a transformers `BitsAndBytesConfig`. The layers are our own
for what bitsandbytes' modules do in training: MatMul8bitLt keeps its input where checkpointing
can't drop it, and rounds it to 8 bits by way of float16; Linear4bit repacks its weights on some
CPUs at the first decoding; neither follows autocast. Here an input stays as it is and is not
kept: backward needs the weights alone. Training and decoding, CPU and card use one formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState
from torch import Tensor, nn
from torch.nn import functional as F

from peft_whisper.environment import is_out_of_memory
from peft_whisper.errors import RecipeError, first_line

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
BLOCK, NESTED_BLOCK = 64, 256  # weights to a scale, scales to a scale of scales


def _int8_layout(outputs: int, inputs: int) -> Layout:
    return {"weight": ((outputs, inputs), torch.int8), "scale": ((outputs,), torch.float32)}


def _quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    packed, scale, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.to(torch.float16))
    return {"weight": packed, "scale": scale}


def _dequantize_int8(layer: Any, dtype: torch.dtype) -> Tensor:
    return layer.weight.to(dtype).mul_(layer.scale.mul(1.0 / 127.0).unsqueeze(1))


def _nf4_layout(outputs: int, inputs: int) -> Layout:
    weights = outputs * inputs
    blocks = -(-weights // BLOCK)
    return {
        "weight": ((-(-weights // 2), 1), torch.uint8),
        "scale": ((blocks,), torch.uint8),
        "nested_scale": ((-(-blocks // NESTED_BLOCK),), torch.float32),
        "nested_levels": ((256,), torch.float32),
        "offset": ((), torch.float32),
    }


def _quantize_nf4(weight: Tensor) -> dict[str, Tensor]:
    packed, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return {
        "weight": packed,
        "scale": state.absmax,
        "nested_scale": state.state2.absmax,
        "nested_levels": state.state2.code,
        "offset": state.offset,
    }


def _dequantize_nf4(layer: Any, dtype: torch.dtype) -> Tensor:
    nested = QuantState(
        layer.nested_scale,
        code=layer.nested_levels,
        blocksize=NESTED_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        layer.scale,
        shape=torch.Size((layer.out_features, layer.in_features)),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=layer.offset,
        state2=nested,
    )
    return bitsandbytes.functional.dequantize_4bit(layer.weight, state)


LAYOUTS = {"int8": _int8_layout, "nf4": _nf4_layout}
QUANTIZE = {"int8": _quantize_int8, "nf4": _quantize_nf4}
DEQUANTIZE = {"int8": _dequantize_int8, "nf4": _dequantize_nf4}


class FrozenLinear(nn.Linear):
    """A linear layer without gradient, its weight held as `kind` ("int8" or "nf4").

    To peft it is a linear layer. The scales are parameters, not buffers, which data-parallel
    training would send around at every step.
    """

    def __init__(self, linear: nn.Linear, kind: str, device: torch.device | str):
        """Take the bias of `linear`; `weight` and scales are uninitialised, on `device`."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.kind = kind
        self.bias = linear.bias
        for name, (shape, dtype) in LAYOUTS[kind](self.out_features, self.in_features).items():
            held = torch.empty(shape, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(held, requires_grad=False))

    @torch.no_grad()
    def fill(self, weight: Tensor) -> FrozenLinear:
        """Quantise `weight` (outputs, inputs), on this layer's device."""
        for name, value in QUANTIZE[self.kind](weight.to(self.weight.device)).items():
            self.get_parameter(name).copy_(value)
        return self

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight (outputs, inputs) in `dtype`, new each time."""
        return DEQUANTIZE[self.kind](self, dtype)

    def product(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the type of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantized(x.dtype), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in autocast's type or that of `x`."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        return _FrozenProduct.apply(x, self)


class _FrozenProduct(torch.autograd.Function):
    """Keeps the layer and no tensor: neither input nor dequantised weight outlives its product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        return grad @ ctx.layer.dequantized(grad.dtype), None


def quantize(
    whisper: WhisperForConditionalGeneration, kind: str, device: torch.device | str
) -> None:
    """Hold the linear layers as `kind`, quantised one by one on `device`.

    All else (convolutions, embeddings, norms, and the output, which is the embedding) stays as it
    is and where it is. Raises RecipeError where bitsandbytes can't do that on `device`.
    """
    _check(kind, device)
    _replace(whisper, lambda linear: FrozenLinear(linear, kind, device).fill(linear.weight))


def empty_quantized(whisper: WhisperForConditionalGeneration, kind: str) -> None:
    """As `quantize`, with uninitialised weights: the same tensors, and nothing computed."""
    _replace(whisper, lambda linear: FrozenLinear(linear, kind, linear.weight.device))


def _replace(
    whisper: WhisperForConditionalGeneration, make: Callable[[nn.Linear], FrozenLinear]
) -> None:
    """Put what `make` gives in the place of each linear layer of encoder and decoder."""
    inner = whisper.model  # proj_out, the embedding's other name, is outside
    names = [name for name, module in inner.named_modules() if type(module) is nn.Linear]
    for name in names:
        linear: Any = inner.get_submodule(name)
        inner.set_submodule(name, make(linear))


def _check(kind: str, device: torch.device | str) -> None:
    """Raise RecipeError where a small layer can't be quantised and multiplied on `device`."""
    try:
        small = nn.Linear(BLOCK, BLOCK, bias=False, device="meta")
        one = torch.eye(BLOCK, device=device)
        FrozenLinear(small, kind, one.device).fill(one)(one)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        said = first_line(error).partition(". ")[0]
        raise RecipeError(
            f"base.quantize: bitsandbytes {bitsandbytes.__version__} can't hold weights in {kind} "
            f"on {device} ({said}); remove base.quantize, or train on a CPU or an NVIDIA card"
        ) from error


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer of `model` is held in 8 or 4 bits."""
    return any(isinstance(module, FrozenLinear) for module in model.modules())


def parameter_count(model: nn.Module) -> int:
    """Weights of `model`, each counted once; packed ones as many as they stand for."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for layer in model.modules():
        if isinstance(layer, FrozenLinear):
            held = [p.numel() for name, p in layer.named_parameters() if name != "bias"]
            total += layer.in_features * layer.out_features - sum(held)
    return total
