"""Layers compiled one by one in training, by torch.compile; what decodes stays as it is.

All layers of a stack share one graph, since their weights are its inputs, and clips, positions and
tokens are symbols in it: so a run compiles a handful of graphs and not one for each shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peft_whisper.errors import RecipeError, first_line

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


def compile_layers(whisper: WhisperForConditionalGeneration) -> None:
    """Compile what each encoder and decoder layer of `whisper` does in training, at its first use.

    Raises RecipeError where torch finds no compiler that works here.
    """
    prove_compiler(whisper.device)
    for stack in (whisper.model.encoder.layers, whisper.model.decoder.layers):
        for layer in stack:
            layer.forward = _Trained(layer)


class _Trained:
    """A layer's forward: compiled where the layer trains, its own where it decodes.

    Decoding has shapes of its own, and folds the adapter in.
    """

    def __init__(self, layer: Any):
        self.layer, self.eager = layer, layer.forward
        self.compiled = torch.compile(layer.forward, dynamic=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self.compiled if self.layer.training else self.eager
        return run(*args, **kwargs)


def prove_compiler(device: torch.device) -> None:
    """Compile something small: of compilers, headers and triton, any may be missing."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds, some of them torch's own and private
        needs = "a C++ compiler (g++)" if device.type == "cpu" else "triton and a C compiler"
        raise RecipeError(
            f"training.compile: torch can't compile on this {device.type} "
            f"({first_line(error)[:200]}). It needs {needs}; install it, or write "
            "training.compile: false"
        ) from error
