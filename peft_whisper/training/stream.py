"""What a run hears, batch after batch, made ready while the step before it computes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, tee
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from peft_whisper.data.ahead import in_order
from peft_whisper.data.audio import load_wave
from peft_whisper.data.batches import Batch, collate, features
from peft_whisper.data.epochs import Context, Layout, MicroBatch, Update, plan_epoch
from peft_whisper.errors import NoRoomError, first_line

if TYPE_CHECKING:
    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import Labels
    from peft_whisper.recipe_speech import Data
    from peft_whisper.training.frozen import FrozenOutputs

Place = tuple[int, MicroBatch]  # an epoch, and what is heard at once in it


class Things(Protocol):
    """What can be made one by one, by a name for each."""

    def __getitem__(self, place: Any, /) -> Any: ...


LOADER_DIED = "DataLoader worker"  # so torch's sentence begins
AHEAD = 2  # micro-batches made before they are due, by the thread or by each loader process


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
    frozen: FrozenOutputs | None = None  # heard in place of log-mel

    @property
    def updates_per_epoch(self) -> int:
        return self.layout.updates_per_epoch(len(self.clips))

    def plan(self, rank: int) -> Iterator[tuple[int, Update]]:
        """Every update of the run: its epoch, and what the process of this rank hears."""
        durations = [clip.duration_s for clip in self.clips]
        tokens = [clip.tokens for clip in self.clips]
        left, epoch = self.updates, 0
        while left > 0:
            plan = plan_epoch(durations, self.layout, self.context, self.seed, epoch, tokens)
            for update in plan[:left]:
                yield epoch, update[rank]
            left, epoch = left - len(plan), epoch + 1


def stream_updates(course: Course, rank: int, made: int = 0) -> Iterator[list[Batch]]:
    """Micro-batches of every update of the run after those `made`, in order, for one process.

    `data.workers` processes make them for as long as the run lasts; without any, or where frozen
    layers' outputs are heard, a thread does.
    """
    updates, ahead = tee(islice(course.plan(rank), made, None))
    places = ((epoch, micro) for epoch, update in ahead for micro in update)
    # What frozen layers gave has but to be copied: nothing that other processes could take over.
    workers = 0 if course.frozen else course.data.workers
    batches = made_ahead(TrainingBatches(course), places, workers)
    for _, update in updates:
        yield [next(batches) for _ in update]


def made_ahead(things: Things, places: Iterable[Any], workers: int) -> Iterator[Any]:
    """`things[place]` for each place, in order, in page-locked memory where there is a card.

    Made ahead by so many processes, or with 0 by a thread.
    """
    if workers == 0:
        return in_order(lambda place: _pinned(things[place]), places, threads=1, ahead=AHEAD)
    loader: DataLoader[Any] = DataLoader(
        things,  # type: ignore[arg-type]  # map-style by its method, without inheriting
        batch_size=None,
        sampler=places,
        num_workers=workers,
        prefetch_factor=AHEAD,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals,
    )
    return _handed_over(loader)


def _leave_signals(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; when this one ends is for the training to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _pinned(thing: Any) -> Any:
    return thing.pin_memory() if torch.cuda.is_available() else thing


def _handed_over(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except (ConnectionError, EOFError) as error:
        time.sleep(1)  # for the signal of the process's end, at which torch raises the same
        raise RuntimeError(f"{LOADER_DIED} ended while it handed over a batch") from error


@contextmanager
def living_loaders() -> Iterator[None]:
    """Say in one sentence that a loader process died; torch raises it in the midst of any step."""
    try:
        yield
    except RuntimeError as error:
        said = first_line(error).strip()
        if not said.startswith(LOADER_DIED):
            raise
        raise NoRoomError(
            f"a process that loads speech died: {said.rstrip('. ')}. Most often memory, or "
            "/dev/shm, ran out: lower data.workers; with 0 the training process loads by itself"
        ) from error


def log_mels(course: Course, micro: MicroBatch) -> torch.Tensor:
    """What is heard at once, float32 (clips, n_mels, 2 * positions); raises DataError."""
    clips, channel = [course.clips[i] for i in micro.clips], course.data.channel
    return features(
        clips, micro.positions, course.n_mels, lambda clip: load_wave(clip.audio, channel)
    )


class TrainingBatches:
    """Map-style dataset whose items are whole batches, so that loader processes collate.

    `batches[epoch, micro]` is a function of the course, the epoch and the clips alone: processes
    and restarts change nothing.
    """

    def __init__(self, course: Course):
        self.course = course

    def __getitem__(self, place: Place) -> Batch:
        epoch, micro = place
        course = self.course
        clips = [course.clips[i] for i in micro.clips]
        sound = course.frozen[micro] if course.frozen else log_mels(course, micro)
        rows = [
            course.labels.row(clip.text, clip.language, self._speech_s(epoch, i, clip))
            for i, clip in zip(micro.clips, clips, strict=True)
        ]
        return collate(sound, micro.positions, rows, course.labels.end, clips)

    def _speech_s(self, epoch: int, i: int, clip: Clip) -> float | None:
        """The clip's length where the epoch's draw gives it timestamps, else None."""
        if not self.course.data.timestamps:
            return None
        drawn = np.random.default_rng([self.course.seed, epoch, i]).random()
        return clip.duration_s if drawn < self.course.data.timestamps else None
