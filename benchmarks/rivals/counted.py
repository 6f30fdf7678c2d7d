"""The usual stack's training step, to be counted: transformers' Whisper, peft's LoRA, the Trainer.

What they do with a base in 16 bits unless told otherwise: every clip padded to 30 s, adapters in
fp32, autocast, the stock loss over all positions. Its decoder keeps no cache, as its documentation
advises, and nothing is recomputed, which would cost it more FLOPs, bytes and kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn

from peft_whisper.model.adapters import Adapter

if TYPE_CHECKING:
    from peft_whisper.model.sizes import Blueprint
    from peft_whisper.recipe import Recipe

POSITIONS = 1500  # of the encoder, whatever the clip's length
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
Inputs = dict[str, Tensor]  # input_features, labels


class Rival:
    """Model, optimizer and step of the usual stack; on "cuda"."""

    def __init__(self, recipe: Recipe, base: Blueprint, adapter: Adapter):
        from peft import LoraConfig, get_peft_model

        self.recipe = recipe
        self.whisper: Any = base.load(recipe.base.dtype, None, "cuda")
        self.whisper.config.use_cache = False
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules=adapter.pattern(),
        )
        self.model: nn.Module = get_peft_model(self.whisper, config)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(recipe, self.trained)
        self.total = torch.zeros((), device="cuda")
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # makes its state
        self.model.zero_grad()

    def inputs(self, clips: int, labels: int) -> Inputs:
        """A batch as the collator gives it."""
        mels = self.whisper.config.num_mel_bins
        return {
            "input_features": torch.zeros(clips, mels, 2 * POSITIONS, device="cpu"),
            "labels": torch.zeros(clips, labels, dtype=torch.int64, device="cpu"),
        }

    def step(self, batches: list[Inputs], micro_step: Callable[[Inputs, int], None]) -> None:
        """One update, as trainer.py's loop makes it; `micro_step` is `self.micro_step`."""
        for batch in batches:
            micro_step(batch, len(batches))
        self._clip(self.recipe.training.max_grad_norm)
        self.optimizer.step()
        self.model.zero_grad()
        float(self.total)  # its log

    def _clip(self, longest: float) -> None:
        """What clip_grad_norm_ does on a card, and does not for the tensors of a fake one."""
        gradients: Any = [parameter.grad for parameter in self.trained]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (longest / (norm + 1e-6)).clamp(max=1.0))

    def micro_step(self, batch: Inputs, accumulation: int) -> None:
        """Forward, backward, and the Trainer's filter of losses that are not finite."""
        self.model.train()
        # accelerate's DataLoader moves from pinned memory, and waits (non_blocking=False).
        batch = {name: tensor.to("cuda") for name, tensor in batch.items()}
        batch["labels"].ne(-100).sum()  # num_items_in_batch
        dtype = AUTOCAST.get(self.recipe.training.precision)
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            loss = self.loss(**batch)
        loss = loss / accumulation
        loss.backward()
        loss = loss.detach()
        if torch.isnan(loss) or torch.isinf(loss):
            return
        self.total += loss

    def loss(self, input_features: Tensor, labels: Tensor) -> Tensor:
        """That of WhisperForConditionalGeneration.forward.

        Its cross-entropy is called here, since C++ chooses fp32 for it inside of autocast.
        """
        from transformers.models.whisper.modeling_whisper import shift_tokens_right

        config = self.whisper.config
        shifted = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
        with mock.patch("transformers.masking_utils.find_packed_sequence_indices", _find_none):
            logits = self.model(input_features=input_features, decoder_input_ids=shifted).logits
        flat = logits.view(-1, config.vocab_size).float()
        return nn.functional.cross_entropy(flat, labels.reshape(-1))


def _find_none(position_ids: Tensor) -> None:
    """What its decoder does on a card, and leaves out where tensors have no values.

    It looks for transcripts packed into one row, waits for the answer, and then needs no mask.
    """
    first = position_ids[:, :1] - 1
    packed = (torch.diff(position_ids, prepend=first, dim=-1) != 1).cumsum(-1)
    bool((packed[:, -1] == 0).all())


def _optimizer(recipe: Recipe, trained: list[Any]) -> torch.optim.Optimizer:
    training = recipe.training
    if training.optimizer == "adamw":  # adamw_torch_fused, the Trainer's default
        return torch.optim.AdamW(trained, lr=training.learning_rate, fused=True)
    import bitsandbytes as bnb

    paged = training.optimizer.startswith("paged")
    return bnb.optim.AdamW8bit(trained, lr=training.learning_rate, is_paged=paged)
