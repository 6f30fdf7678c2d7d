"""One update: token-weighted gradients of an effective batch, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from peft_whisper.data.batches import Batch
from peft_whisper.environment import empty_caches, is_out_of_memory
from peft_whisper.errors import StateError, first_line
from peft_whisper.model.adapters import FirstBackwardCheck, trainable
from peft_whisper.model.encoder import TokenLoss, whisper_of
from peft_whisper.model.pissa import start_of
from peft_whisper.training.optim import Masters, build_optimizer
from peft_whisper.training.precision import LossScale, autocast_dtype
from peft_whisper.training.ranks import Ranks, is_adalora
from peft_whisper.training.room import DoesNotFitError, Room

if TYPE_CHECKING:
    from accelerate import Accelerator

    from peft_whisper.recipe_sections import Training

Log = Callable[[dict[str, Any]], None]


class Updater:
    """One optimizer step over an effective batch, exactly weighted by tokens.

    The loss is the sum over target tokens divided by the number of tokens in the whole effective
    batch: all micro-steps, all processes. So 4 x 1 and 1 x 4 give the same gradient.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        training: Training,
        first_check: FirstBackwardCheck,
        first_layer: int | None = None,
    ):
        self.accelerator, self.training = accelerator, training
        self.model, self.first_layer, self.start = model, first_layer, start_of(model)
        self.first_check: FirstBackwardCheck | None = first_check
        weights = whisper_of(model).dtype
        in_place = not hasattr(model, "peft_config")
        self.masters = Masters(trainable(model), weights, in_place=in_place)
        self.ranks = Ranks(model, self.masters) if is_adalora(model) else None
        self.autocast = autocast_dtype(training.precision, weights)
        self.loss_scale = LossScale() if training.precision == "fp16" else None
        self.room = Room(training, accelerator.num_processes)
        self.forward = accelerator.prepare_model(TokenLoss(model, first_layer))
        self.optimizer = build_optimizer(
            training.optimizer,
            self.masters,
            training.learning_rate,
            training.weight_decay,
            training.up_ratio,
        )

    def plan(self, updates: int) -> None:
        """Lay out over a run's updates what changes with them."""
        if self.ranks:
            self.ranks.plan(updates)

    def step(
        self, batches: list[Batch], scale: float, log: Log = lambda _row: None
    ) -> tuple[float, float]:
        """Train on one update's micro-batches; returns loss per token and gradient norm.

        Where memory runs out, or float16 overflows, the update is begun again from the same random
        seed, in smaller micro-batches or at a smaller loss scale; `log` gets the event.

        Raises StateError where loss or gradients are not finite, and NoRoomError where not even
        one clip fits. Nothing is updated then.
        """
        self.forward.train()
        loss, norm = self._gradients(batches, log)
        if not (_finite(loss) and _finite(norm)):
            clips = ", ".join(clip for batch in batches for clip in batch.clip_ids)
            at_scale = f" and loss scale {self.loss_scale.value:g}" if self.loss_scale else ""
            raise StateError(
                f"loss {loss}, gradient norm {norm} at learning rate "
                f"{scale * self.training.learning_rate:.3g}{at_scale}. Nothing was updated. "
                f"Clips: {clips}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = scale * self.training.learning_rate * group["ratio"]
        with self.room.for_optimizer():
            self.optimizer.step()
            if self.ranks:
                self.ranks.cut()
            self.optimizer.zero_grad(set_to_none=True)
            self.masters.publish()
        if self.loss_scale:
            self.loss_scale.succeed()
        return loss, norm

    def _gradients(self, batches: list[Batch], log: Log) -> tuple[float, float]:
        """Whole gradients on the masters, clipped; returns loss per token and their norm."""
        while (values := self._try(batches, log)) is None:
            for parameter in (*self.masters.model, *self.masters.fp32):
                parameter.grad = None
            empty_caches(self.accelerator.device)
            torch.manual_seed(torch.initial_seed())  # what `fit` set for this update
        return values

    def _try(self, batches: list[Batch], log: Log) -> tuple[float, float] | None:
        """As `_gradients`; None where the same can be tried again, smaller."""
        try:
            loss = self.backward(self.room.cut(batches))
        except DoesNotFitError as error:
            log(self.room.learn(error.batch, error.said))
            return None
        with self.room.for_optimizer():
            self.masters.take_gradients()
            if self.loss_scale:
                self.loss_scale.divide(self.masters.fp32)
            if self.ranks:
                self.ranks.pull()
            if self.first_check:
                self.first_check.finish(self.masters.named)
                self.first_check = None
            norm = self.masters.clip(self.training.max_grad_norm)
        values = torch.stack([loss, norm.to(loss)]).tolist()
        # Where the loss itself is not finite, its scale is not why.
        factor, overflow = self.loss_scale, _finite(values[0]) and not _finite(values[1])
        if factor and overflow and factor.shrink():
            log({"event": "overflow", "loss_scale": factor.value})
            return None
        return values[0], values[1]

    def backward(self, batches: list[Batch]) -> torch.Tensor:
        """Gradients of the effective batch, left on the model; returns the loss per token.

        In float16 the gradients are `loss_scale` times as large. Raises DoesNotFitError where
        memory runs out; the gradients are then those of a part.
        """
        device, world = self.accelerator.device, self.accelerator.num_processes
        tokens = sum(len(batch.targets) for batch in batches)
        if world > 1:
            tokens = int(self.accelerator.reduce(torch.tensor(tokens, device=device)))
        total = torch.zeros((), device=device)
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            said = None
            try:
                with nullcontext() if last else self.accelerator.no_sync(self.forward):
                    total += self._micro_step(batch, tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = first_line(error)
            if said:  # raised out here, so that `error` and the tensors of its frames are gone
                raise DoesNotFitError(batch, said)
        return self.accelerator.reduce(total) if world > 1 else total

    def _micro_step(self, batch: Batch, tokens: int) -> torch.Tensor:
        """Add the gradients of one batch; returns its part of the loss per token."""
        device, world = self.accelerator.device, self.accelerator.num_processes
        batch = batch.to(device)
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            summed = self.forward(batch.sound, batch.decoder_input_ids, batch.index, batch.targets)
        loss = summed / tokens
        factor = self.loss_scale.value if self.loss_scale else 1.0
        (loss * (world * factor)).backward()  # data-parallel wrappers average over processes
        return loss.detach()


def _finite(value: float) -> bool:
    return value - value == 0.0
