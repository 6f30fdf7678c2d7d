"""The product's own training step and decoding, traced: what lives when, at real size.

Runs on tensors without storage, so that Large V3 is traced on a laptop in seconds; or, for the
check that this is right, with real ones on a CPU.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peft_whisper.assembly import make_updater
from peft_whisper.data.batches import Batch
from peft_whisper.data.mel import FRAMES_PER_POSITION
from peft_whisper.memory.fake_cuda import fake_cpu, fake_cuda
from peft_whisper.memory.recorder import Recorder, Timeline
from peft_whisper.model.adapters import merged
from peft_whisper.model.encoder import whisper_of
from peft_whisper.model.operators import SCRATCH
from peft_whisper.model.recompute import recompute
from peft_whisper.positions import heard_positions
from peft_whisper.recipe import on_card, with_training
from peft_whisper.scoring.search import Truth
from peft_whisper.session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from peft_whisper.model.base import Base
    from peft_whisper.model.sizes import Blueprint
    from peft_whisper.recipe import Recipe
    from peft_whisper.training.updater import Updater


@dataclass(frozen=True)
class Shape:
    """One micro-batch: clips, encoder positions (20 ms each), tokens of each transcript."""

    clips: int
    positions: int
    labels: int

    @property
    def frames(self) -> int:
        """Of log-mel, for the positions that hear a clip."""
        return FRAMES_PER_POSITION * heard_positions(self.positions)


class OneDevice:
    """As much of accelerate.Accelerator as an Updater asks of it, for one process."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, device: str):
        self.device = torch.device(device)

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device)

    def no_sync(self, _model: Any) -> Any:
        return nullcontext()


def fake(device: str, flash: bool = True) -> Any:
    """Tensors without storage on "cuda" or "cpu"."""
    return fake_cuda(flash) if device == "cuda" else fake_cpu()


def session_of(recipe: Recipe, base: Blueprint | Base) -> Session:
    """A session that has sizes, and neither weights, vocabulary nor speech."""
    nothing: Any = None
    return Session(recipe, base, nothing, base.config().num_mel_bins, nothing)  # type: ignore[arg-type]


class TrainingTrace:
    """A recipe's Updater under a recorder; each `step` appends to the timeline.

    Made inside `fake(device)`. The optimizer's state is there from the start, as from the second
    step on. Without `record` the same is done and nothing is watched.
    """

    def __init__(self, recipe: Recipe, base: Blueprint | Base, device: str, record: bool = True):
        # Graphs can't be traced; the step without them is.
        recipe = with_training(on_card(recipe, device), compile=False)
        self.device, self.record = device, record
        self.recorder = Recorder(device, SCRATCH)
        self.session = session_of(recipe, base)
        self.sizes, self.trains_all = base.config(), recipe.adapter.method == "none"
        with _prompt_deaths(), self._watched():
            accelerator: Any = OneDevice(device)
            self.updater, self.model = make_updater(self.session, accelerator)
            if record:
                self._label_what_stays()
                self._watch_phases()
                self.recompute(recipe.training.recompute)
            _fill_optimizer(self.updater)
            if record:
                self.recorder.label("optimizer", tensors_in(self.updater.optimizer.state))

    @property
    def line(self) -> Timeline:
        return self.recorder.line

    def step(self, shapes: Iterable[Shape]) -> None:
        """One update of these micro-batches."""
        with _prompt_deaths(), self._watched():
            batches = [self._batch(shape) for shape in shapes]
            self.updater.step(batches, 1.0)
            del batches

    def decode(self, shape: Shape) -> None:
        """Validation of `shape.clips` at once, as far as the last of `shape.labels` tokens.

        All tokens but the last two are fed as one prefix, which costs slightly more than feeding
        them one by one does at the end.
        """
        decoder = self.session.decoder(self.model)
        tokens = max(3, shape.labels)
        self.model.eval()
        with _prompt_deaths(), self._watched():
            with torch.device(self.device):
                mel = torch.zeros(shape.clips, self.session.n_mels, shape.frames)
                prefix = torch.zeros(shape.clips, tokens - 2, dtype=torch.int64)
                carried = torch.arange(shape.clips * shape.labels)
                fed = torch.zeros(shape.clips, shape.labels, dtype=torch.int64)
                truth = Truth(fed, carried, torch.zeros_like(carried))
            self.recorder.phase("decoding")
            with self.updater.masters.exposed(), merged(self.model):
                decoder.tokens(mel, prefix, 2, truth)
            del mel, prefix, fed, carried, truth

    def _watched(self) -> Any:
        if not self.record:
            return nullcontext()
        self.recorder.phase("loading")
        return self.recorder

    def _batch(self, shape: Shape) -> Batch:
        tokens = shape.clips * shape.labels
        heard: tuple[int, ...] = (
            shape.clips,
            self.sizes.num_mel_bins,
            shape.frames,
        )
        dtype = torch.float32
        if self.session.first_layer() is not None:  # what frozen layers gave once
            heard = (shape.clips, shape.positions, self.sizes.d_model)
            dtype = whisper_of(self.model).dtype
        with torch.device(self.device):
            return Batch(
                sound=torch.zeros(heard, dtype=dtype),
                positions=shape.positions,
                decoder_input_ids=torch.zeros(shape.clips, shape.labels, dtype=torch.int64),
                index=torch.arange(tokens),
                targets=torch.zeros(tokens, dtype=torch.int64),
                clip_ids=("traced",) * shape.clips,
                durations_s=(0.02 * shape.positions,) * shape.clips,
            )

    def _label_what_stays(self) -> None:
        label, masters = self.recorder.label, self.updater.masters
        trained = [p for p in self.model.parameters() if p.requires_grad]
        label("weights" if self.trains_all else "adapters", trained)
        label("optimizer", [m for m in masters.fp32 if m not in set(masters.model)])
        label("weights", [*self.model.parameters(), *self.model.buffers()])

    def recompute(self, choice: str) -> None:
        """From now on keep in training what `choice` says."""
        whisper, watched = whisper_of(self.model), self.recorder.layer
        recompute(whisper, choice)
        for layer in (*whisper.model.encoder.layers, *whisper.model.decoder.layers):
            if layer.gradient_checkpointing:
                run: Any = layer._gradient_checkpointing_func
                layer._gradient_checkpointing_func = lambda forward, *args, run=run: run(
                    watched(forward), *args
                )

    def _watch_phases(self) -> None:
        recorder, masters, forward = self.recorder, self.updater.masters, self.updater.forward
        forward.register_forward_pre_hook(lambda *_: recorder.phase("forward"))
        forward.register_forward_hook(lambda *_: recorder.phase("backward"))
        for parameter in masters.model:
            parameter.register_post_accumulate_grad_hook(
                lambda p: recorder.label("gradients", [p.grad])
            )

        def before(*_: Any) -> None:
            recorder.phase("optimizer")
            recorder.label("gradients", [master.grad for master in masters.fp32])

        self.updater.optimizer.register_step_pre_hook(before)


def _fill_optimizer(updater: Updater) -> None:
    """Let the optimizer make its state, by a step along gradients of zero."""
    for parameter in updater.masters.model:
        parameter.grad = torch.zeros_like(parameter)
    updater.masters.take_gradients()
    updater.optimizer.step()
    updater.optimizer.zero_grad(set_to_none=True)


@contextmanager
def _prompt_deaths() -> Iterator[None]:
    """Frees happen where reference counts say so, not where the collector comes by."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """Tensors in nested containers."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for one in thing.values():
            yield from tensors_in(one)
    elif isinstance(thing, list | tuple):
        for one in thing:
            yield from tensors_in(one)
