"""The training loop: updates, validation by real decoding, the best one kept, an end any time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peft_whisper.data.batches import Batch
from peft_whisper.data.epochs import Layout
from peft_whisper.energy import Moment
from peft_whisper.errors import NoRoomError, StateError, Stopped
from peft_whisper.training.optim import scale_at
from peft_whisper.training.standing import Standing
from peft_whisper.training.stream import Course, living_loaders, stream_updates
from peft_whisper.training.tally import Meter, Selection

if TYPE_CHECKING:
    from peft_whisper.recipe_sections import Evaluation, Training
    from peft_whisper.training.updater import Updater

Log = Callable[[dict[str, Any]], None]


def updates_of(training: Training, layout: Layout, clips: int) -> int:
    """Updates of the whole run, from `training.updates` or `training.epochs`."""
    if training.epochs is None:
        assert training.updates is not None  # the recipe holds exactly one of the two
        return training.updates
    return max(1, round(training.epochs * layout.updates_per_epoch(clips)))


@dataclass(frozen=True)
class Result:
    """How a run went: updates made, the kept checkpoint, training's speed and energy."""

    updates: int
    best: Selection
    speed: dict[str, float | None]


@dataclass
class Run:
    """What a run does beside its updates.

    `validate()` decodes the validation split and returns its rates. `stop()` raises Stopped where
    the run is to end. Both are called on every process at the same updates. `keep(standing)` stores
    the checkpoint, where it is called by the main process; it must wait for no other, whose clock
    may differ. `log(row)` takes events.
    """

    validate: Callable[[], dict[str, Any]]
    keep: Callable[[Standing], None]
    stop: Callable[[], None]
    log: Log


@living_loaders()
def fit(
    updater: Updater,
    course: Course,
    evaluation: Evaluation,
    minutes: float,
    run: Run,
    begun: Standing | None = None,
) -> Result:
    """Train until the planned updates are done or `evaluation.patience` runs out.

    Validation is before the first update, so that the curve has its start, then every
    `evaluation.every` updates and after the last. Checkpoints are kept after each, and wherever
    `minutes` have passed since the one before. From where it had `begun`, a run goes on as if it
    had never stopped. Raises Stopped after the update at hand is kept.
    """
    world = updater.accelerator.num_processes
    at = begun or Standing(0, due=True, best=Selection(evaluation.metric), meter=Meter(world))
    sizes = {"updates": course.updates, "per_epoch": course.updates_per_epoch}
    run.log({"event": "resume", "update": at.update} if begun else {"event": "start"} | sizes)
    kept = time.perf_counter()
    updater.plan(course.updates)
    try:
        if at.due:
            _judge(at, evaluation, run)
        rank = updater.accelerator.process_index
        began = Moment.now()
        left = () if _over(at, evaluation) else stream_updates(course, rank, at.update)
        for batches in left:
            _update(updater, course, batches, at, run.log, began)
            at.due = at.update % evaluation.every == 0 or at.update == course.updates
            run.stop()
            if at.due:
                _judge(at, evaluation, run)
            elif time.perf_counter() - kept > 60 * minutes:
                run.keep(at)
            else:
                began = Moment.now()  # loading the next batches counts
                continue
            kept, began = time.perf_counter(), Moment.now()
            if _over(at, evaluation):
                break
    except Stopped as stop:
        if not at.update:
            raise
        raise _saved(stop, at, run, updater) from None
    if at.update < course.updates:
        _tell_early_end(at, evaluation, run.log)
    return Result(at.update, at.best, at.meter.summary())


def _saved(stop: Stopped, at: Standing, run: Run, updater: Updater) -> Stopped:
    """Keep what was trained so far; returns what to raise then."""
    run.keep(at)
    updater.accelerator.wait_for_everyone()  # a launcher ends the others when the first ends
    return Stopped(stop.signum, f"update {at.update} is saved, the same command goes on")


def _tell_early_end(at: Standing, evaluation: Evaluation, log: Log) -> None:
    why = f"{evaluation.metric} no lower for {at.best.waited} validations"
    log({"event": "stop", "update": at.update, "reason": why})


def _update(
    updater: Updater, course: Course, batches: list[Batch], at: Standing, log: Log, began: Moment
) -> None:
    """Make the next update, and say how it went; its batches were waited for since `began`."""
    rank = updater.accelerator.process_index
    scale = scale_at(at.update, course.updates, updater.training)
    update = at.update + 1
    # Dropout depends on the update and the process alone.
    torch.manual_seed(course.seed * 1_000_003 + update + rank * 500_009)

    def note(row: dict[str, Any]) -> None:
        log({"event": row["event"], "update": update} | row)

    try:
        loss, norm = updater.step(batches, scale, note)
    except (StateError, NoRoomError) as error:
        raise type(error)(f"training stopped at update {update}: {error}") from error
    at.update = update
    epoch, rate = update / course.updates_per_epoch, scale * updater.training.learning_rate
    row = {"event": "train", "update": update, "epoch": round(epoch, 3)}
    row |= {"loss": loss, "grad_norm": norm, "learning_rate": rate}
    log(row | at.meter.update(batches, began.spent()))


def _judge(at: Standing, evaluation: Evaluation, run: Run) -> None:
    """Validate where the run stands; after the first update on, choose and keep."""
    scores = run.validate()
    better = at.update > 0 and at.best.consider(at.update, scores[evaluation.metric])
    at.due = False
    run.log({"event": "validation", "update": at.update, "best": better} | scores)
    if at.update:
        run.keep(at)


def _over(at: Standing, evaluation: Evaluation) -> bool:
    return bool(evaluation.patience) and at.best.waited >= (evaluation.patience or 0)
