"""LoRA that begins as the base's strongest directions (PiSSA; Meng, Wang and Zhang 2024).

peft takes the `rank` largest singular directions s B0 A0 out of each matrix and lets the adapter
begin as them. What is trained then fits that lessened base alone. So what it began as is kept: what
is published is s (B A - B0 A0) beside the whole base, an ordinary LoRA of twice the rank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from peft_whisper.files import write_json

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

START = "start.safetensors"


def start_of(model: Module) -> dict[str, Tensor]:
    """Copies of A0 and B0 by the names that peft saves; empty where the adapter takes nothing."""
    configs = getattr(model, "peft_config", {})
    if not any(getattr(one, "init_lora_weights", None) == "pissa" for one in configs.values()):
        return {}
    return {
        name.replace(".default.", "."): parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def begin_again(model: Module, found: dict[str, Tensor], kept: Path) -> None:
    """Take from the base what the run in `kept` took, in place of `found`, taken just now.

    The decomposition of a matrix is bit for bit the same on one machine, and may have other signs
    on another, which the trained weights would not fit.
    """
    import torch

    with safe_open(kept, "pt") as file, torch.no_grad():
        adapted: dict[str, Any] = dict(model.named_modules())
        for name in dict.fromkeys(one.rpartition(".lora_")[0] for one in found):
            layer = adapted[name]
            then = [file.get_tensor(f"{name}.{part}.weight") for part in ("lora_A", "lora_B")]
            now = [found[f"{name}.{part}.weight"] for part in ("lora_A", "lora_B")]
            if all(map(torch.equal, then, now)):
                continue
            weight = layer.base_layer.weight
            change = layer.scaling["default"] * (now[1] @ now[0] - then[1] @ then[0])
            weight.copy_(weight.float() + change.to(weight.device))


def make_plain(folder: Path, start: Path) -> None:
    """Turn the adapter saved in `folder` into one for the whole base: [B, -B0] [A; A0]."""
    import torch

    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
    weights, began = load_file(folder / "adapter_model.safetensors"), load_file(start)
    joined = {
        name: torch.cat([one, began[name]])
        if name.endswith("lora_A.weight")
        else torch.cat([one, -began[name]], 1)
        for name, one in weights.items()
    }
    save_file(joined, folder / "adapter_model.safetensors", {"format": "pt"})
    changed = {"r": 2 * rank, "lora_alpha": 2 * rank * scale, "use_rslora": False}
    write_json(path, config | changed | {"init_lora_weights": True})
