"""Both sides of a comparison, an update at a time, so that they can take turns on one machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rivals import hf_trainer
from transformers import TrainerCallback

from peft_whisper.assembly import make_updater
from peft_whisper.model.adapters import merged, trainable
from peft_whisper.opening import choose_fastest
from peft_whisper.session import Session
from peft_whisper.train import make_course, start_accelerator
from peft_whisper.training.frozen import run_frozen_layers
from peft_whisper.training.optim import scale_at
from peft_whisper.training.stream import stream_updates

if TYPE_CHECKING:
    from accelerate import Accelerator

    from peft_whisper.data.batches import Batch
    from peft_whisper.data.epochs import Context
    from peft_whisper.scoring.metrics import Score, Utterance

Texts = dict[str, str]  # transcript by clip id


def own_accelerator() -> Accelerator:
    """The product's own; the precision that a Trainer left in accelerate's shared state goes."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return start_accelerator()


def counted(session: Session, texts: Texts) -> list[Utterance]:
    """Errors of each clip of the test split, counted as the product counts them."""
    from peft_whisper.scoring.metrics import measure
    from peft_whisper.scoring.normalize import normalizer

    clean = normalizer(session.recipe.evaluation.normalizer)
    return [measure(clip.text, texts[clip.id], clean) for clip in session.splits.test]


def scored(session: Session, texts: Texts) -> Score:
    """Errors of the test split together."""
    from peft_whisper.scoring.metrics import summarize

    rules = session.recipe.evaluation
    found = counted(session, texts)
    return summarize(found, rules.normalizer, rules.bootstrap, session.recipe.seed)


class Ours:
    """The product's own updates, stream and decoder, as `peft_whisper.train` runs them.

    What frozen layers give is kept in `folder` where the recipe wants it on disk.
    """

    def __init__(self, session: Session, updates: int, folder: Path = Path()):
        console, accelerator = Console(quiet=True), own_accelerator()
        session, _ = choose_fastest(session, accelerator.device.type, console)
        self.session, self.done = session, 0
        course = replace(make_course(session, 1), updates=updates)
        self.updater, self.model = make_updater(session, accelerator)
        self.updater.plan(updates)
        if self.updater.first_layer is not None:
            where = session.recipe.training.frozen_cache
            course = run_frozen_layers(course, self.updater, where, folder, console)
        self.course = course
        self.stream: Iterator[list[Batch]] = stream_updates(course, 0)

    def update(self) -> tuple[float, int]:
        """Train on; returns seconds, loading included, and clips."""
        began = time.perf_counter()
        batches = next(self.stream)
        scale = scale_at(self.done, self.course.updates, self.updater.training)
        self.done += 1
        torch.manual_seed(self.session.recipe.seed * 1_000_003 + self.done)
        self.updater.step(batches, scale)
        return time.perf_counter() - began, sum(len(batch.clip_ids) for batch in batches)

    def weights(self) -> dict[str, torch.Tensor]:
        """The adapter's fp32 weights by the names they have in the model."""
        with self.updater.masters.exposed():
            return {name: p.detach().clone() for name, p in trainable(self.model).items()}

    def transcribe(self, context: Context | None) -> tuple[float, Texts]:
        """Decode the test split as validation does; returns seconds, with folding, and texts."""
        began = time.perf_counter()
        self.model.eval()
        with self.updater.masters.exposed(), merged(self.model):
            texts = self.session.decoder(self.model).transcribe(self.session.splits.test, context)
        return time.perf_counter() - began, texts


class Rival(TrainerCallback):
    """A Seq2SeqTrainer that waits after each update until it is its turn again.

    It runs in a thread of its own. Its log-mels are made before, untimed, as `Dataset.map` does.
    """

    def __init__(
        self,
        session: Session,
        precision: str,
        micro: int,
        updates: int,
        train: list[hf_trainer.Example],
    ):
        self.session = session
        self.processor = hf_trainer.make_processor(session)
        self.model = hf_trainer.make_model(session)
        self.trainer = hf_trainer.make_trainer(
            session, self.model, train, precision, updates, micro, callbacks=[self]
        )
        self.turn, self.over = threading.Semaphore(0), threading.Semaphore(0)
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._train, daemon=True)

    def _train(self) -> None:
        try:
            self.turn.acquire()
            self.trainer.train()
        except BaseException as error:  # handed to the thread that waits
            self.failed = error
        finally:
            self.over.release()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step < state.max_steps:
            self.over.release()
            self.turn.acquire()

    def update(self) -> float:
        """Let it train on; returns seconds, loading included."""
        if not self.thread.ident:
            self.thread.start()
        began = time.perf_counter()
        self.turn.release()
        self.over.acquire()
        if self.failed:
            raise self.failed
        return time.perf_counter() - began

    def take(self, weights: dict[str, torch.Tensor]) -> None:
        """Set the adapter's weights."""
        own = trainable(self.model)
        assert own.keys() == weights.keys()
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])

    def transcribe(self, test: list[hf_trainer.Example]) -> tuple[float, Texts]:
        """`predict_with_generate` on the prepared test split; returns seconds and texts."""
        began = time.perf_counter()
        texts = hf_trainer.transcribe(
            self.trainer, self.processor, test, self.session.recipe.evaluation.max_tokens
        )
        seconds = time.perf_counter() - began
        ids = [clip.id for clip in self.session.splits.test]
        return seconds, dict(zip(ids, texts, strict=True))
