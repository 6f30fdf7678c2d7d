"""The sections of a recipe: every key with its type, range, default and purpose.

The descriptions are also the JSON schema that editors show.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from peft_whisper.recipe_speech import LICENCE, Section

MODULES = ("q", "k", "v", "out", "fc1", "fc2")
MAX_POSITIONS = 1500  # encoder positions in 30 s, 20 ms each
MAX_TOKENS = 448  # decoder positions of every Whisper

Modules = Literal["all"] | tuple[str, ...]


def _modules(value: object) -> Modules:
    """Accept "all" or a list of distinct module kinds; raises ValueError."""
    if value == "all":
        return "all"
    kinds = tuple(value) if isinstance(value, list | tuple) else ()
    if kinds and len(set(map(str, kinds))) == len(kinds) and all(k in MODULES for k in kinds):
        ordered = tuple(kind for kind in MODULES if kind in kinds)  # one meaning, one hash
        return "all" if ordered == MODULES else ordered
    raise ValueError(f"expected all, or a list of different kinds out of {', '.join(MODULES)}")


_MODULES_SCHEMA = {
    "anyOf": [
        {"const": "all"},
        {
            "type": "array",
            "items": {"enum": list(MODULES)},
            "minItems": 1,
            "uniqueItems": True,
        },
    ]
}
_LAYERS = r"^(all|none|top [1-9][0-9]{0,2}|[0-9]{1,3}-[0-9]{1,3})$"
_RECOMPUTE = r"^(none|cheap|all|auto|[1-9][0-9]?/[1-9][0-9]?)$"
_LAYER_EXAMPLES = ["all", "none", "top 8", "0-7"]


class Base(Section):
    """The pretrained Whisper to start from."""

    model: str = Field(min_length=1, description="Hub id or local folder of the Whisper to tune.")
    revision: str | None = Field(
        None, min_length=1, description="Commit or tag of the Hub model; pins what is downloaded."
    )
    license: str | None = Field(
        None, pattern=LICENCE, description="Its licence as the Hub spells it; stands in the card."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Type the weights are held in; 16 bits halve their memory.",
    )
    quantize: Literal["int8", "nf4"] | None = Field(
        None,
        description="Hold the frozen linear layers in 8 or 4 bits (bitsandbytes): a half or a "
        "quarter of bfloat16's memory, slower; adapters only.",
    )


class Adapter(Section):
    """What is trained: an adapter beside the frozen base, or (none) every weight."""

    method: Literal["lora", "adalora", "dora", "layernorm", "none"] = Field(
        "lora",
        description="adalora: LoRA whose ranks go where they are worth most; dora: LoRA and a "
        "length for each output; layernorm: the layers' norms alone; none: every weight.",
    )
    rank: int = Field(
        32, ge=1, le=1280, description="Width of the adapter; higher learns more, costs memory."
    )
    alpha: int = Field(
        64, ge=1, le=10_000, description="Adapter strength: its output is scaled by alpha / rank."
    )
    rank_stabilized: bool = Field(
        False, description="Scale by alpha / sqrt(rank) instead (rsLoRA), for high ranks."
    )
    start: Literal["random", "pissa"] = Field(
        "random",
        description="What LoRA begins as: random directions, adding nothing; or pissa, the base's "
        "strongest ones, taken out of it. Saved at twice the rank.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of adapter inputs dropped; higher overfits less."
    )
    encoder_layers: str = Field(
        "all",
        description="Encoder layers to adapt: all, none, top 8, 0-7; fewer cost less compute.",
        pattern=_LAYERS,
        examples=_LAYER_EXAMPLES,
    )
    decoder_layers: str = Field(
        "all",
        description="Decoder layers to adapt: all, none, top 8, 0-7; fewer cost less compute.",
        pattern=_LAYERS,
        examples=_LAYER_EXAMPLES,
    )
    modules: Annotated[Modules, BeforeValidator(_modules), WithJsonSchema(_MODULES_SCHEMA)] = Field(
        "all", description="Linear layers to adapt: all, or a list of q, k, v, out, fc1, fc2."
    )


class Context(Section):
    """How long the encoder's input is; one position is 20 ms, 1500 are 30 s."""

    margin_positions: int = Field(
        8,
        ge=8,
        le=MAX_POSITIONS,
        description="Silence after the clip that is heard whole; of the rest up to 30 s, one "
        "position in 16 is. 1500: all of it, as other programs do.",
    )


class Training(Section):
    """How the weights move."""

    updates: int | None = Field(None, ge=1, description="Optimizer steps; or give epochs.")
    epochs: float | None = Field(
        None, gt=0, le=10_000, description="Passes over the training clips; or give updates."
    )
    batch: int = Field(
        16, ge=1, le=4096, description="Clips per process and micro-step; higher costs memory."
    )
    accumulation: int = Field(
        1, ge=1, le=4096, description="Micro-steps per update; a larger batch in equal memory."
    )
    micro_audio_s: float | None = Field(
        None,
        gt=0,
        description="Most seconds of encoder input (padding too) in a micro-step: more are split, "
        "with the same result; lower costs less memory.",
    )
    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        "fp32",
        description="Type computed in; bf16 is faster and smaller on a recent card, fp16 on a T4; "
        "auto takes what the card has, and on a CPU bf16 where it is measured to be faster.",
    )
    attention: Literal["torch", "tiled", "auto"] = Field(
        "torch",
        description="How attention is computed: torch's kernels; tiled, the same in tiles that a "
        "CPU's cache holds, faster in bf16; auto measures on a CPU which is faster.",
    )
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = Field(
        "adamw", description="8 bit holds the optimizer's state in a quarter of the memory."
    )
    learning_rate: float = Field(
        gt=0, le=0.1, description="Highest step size; too high makes loops, too low learns slowly."
    )
    up_ratio: float = Field(
        1.0, ge=1, le=1000, description="Step size of LoRA's B over that of its A (LoRA+: 4 to 16)."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Pull of the weights towards zero.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warm-up."
    )
    warmup: int = Field(0, ge=0, description="Updates over which the learning rate rises.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients longer than this are shortened; lower is steadier."
    )
    recompute: str = Field(
        "none",
        description="Activations computed again in backward instead of kept: none; cheap (norms, "
        "GELU, casts); a share of the layers such as 1/3 or 2/3 (the others cheap); all; or auto, "
        "the least that fits the card. More costs time and saves memory; the result is the same.",
        pattern=_RECOMPUTE,
        examples=["none", "cheap", "1/3", "2/3", "all", "auto"],
    )
    frozen_cache: Literal["none", "memory", "disk"] = Field(
        "none",
        description="Where to keep what encoder layers below the lowest adapter give: they run "
        "once, before training. Less time, the same result; lengths must not be random.",
    )
    compile: bool = Field(
        False,
        description="Compile the layers with torch.compile: minutes of warm-up, the same losses; "
        "no gain has been measured here yet.",
    )


class Evaluation(Section):
    """How the model is judged, by real decoding."""

    every: int = Field(ge=1, description="Updates between validations.")
    metric: Literal["mer", "wer", "cer"] = Field(
        "mer", description="Rate that chooses the best checkpoint; mer is bounded by 100 %."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after this many validations without improvement."
    )
    batch: int = Field(16, ge=1, le=4096, description="Clips decoded at once.")
    normalizer: Literal["english", "basic", "basic_marks", "characters", "raw"] = Field(
        "english",
        description="What both texts pass through before words are compared; left out: english for "
        "en, characters for scripts without spaces, else basic_marks.",
    )
    bootstrap: int = Field(2000, ge=10, le=10**6, description="Resamples behind each interval.")
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="New tokens per clip; null: the model's limit."
    )


class Checkpoints(Section):
    """What is kept on disk."""

    keep_last: int = Field(
        2, ge=1, le=10_000, description="Checkpoints kept beside the best one; each takes disk."
    )
    minutes: float = Field(
        10, gt=0, description="One is made at each validation, and when so much time has passed."
    )
