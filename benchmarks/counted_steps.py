"""A recipe's own update, and the usual stack's, traced at full size and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from closed_form import flops_per_clip
from counting import PINNED, Meter, Place, Sync, Tally
from rivals.counted import POSITIONS, Rival
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from peft_whisper.data.batches import Batch
from peft_whisper.data.epochs import Context, MicroBatch, plan_epoch
from peft_whisper.errors import RecipeError
from peft_whisper.memory.recorder import Recorder
from peft_whisper.model.base import quiet_transformers
from peft_whisper.model.encoder import whisper_of
from peft_whisper.model.sizes import find_blueprint
from peft_whisper.planning.tracing import Shape, TrainingTrace, fake, session_of

if TYPE_CHECKING:
    from peft_whisper.memory.recorder import Timeline
    from peft_whisper.model.sizes import Blueprint
    from peft_whisper.recipe import Recipe


@dataclass(frozen=True)
class Counted:
    """One update, by its micro-steps of one shape; flops, bytes and kernels are sums of `tally`."""

    name: str
    shapes: tuple[Shape, ...]
    tally: Tally
    repeated: int  # FLOPs of forward that backward did again
    saved: int  # bytes that the largest micro-step keeps from forward for backward
    needed: int | None  # FLOPs of a clip by closed form; None where there is none

    @property
    def clips(self) -> int:
        return sum(shape.clips for shape in self.shapes)

    @property
    def flops(self) -> int:
        return self.tally.flops.total()

    def kernels(self, *stages: str) -> int:
        return total(self.tally.kernels, *stages)

    def moved(self, *stages: str) -> int:
        return total(self.tally.moved, *stages)

    def syncs(self, *stages: str) -> list[Sync]:
        return [sync for sync in self.tally.syncs if sync.stage in stages]

    def as_dict(self) -> dict[str, Any]:
        """Every figure, for a program; bytes and FLOPs are those of the whole update."""
        stages = ("forward", "backward", "update")
        sums = {"flops": self.tally.flops, "bytes": self.tally.moved, "kernels": self.tally.kernels}
        found: dict[str, Any] = {
            what: {stage: total(counter, stage) for stage in stages}
            for what, counter in sums.items()
        }
        found["syncs"] = {stage: len(self.syncs(stage)) for stage in stages}
        shapes = [(one.clips, one.positions, one.labels) for one in self.shapes]
        return {
            "name": self.name,
            "micro_steps": shapes,
            "repeated_flops": self.repeated,
            "saved_bytes": self.saved,
            "closed_form_flops_per_clip": self.needed,
            **found,
        }


MICRO_STEP = ("forward", "backward")


def total(counter: Counter[Place], *stages: str, part: str | None = None) -> int:
    """Sum over the places of these stages, all where none is named."""
    return sum(
        count
        for place, count in counter.items()
        if (not stages or place.stage in stages) and part in (None, place.part)
    )


def blueprint(recipe: Recipe, layers: int | None = None) -> Blueprint:
    """The recipe's base without weights; of `layers` on either side, all others left out."""
    base = find_blueprint(recipe.base.model, recipe.base.revision)
    if layers is not None:
        base.sizes.encoder_layers = base.sizes.decoder_layers = layers
    return base


def shapes_of(recipe: Recipe, seconds: float, labels: int, clips: int | None) -> tuple[Shape, ...]:
    """One update of equal clips: `clips` at once, or where None as the recipe batches them."""
    context = Context(recipe.context.margin_positions)
    if clips is not None:
        return (Shape(clips, context.positions(seconds), labels),)
    layout = session_of(recipe, find_blueprint(recipe.base.model)).layout(processes=1)
    durations = [seconds] * layout.clips_per_update
    ((micro,),) = plan_epoch(durations, layout, context, seed=0, epoch=0)
    return tuple(_shape(one, labels) for one in micro)


def _shape(one: MicroBatch, labels: int) -> Shape:
    return Shape(len(one.clips), one.positions, labels)


def check_countable(recipe: Recipe, rival: bool) -> None:
    """Before long work: raises RecipeError for what can't be counted."""
    if recipe.training.recompute == "auto":
        raise RecipeError(
            f"{recipe.name}: training.recompute: auto depends on the card; say which to count, "
            "such as training.recompute=none"
        )
    plain = recipe.adapter.method != "none" and not recipe.base.quantize
    if rival and not (plain and recipe.training.precision != "fp16"):
        raise RecipeError(
            f"{recipe.name}: the usual stack is counted for LoRA on a base that is not quantised, "
            "in bf16 or fp32; leave --rival out"
        )


def count(recipe: Recipe, base: Blueprint, shapes: Sequence[Shape]) -> Counted:
    """The product's own update of these micro-batches."""
    meter = Meter()
    with fake("cuda", _flash(recipe)), quiet_transformers():
        trace = TrainingTrace(recipe, base, "cuda")
        meter.watch_encoder(whisper_of(trace.model).model.encoder)
        updater, step = trace.updater, meter.watching(trace.updater.step)
        updater.backward = meter.micro_step(updater.backward)
        updater.step = lambda batches, *rest: step(_loaded(batches), *rest)
        start = len(trace.line.events)
        trace.step(shapes)
        adapter = trace.session.adapter()
    shape = shapes[0]
    needed = None  # of a step that begins at what frozen layers gave there is no closed form
    if updater.first_layer is None:
        needed = flops_per_clip(base.config(), shape.positions, shape.labels, adapter)
    saved = saved_bytes(trace.line, start)
    repeated = trace.line.repeated_flops
    return Counted(recipe.name, tuple(shapes), meter.tally, repeated, saved, needed)


def count_rival(recipe: Recipe, base: Blueprint, shapes: Sequence[Shape]) -> Counted:
    """The usual stack's update of the same clips, padded to 30 s; of LoRA only."""
    adapter = session_of(recipe, base).adapter()
    assert adapter is not None
    meter, recorder = Meter(), Recorder("cuda", {})
    with fake("cuda", _flash(recipe)), quiet_transformers():
        recorder.phase("loading")
        with recorder:
            rival = Rival(recipe, base, adapter)
            meter.watch_encoder(rival.whisper.model.encoder)
            recorder.label("weights", rival.model.parameters())
            rival.model.register_forward_pre_hook(lambda *_: recorder.phase("forward"))
            rival.whisper.register_forward_hook(lambda *_: recorder.phase("backward"))
            batches = [rival.inputs(shape.clips, shape.labels) for shape in shapes]
            start = len(recorder.line.events)
            meter.watching(rival.step)(batches, meter.micro_step(rival.micro_step))
    there = tuple(replace(shape, positions=POSITIONS) for shape in shapes)
    saved = saved_bytes(recorder.line, start)
    return Counted(f"{recipe.name}, usual stack", there, meter.tally, 0, saved, None)


def _flash(recipe: Recipe) -> bool:
    """Cards for float16 recipes (T4) have no flash attention."""
    return recipe.training.precision != "fp16"


def _loaded(batches: Sequence[Batch]) -> list[Batch]:
    """The same as the DataLoader gives them: in the host's memory, pinned where torch can."""

    def pinned(tensor: Tensor) -> Tensor:
        setattr(tensor, PINNED, True)
        return tensor

    names = ("sound", "decoder_input_ids", "index", "targets")
    there = [
        replace(
            batch, **{name: torch.empty_like(getattr(batch, name), device="cpu") for name in names}
        )
        for batch in batches
    ]
    with mock.patch.object(torch.Tensor, "pin_memory", pinned):
        return [pin_memory(batch) for batch in there]


def saved_bytes(line: Timeline, start: int) -> int:
    """Most bytes that were born in one forward and still there when it ended."""
    bounds = [place for place, _ in line.phases] + [len(line.events)]
    most = 0
    for (first, name), end in zip(line.phases, bounds[1:], strict=True):
        if name != "forward" or first < start:
            continue
        alive = {event for event in line.events[first:end] if event >= 0}
        alive -= {~event for event in line.events[first:end] if event < 0}
        most = max(most, sum(line.sizes[one] for one in alive))
    return most
