"""AdaLoRA: ranks go where they are worth most (Zhang et al. 2023), and what they leave is cut off.

Each matrix begins with more directions than it shall have on average; peft's allocator scores them
by how much the loss would miss them, and sets the least of all matrices to zero, more with each
update. What is published is ordinary LoRA, each matrix with the directions that are left.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from peft_whisper.model.base import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor

    from peft_whisper.training.optim import Masters

KEEP_ALL, CUT_UNTIL = 0.2, 0.7  # shares of the run: no direction is cut before, or after
SCORES = ("exp_avg_ipt", "exp_avg_unc")  # what the allocator remembers of each weight


class Ranks:
    """peft's allocator at work on the masters; what it remembers is part of a checkpoint."""

    def __init__(self, model: Any, masters: Masters):
        self.allocator = model.base_model.rankallocator
        self.config = self.allocator.peft_config
        self.named = masters.named
        self.shown = SimpleNamespace(named_parameters=self.named.items)
        self.done = 0
        self.pattern: dict[str, list[bool]] = {}  # of the final directions, once they are chosen

    def plan(self, updates: int) -> None:
        """Lay the cutting out over a run."""
        first = int(KEEP_ALL * updates)
        last = max(first + 2, int(CUT_UNTIL * updates))  # the scores are one update old
        self.config.total_step, self.config.tinit = updates, first
        self.config.tfinal = updates - last

    def pull(self) -> None:
        """Add to the gradients those of the paper's penalty, which keeps directions orthogonal.

        It is w mean |M|, M = A A' - 1 and B' B - 1 of every layer; d|M| = <2 M A / |M|, dA>.
        """
        sides = [(name, one) for name, one in self.named.items() if _side(name)]
        share = self.config.orth_reg_weight / len(sides)
        with torch.no_grad():
            for name, one in sides:
                rows = one if _side(name) == "A" else one.T  # (rank, width)
                apart = rows @ rows.T - torch.eye(len(rows), device=one.device)
                pulled = 2 * share / apart.norm().clamp(min=1e-12) * (apart @ rows)
                assert one.grad is not None
                one.grad += pulled if _side(name) == "A" else pulled.T

    def cut(self) -> None:
        """After an update, while its gradients are there: score, and set the least to zero."""
        self.done += 1
        last = self.config.total_step - self.config.tfinal
        if self.done > last:
            self.allocator.mask_using_rank_pattern(self.shown, self.pattern)
            return
        _, pattern = self.allocator.update_and_allocate(
            self.shown, self.done, force_mask=self.done == last
        )
        self.pattern = pattern or self.pattern

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by `score/weight`, and the rest as JSON takes it."""
        kept = {
            f"{score}/{name}": one.detach().to("cpu", copy=True)
            for score in SCORES
            for name, one in getattr(self.allocator, score).items()
        }
        return kept, {"done": self.done, "pattern": self.pattern}

    def restore(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.allocator.reset_ipt()
        for called, one in tensors.items():
            score, _, name = called.partition("/")
            getattr(self.allocator, score)[name] = one.to(self.named[name].device)
            self.allocator.ipt[name] = torch.empty(0)  # its presence says that there are scores
        self.done, self.pattern = rest["done"], rest["pattern"]


def is_adalora(model: Any) -> bool:
    """Whether the adapter that `model` wears has ranks to allocate."""
    configs = getattr(model, "peft_config", {})
    return any(one.peft_type == "ADALORA" for one in configs.values())


def _side(name: str) -> str | None:
    return next((one for one in ("A", "B") if f".lora_{one}." in name), None)


def make_lora(folder: Path) -> None:
    """Turn the AdaLoRA saved in `folder` into LoRA of as many directions as each matrix kept.

    A matrix that kept none has one that adds nothing: peft knows no rank of 0.
    """
    from peft import LoraConfig

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / (config["init_r"] + 1e-5)  # as peft's layer has it
    made: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for called in [name for name in weights if name.endswith(".lora_E")]:
        name = called.removesuffix(".lora_E")
        lengths = weights[called][:, 0]
        left = lengths.nonzero()[:, 0]
        left = left if len(left) else torch.zeros(1, dtype=torch.long)
        down = weights[f"{name}.lora_A"] * lengths[:, None]
        made[f"{name}.lora_A.weight"] = down[left].contiguous()
        made[f"{name}.lora_B.weight"] = weights[f"{name}.lora_B"][:, left].contiguous()
        ranks[name.removeprefix("base_model.model.")] = len(left)
    save_file(made, folder / "adapter_model.safetensors", {"format": "pt"})
    plain = LoraConfig(
        r=config["target_r"],
        lora_alpha=scale * config["target_r"],
        lora_dropout=config["lora_dropout"],
        target_modules=config["target_modules"],
        rank_pattern=ranks,
        alpha_pattern={name: scale * rank for name, rank in ranks.items()},
        base_model_name_or_path=config["base_model_name_or_path"],
        inference_mode=True,
    )
    with quiet_transformers():
        plain.save_pretrained(str(folder))
