"""What is trained: an adapter on chosen layers, of peft's methods, or every weight."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import RecipeError, StateError
from peft_whisper.model.base import quiet_transformers

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import WhisperForConditionalGeneration

MODULES = {
    "q": r"(self_attn|encoder_attn)\.q_proj",
    "k": r"(self_attn|encoder_attn)\.k_proj",
    "v": r"(self_attn|encoder_attn)\.v_proj",
    "out": r"(self_attn|encoder_attn)\.out_proj",
    "fc1": r"fc1",
    "fc2": r"fc2",
}
NORMS = r"\w*layer_norm"
MORE_RANKS = 1.5  # AdaLoRA begins with so many times the rank that it shall come to


def layer_range(choice: str, layers: int, key: str) -> range:
    """Layers named by `all`, `none`, `top N` (the last N) or `A-B` (counted from 0, both in).

    Raises RecipeError where the model has fewer layers than the choice names.
    """
    if choice in ("all", "none"):
        return range(layers if choice == "all" else 0)
    if choice.startswith("top "):
        count = int(choice.removeprefix("top "))
        chosen = range(layers - count, layers)
    else:
        first, last = map(int, choice.split("-"))
        chosen = range(first, last + 1)
    if not chosen or chosen[0] < 0 or chosen[-1] >= layers:
        raise RecipeError(
            f"{key}: {choice!r} does not fit a model of {layers} layers (0 to {layers - 1})"
        )
    return chosen


@dataclass(frozen=True)
class Adapter:
    """Where it sits and how large it is; made from the recipe and the base's layer counts."""

    rank: int
    alpha: int
    dropout: float
    encoder: range
    decoder: range
    modules: tuple[str, ...]
    method: str = "lora"  # or adalora, dora, layernorm
    rank_stabilized: bool = False
    start: str = "random"  # or pissa

    @property
    def first_rank(self) -> int:
        """Directions of each matrix at the start."""
        return round(MORE_RANKS * self.rank) if self.method == "adalora" else self.rank

    def pattern(self) -> str:
        """Regular expression that matches the full names of the adapted linear layers, or norms."""
        norms = self.method == "layernorm"
        kinds = NORMS if norms else "|".join(MODULES[name] for name in self.modules)
        parts = [
            rf"{part}\.layers\.({'|'.join(map(str, layers))})"
            for part, layers in (("encoder", self.encoder), ("decoder", self.decoder))
            if layers
        ]
        if not parts:
            raise RecipeError(
                "adapter: encoder_layers and decoder_layers are both none: nothing would be trained"
            )
        return rf"model\.({'|'.join(parts)})\.({kinds})"


def attach(
    model: WhisperForConditionalGeneration, adapter: Adapter, *, own: bool = True
) -> PeftModel:
    """Wrap `model` with a freshly initialised adapter; LoRA's weights are fp32.

    With `own`, LoRA's layers run as the operators of model/lora.py, else as peft's modules, which
    torch.compile can follow.
    """
    from peft import get_peft_model

    with quiet_transformers():
        wrapped = get_peft_model(model, peft_config(adapter, own))
    for name, constant in wrapped.named_parameters():
        if ".ranknum." in name:  # peft lets it train where it casts adapters to fp32
            constant.requires_grad_(False)
    expected = expected_parameters(model, adapter)
    found = trainable_count(wrapped)
    if found != expected:
        raise StateError(
            f"the adapter trains {found:,} parameters where {expected:,} were expected"
        )
    return wrapped


def peft_config(adapter: Adapter, own: bool) -> PeftConfig:
    """The adapter as peft is told of it.

    task_type stays unset: SEQ_2_SEQ_LM would make peft's forward ask for input_ids (peft#1988).
    """
    import torch
    from peft import AdaLoraConfig, LNTuningConfig, LoraConfig

    from peft_whisper.model.lora import Linear

    if adapter.method == "layernorm":
        return LNTuningConfig(target_modules=adapter.pattern())
    alpha: Any = adapter.alpha * adapter.first_rank / adapter.rank  # peft divides by the first
    if adapter.method == "adalora":  # when it cuts is laid out by training.ranks
        return AdaLoraConfig(
            init_r=adapter.first_rank,
            target_r=adapter.rank,
            lora_alpha=alpha,
            lora_dropout=adapter.dropout,
            target_modules=adapter.pattern(),
            total_step=1_000_000,
            tinit=999_999,
        )
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.pattern(),
        use_rslora=adapter.rank_stabilized,
        use_dora=adapter.method == "dora",
        init_lora_weights="pissa" if adapter.start == "pissa" else True,
    )
    if own:
        config._register_custom_module({torch.nn.Linear: Linear})
    return config


def expected_parameters(model: torch.nn.Module, adapter: Adapter) -> int:
    """Of the layers that the pattern names: rank x (inputs + outputs), and lengths; or norms."""
    pattern = re.compile(rf"(base_model\.model\.)?{adapter.pattern()}")
    named = [module for name, module in model.named_modules() if pattern.fullmatch(name)]
    layers: list[Any] = [getattr(module, "base_layer", module) for module in named]
    if adapter.method == "layernorm":
        return sum(norm.weight.numel() + norm.bias.numel() for norm in layers)
    rank = adapter.first_rank
    beside = {"dora": lambda linear: linear.out_features, "adalora": lambda _: rank}
    return sum(
        rank * (linear.in_features + linear.out_features)
        + beside.get(adapter.method, lambda _: 0)(linear)
        for linear in layers
    )


def train_everything(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """Full fine-tune: every weight trains but the encoder's sinusoids, which are constants."""
    model.requires_grad_(True)
    model.model.encoder.embed_positions.requires_grad_(False)
    return model


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Trainable parameters by name, each storage once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def trainable_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in trainable(model).values())


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Decode with the adapter folded into the base, then put the base back bit for bit.

    Folding and unfolding by arithmetic would leave rounding in the base, so the weights that are
    touched are kept aside (in host memory) and copied back. A quantised base can't take the sum
    without losing most of it: there the adapter stays beside.
    """
    import torch

    from peft_whisper.model.quantized import is_quantized

    if not hasattr(model, "peft_config") or is_quantized(model):
        yield
        return

    layers = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    kept = [layer.base_layer.weight.detach().to("cpu", copy=True) for layer in layers]
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                layer.base_layer.weight.copy_(weight)


class FirstBackwardCheck:
    """Proves after the first backward that what trains is what the recipe says, and no more.

    Watches the first adapted layer of encoder and decoder: where a gradient would flow on into
    frozen layers below it, time and memory are being spent on nothing.
    """

    def __init__(self, whisper: Any, adapter: Adapter | None):
        self.walked: set[str] = set()
        self.hooks: list[Any] = []
        if adapter is None:  # a full fine-tune has nothing frozen to walk through
            return
        encoder, decoder = whisper.model.encoder, whisper.model.decoder
        if adapter.encoder:
            self._watch_input(encoder.layers[adapter.encoder[0]], "encoder", adapter.encoder[0])
            self._watch_input(decoder.layers[0], "decoder", 0)
        else:
            self.hooks.append(encoder.layer_norm.register_forward_hook(self._encoder_output))
            self._watch_input(decoder.layers[adapter.decoder[0]], "decoder", adapter.decoder[0])

    def _watch_input(self, layer: torch.nn.Module, part: str, number: int) -> None:
        def hook(_module: Any, inputs: tuple) -> None:
            if inputs[0].requires_grad:
                self.walked.add(f"{part} below layer {number}")

        self.hooks.append(layer.register_forward_pre_hook(hook))

    def _encoder_output(self, _module: Any, _inputs: tuple, output: torch.Tensor) -> None:
        if output.requires_grad:
            self.walked.add("the whole encoder")

    def finish(self, trained: dict[str, torch.nn.Parameter]) -> None:
        """Raise StateError where a trained tensor got no gradient or a frozen part was walked."""
        for hook in self.hooks:
            hook.remove()
        idle = [name for name, parameter in trained.items() if parameter.grad is None]
        if idle:
            shown = ", ".join(idle[:5])
            raise StateError(
                f"{len(idle)} trainable tensors got no gradient in the first step: {shown}. "
                "They would never learn; the adapter does not reach the loss."
            )
        if self.walked:
            raise StateError(
                f"the backward pass walked frozen layers: {', '.join(sorted(self.walked))}. "
                "Something below the lowest adapter asks for gradients."
            )
