"""What must agree between the keys of a recipe, beyond each key's own type and range."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]
Contradiction = tuple[Path, str]  # the key to point at, and what is wrong

SPLITS = ("train", "validation", "test")
KINDS = ("hub", "folder", "manifest", "parquet", "from_train")
HUB_ONLY = ("config", "split", "revision", "streaming")


def contradictions(tree: Mapping[str, Any]) -> list[Contradiction]:
    """Return every disagreement between the keys given in `tree`.

    `tree` holds only what was written, defaults left out, and may still be wrong in itself (a text
    where a number is due): such values are passed over here, since their type is reported anyway.
    """
    rules = (_sources, _model, _adapter, _training, _frozen_cache)
    return [found for rule in rules for found in rule(tree)]


def _section(tree: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    node: Any = tree
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _integer(section: Mapping[str, Any], key: str, default: int | None = None) -> int | None:
    value = section.get(key, default)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _sources(tree: Mapping[str, Any]) -> Iterator[Contradiction]:
    data = _section(tree, "data")
    for split in SPLITS:
        if not isinstance(data.get(split), Mapping):
            continue  # missing or of a wrong type: reported by the types
        path, source = ("data", split), data[split]
        allowed = KINDS[:-1] if split == "train" else KINDS
        given = [kind for kind in KINDS if source.get(kind) is not None]
        if split == "train" and "from_train" in given:
            yield (*path, "from_train"), "train can't be cut from itself; remove it here"
            given.remove("from_train")
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            yield path, f"expected exactly one of {', '.join(allowed)}; found {found}"
        elif given != ["hub"]:
            useless = HUB_ONLY if given != ["from_train"] else (*HUB_ONLY, "columns")
            for key in useless:
                if source.get(key) is not None:
                    yield (*path, key), f"has no effect beside {given[0]}; remove it"


def _model(tree: Mapping[str, Any]) -> Iterator[Contradiction]:
    data, model = _section(tree, "data"), _section(tree, "base").get("model")
    if not isinstance(model, str):
        return
    if "://" in model:
        yield (
            ("base", "model"),
            "expected a Hub id or a local folder, found an address; "
            "write for instance openai/whisper-large-v3",
        )
    if model.rstrip("/").endswith(".en"):
        if data.get("language") not in (None, "en"):
            yield (
                ("data", "language"),
                f"{model} knows English only; write en, or take a model without .en",
            )
        if data.get("task") == "translate":
            yield ("data", "task"), f"{model} can't translate; take a model without .en"


LORA_KEYS = ("rank", "alpha", "dropout", "modules", "rank_stabilized", "start")
WITHOUT = {  # keys of `adapter` that a method has no use for
    "none": (*LORA_KEYS, "encoder_layers", "decoder_layers"),
    "layernorm": LORA_KEYS,
    "adalora": ("rank_stabilized", "start"),
    "dora": ("start",),
}


def _adapter(tree: Mapping[str, Any]) -> Iterator[Contradiction]:
    adapter = _section(tree, "adapter")
    method = adapter.get("method", "lora")
    said = {
        "none": "trains every weight",
        "layernorm": "has no matrices",
        "adalora": "begins and scales in its own way",
        "dora": "is not PiSSA",
    }
    for key in [key for key in adapter if key in WITHOUT.get(str(method), ())]:
        yield (
            ("adapter", key),
            f"method: {method} {said[str(method)]}; remove adapter.{key} "
            f"(override: adapter={{method: {method}}})",
        )
    if method == "none":
        return
    quantize = _section(tree, "base").get("quantize")
    own = method in ("adalora", "dora")
    if quantize is not None and (own or adapter.get("start") == "pissa"):
        key = "method" if own else "start"
        yield (
            ("adapter", key),
            f"{adapter[key]} needs the base's own weights, which base.quantize {quantize} does not "
            "keep; write method: lora and start: random, or remove base.quantize",
        )
    if adapter.get("encoder_layers") == adapter.get("decoder_layers") == "none":
        yield ("adapter",), "no layer is left to train: encoder_layers and decoder_layers are none"
    for key in ("encoder_layers", "decoder_layers"):
        first, dash, last = str(adapter.get(key, "")).partition("-")
        if dash and first.isdecimal() and last.isdecimal() and int(first) > int(last):
            yield (
                ("adapter", key),
                f"expected first-last, counted from 0; found {first}-{last}: "
                f"did you mean {last}-{first}?",
            )


def _training(tree: Mapping[str, Any]) -> Iterator[Contradiction]:
    training = _section(tree, "training")
    given = [key for key in ("updates", "epochs") if training.get(key) is not None]
    if training and len(given) != 1:
        found = " and ".join(given) or "neither"
        yield ("training",), f"expected exactly one of updates, epochs; found {found}"
    updates, warmup = _integer(training, "updates"), _integer(training, "warmup", 0)
    if updates is not None and warmup is not None and 0 < updates <= warmup:
        yield (
            ("training", "warmup" if "warmup" in training else "updates"),
            f"warmup ({warmup}) must be less than updates ({updates}), "
            "or the learning rate never arrives",
        )
    share = str(training.get("recompute", "")).split("/")
    if len(share) == 2 and all(map(str.isdecimal, share)) and int(share[0]) > int(share[1]):
        yield (
            ("training", "recompute"),
            f"expected a share of the layers, at most 1/1; found {'/'.join(share)}",
        )
    method = _section(tree, "adapter").get("method", "lora")
    if training.get("up_ratio", 1) != 1 and method not in ("lora", "dora"):
        yield (
            ("training", "up_ratio"),
            f"it is of LoRA's B, and adapter.method {method} has none; write 1, or remove it",
        )
    if training.get("compile") is True:
        yield from _compiled(tree)
    yield from _precision(tree)


def _frozen_cache(tree: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Kept is what frozen layers give: there must be some."""
    if _section(tree, "training").get("frozen_cache") not in ("memory", "disk"):
        return
    key, adapter = ("training", "frozen_cache"), _section(tree, "adapter")
    layers = str(adapter.get("encoder_layers", "all"))
    if adapter.get("method") == "none":
        yield key, "adapter.method none trains every weight: no layer is frozen; remove it"
    elif layers == "all" or re.fullmatch("0+-.*", layers):
        yield (
            key,
            f"no encoder layer is frozen below the adapters: adapter.encoder_layers is {layers}; "
            "write none, or for instance top 8, or remove training.frozen_cache",
        )


def _compiled(tree: Mapping[str, Any]) -> Iterator[Contradiction]:
    """What a compiled layer can't do."""
    recompute = _section(tree, "training").get("recompute", "none")
    if recompute != "none":
        yield (
            ("training", "compile"),
            "a compiled layer decides itself what it keeps; write training.recompute: none, or "
            "training.compile: false",
        )
    if _section(tree, "training").get("attention", "torch") != "torch":
        yield (
            ("training", "compile"),
            "compiled layers run torch's attention; write training.attention: torch, or "
            "training.compile: false",
        )
    if _section(tree, "base").get("quantize") is not None:
        yield (
            ("training", "compile"),
            "layers held in 8 or 4 bits are not compiled; remove base.quantize, or write "
            "training.compile: false",
        )


def _precision(tree: Mapping[str, Any]) -> Iterator[Contradiction]:
    """What the weights are held in, what is computed in, and what is trained."""
    base, training = _section(tree, "base"), _section(tree, "training")
    dtype, computed = base.get("dtype", "float32"), training.get("precision", "fp32")
    everything = _section(tree, "adapter").get("method") == "none"
    short = {"bfloat16": "bf16", "float16": "fp16"}.get(str(dtype))
    if short and computed != short:
        yield (
            ("base", "dtype"),
            f"{dtype} weights have lost the digits that training.precision {computed} computes "
            f"with; write training.precision: {short}, or base.dtype: float32",
        )
    if everything and dtype == "float16":
        yield (
            ("base", "dtype"),
            "with adapter.method none the weights themselves are trained, and float16 can't hold "
            "them; write bfloat16 or float32",
        )
    if everything and dtype == "bfloat16" and "8bit" not in str(training.get("optimizer", "adamw")):
        yield (
            ("training", "optimizer"),
            "bfloat16 weights that are trained themselves need an optimizer that keeps what their "
            "rounding cuts off; write adamw8bit or paged_adamw8bit, or base.dtype: float32",
        )
    if everything and base.get("quantize") is not None:
        yield (
            ("base", "quantize"),
            f"{base['quantize']} weights are frozen: they can't be trained themselves; remove "
            "base.quantize, or train an adapter (adapter.method: lora)",
        )
