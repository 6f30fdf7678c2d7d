"""What a run trained, read from its folder: damage and a wrong base are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.environment import is_out_of_memory
from peft_whisper.errors import StateError
from peft_whisper.model.base import INDEX, quiet_transformers, tensor_shapes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration

# What peft calls an adapter, by adapter.method: AdaLoRA's is saved as LoRA of what is left.
PEFT_TYPES = {"lora": "LORA", "adalora": "LORA", "dora": "LORA", "layernorm": "LN_TUNING"}
AGAIN = "Copy the folder from its run again, or train again."


def load_tuned(
    model: Any, fingerprint: str, folder: Path, name: str = "default"
) -> PeftModel | WhisperForConditionalGeneration:
    """Put what a run trained onto its freshly loaded base.

    An adapter folder gives a PeftModel around `model`, or, where `model` is one already, a further
    adapter in it called `name`, which from now on is the active one; the folder of a full fine-tune
    gives that model, in the dtype of `model`. `fingerprint` is that of the base.

    Raises StateError where the folder holds neither, is damaged, or belongs to another base.
    """
    facts = read_facts(folder)
    check_trained(folder, facts, fingerprint)
    if not is_adapter(facts):
        return type(model).from_pretrained(
            folder,
            dtype=model.dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
        )
    from peft import PeftModel

    try:
        with quiet_transformers():
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), name)
                model.set_adapter(name)
                return model
            return PeftModel.from_pretrained(model, str(folder), name)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):  # a RuntimeError too, but not the adapter's fault
            raise
        said = " ".join(str(error).split())[:200]
        raise StateError(f"{folder}: peft can't load this adapter ({said}). {AGAIN}") from error


def check_trained(folder: Path, facts: dict[str, Any], fingerprint: str) -> None:
    """Raise StateError where a trained folder is damaged or belongs to another base.

    `facts` is what `read_facts` found in it; `fingerprint` is that of the base at hand. Of the
    weights only the headers are read.
    """
    trained_on = facts["base"]
    if trained_on["fingerprint"] != fingerprint:
        raise StateError(
            f"{folder} was trained on {trained_on['model']} ({trained_on['fingerprint'][:19]}...), "
            f"not on this base ({fingerprint[:19]}...). Equal shapes do not make it fit: give the "
            "base it was trained on."
        )
    adapter = is_adapter(facts)
    config = _read_object(folder / ("adapter_config.json" if adapter else "config.json"))
    # Of a config that names a module, peft imports it.
    kind = PEFT_TYPES.get(facts["method"])
    if adapter and (config.get("peft_type") != kind or config.get("megatron_config")):
        raise StateError(f"{folder / 'adapter_config.json'} is not a plain {kind} one. {AGAIN}")
    weights = sorted(folder.glob("*.safetensors"))
    # Under these names, or the libraries look for pickled weights.
    names = ("adapter_model.safetensors",) if adapter else ("model.safetensors", INDEX)
    if not any((folder / name).is_file() for name in names):
        raise StateError(f"{folder} holds no weights ({names[0]}). {AGAIN}")
    for path in weights:
        try:
            tensor_shapes(path)
        except ValueError as error:
            raise StateError(f"{path} is damaged ({error}). {AGAIN}") from error


def is_adapter(facts: dict[str, Any]) -> bool:
    """Whether a trained folder holds an adapter beside its base, and not a whole model."""
    return facts["method"] in PEFT_TYPES


def read_facts(folder: Path) -> dict[str, Any]:
    """Read `peft_whisper.json` of a trained folder: its base, fingerprint and method.

    Raises StateError where it is missing, is not JSON or lacks one of these.
    """
    path = folder / "peft_whisper.json"
    if not path.is_file():
        raise StateError(
            f"{folder} holds no peft_whisper.json, so which base it belongs to is unknown. Give "
            "the adapter/ or model/ folder of a finished run."
        )
    facts = _read_object(path)
    base = facts.get("base")
    known = base if isinstance(base, dict) else {}
    wrong = [key for key in ("model", "fingerprint") if not isinstance(known.get(key), str)]
    if not isinstance(known.get("revision"), str | None):
        wrong.append("revision")
    keys = [f"base.{key}" for key in wrong]
    if facts.get("method") not in (*PEFT_TYPES, "none", "merged"):
        keys.insert(0, "method")
    if keys:
        raise StateError(f"{path} does not say {', '.join(keys)} as training wrote it. {AGAIN}")
    return facts


def _read_object(path: Path) -> dict[str, Any]:
    """A trained folder's JSON file; raises StateError where it holds no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StateError(f"{path.parent} holds no {path.name}. {AGAIN}") from error
    except (ValueError, RecursionError) as error:  # nested without end
        raise StateError(f"{path} is not JSON ({error}). {AGAIN}") from error
    if not isinstance(found, dict):
        raise StateError(f"{path} holds no JSON object. {AGAIN}")
    return found
