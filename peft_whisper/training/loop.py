"""The training loop: token-weighted updates, validation by real decoding, the best one kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from peft_whisper.data.batches import Batch, Context, Layout, TrainingBatches, plan_epoch
from peft_whisper.errors import StateError
from peft_whisper.model.adapters import FirstBackwardCheck, trainable
from peft_whisper.model.encoder import TokenLoss
from peft_whisper.training.optim import Masters, build_optimizer, scale_at

if TYPE_CHECKING:
    from accelerate import Accelerator

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import Labels
    from peft_whisper.recipe_sections import Data, Evaluation, Training

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Course:
    """What is heard in a run: audited clips, how they become batches, and how often."""

    clips: Sequence[Clip]
    labels: Labels
    n_mels: int
    context: Context
    data: Data
    layout: Layout
    updates: int
    seed: int

    @property
    def updates_per_epoch(self) -> int:
        return self.layout.updates_per_epoch(len(self.clips))


def stream_updates(course: Course, rank: int) -> Iterator[list[Batch]]:
    """Micro-batches of every update of the run, in order, for one process."""
    durations = [clip.duration_s for clip in course.clips]
    left, epoch = course.updates, 0
    while left > 0:
        plan = plan_epoch(durations, course.layout, course.context, course.seed, epoch)[:left]
        steps = [update[rank] for update in plan]
        dataset = TrainingBatches(
            course.clips,
            [micro for step in steps for micro in step],
            course.labels,
            course.n_mels,
            channel=course.data.channel,
            timestamps=course.data.timestamps,
            seed=course.seed,
            epoch=epoch,
        )
        loader: DataLoader[Batch] = DataLoader(
            dataset,  # type: ignore[arg-type]  # map-style by its methods, without inheriting
            batch_size=None,
            num_workers=course.data.workers,
            pin_memory=torch.cuda.is_available(),
        )
        stream = iter(loader)
        for step in steps:
            yield [next(stream) for _ in step]
        left, epoch = left - len(steps), epoch + 1


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
    ):
        self.accelerator, self.training = accelerator, training
        self.first_check: FirstBackwardCheck | None = first_check
        weights = next(model.parameters()).dtype
        self.masters = Masters(trainable(model), weights)
        self.autocast = training.precision == "bf16" and weights == torch.float32
        self.forward = accelerator.prepare_model(TokenLoss(model))
        self.optimizer = build_optimizer(
            training.optimizer, self.masters, training.learning_rate, training.weight_decay
        )

    def step(self, batches: list[Batch], scale: float) -> tuple[float, float]:
        """Train on one update's micro-batches; returns loss per token and gradient norm."""
        self.forward.train()
        loss = self.backward(batches)
        self.masters.take_gradients()
        if self.first_check:
            self.first_check.finish(self.masters.named)
            self.first_check = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters.fp32, self.training.max_grad_norm)
        values = torch.stack([loss, norm.to(loss)]).tolist()
        if not all(map(_finite, values)):
            clips = ", ".join(clip for batch in batches for clip in batch.clip_ids)
            raise StateError(
                f"loss {values[0]}, gradient norm {values[1]} at learning rate "
                f"{scale * self.training.learning_rate:.3g}. Nothing was updated. Clips: {clips}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = scale * self.training.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.publish()
        return values[0], values[1]

    def backward(self, batches: list[Batch]) -> torch.Tensor:
        """Gradients of the effective batch, left on the model; returns the loss per token."""
        device, world = self.accelerator.device, self.accelerator.num_processes
        tokens = sum(len(batch.targets) for batch in batches)
        if world > 1:
            tokens = int(self.accelerator.reduce(torch.tensor(tokens, device=device)))
        total = torch.zeros((), device=device)
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            sync = nullcontext() if last else self.accelerator.no_sync(self.forward)
            batch = batch.to(device)
            with sync:
                with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
                    summed = self.forward(
                        batch.mel, batch.decoder_input_ids, batch.index, batch.targets
                    )
                loss = summed / tokens
                (loss * world).backward()  # data-parallel wrappers average over processes
            total += loss.detach()
        return self.accelerator.reduce(total) if world > 1 else total


def updates_of(training: Training, layout: Layout, clips: int) -> int:
    """Updates of the whole run, from `training.updates` or `training.epochs`."""
    if training.epochs is None:
        assert training.updates is not None  # the recipe holds exactly one of the two
        return training.updates
    return max(1, round(training.epochs * layout.updates_per_epoch(clips)))


def _finite(value: float) -> bool:
    return value - value == 0.0


class Meter:
    """Speed of training alone: evaluation is not timed, the first update is warm-up."""

    def __init__(self, processes: int):
        self.processes = processes
        self.seconds, self.clips, self.audio_s = 0.0, 0, 0.0

    def update(self, number: int, batches: list[Batch], seconds: float) -> dict[str, float]:
        """Count one update of `seconds`; returns its speed."""
        clips = sum(len(batch.clip_ids) for batch in batches) * self.processes
        audio_s = sum(batch.audio_s for batch in batches) * self.processes
        if number > 1:
            self.seconds += seconds
            self.clips += clips
            self.audio_s += audio_s
        return {
            "clips_per_s": clips / seconds,
            "audio_s_per_s": audio_s / seconds,
            "seconds": seconds,
        }

    def summary(self) -> dict[str, float | None]:
        """Speed of the run without its warm-up; None where one update was all."""
        if not self.seconds:
            return {"clips_per_s": None, "audio_s_per_s": None, "seconds": 0.0}
        seconds = self.seconds
        return {
            "clips_per_s": self.clips / seconds,
            "audio_s_per_s": self.audio_s / seconds,
            "seconds": self.seconds,
        }


@dataclass
class Selection:
    """The best checkpoint so far by `metric` (lower is better), and how long none was better."""

    metric: str
    update: int = 0
    value: float = float("inf")
    waited: int = 0

    def consider(self, update: int, value: float) -> bool:
        better = self.update == 0 or value < self.value
        if better:
            self.update, self.value, self.waited = update, value, 0
        else:
            self.waited += 1
        return better


@dataclass(frozen=True)
class Result:
    """How a run went: updates made, the kept checkpoint, training speed."""

    updates: int
    best: Selection
    speed: dict[str, float | None]


def fit(
    updater: Updater,
    course: Course,
    evaluation: Evaluation,
    validate: Callable[[], dict[str, Any]],
    keep: Callable[[int, int], None],
    log: Log,
) -> Result:
    """Train until the planned updates are done or `evaluation.patience` runs out.

    `validate()` decodes the validation split: before the first update, so that the curve has its
    start, then every `evaluation.every` updates and after the last. `keep(update, best_update)`
    stores the checkpoint each time.
    """
    rank, world = updater.accelerator.process_index, updater.accelerator.num_processes
    best, meter, update = Selection(evaluation.metric), Meter(world), 0
    log({"event": "start", "updates": course.updates, "per_epoch": course.updates_per_epoch})
    log({"event": "validation", "update": 0, "best": False} | validate())
    began = time.perf_counter()
    for batches in stream_updates(course, rank):
        scale = scale_at(update, course.updates, updater.training)
        update += 1
        # Dropout depends on the update and the process alone.
        torch.manual_seed(course.seed * 1_000_003 + update + rank * 500_009)
        try:
            loss, norm = updater.step(batches, scale)
        except StateError as error:
            raise StateError(f"training stopped at update {update}: {error}") from error
        row = {
            "event": "train",
            "update": update,
            "epoch": round(update / course.updates_per_epoch, 3),
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": scale * updater.training.learning_rate,
        }
        log(row | meter.update(update, batches, time.perf_counter() - began))
        began = time.perf_counter()  # loading the next batches counts
        if update % evaluation.every and update != course.updates:
            continue
        scores = validate()
        better = best.consider(update, scores[evaluation.metric])
        log({"event": "validation", "update": update, "best": better} | scores)
        keep(update, best.update)
        began = time.perf_counter()
        if evaluation.patience and best.waited >= evaluation.patience:
            why = f"{evaluation.metric} no lower for {best.waited} validations"
            log({"event": "stop", "update": update, "reason": why})
            break
    return Result(update, best, meter.summary())
