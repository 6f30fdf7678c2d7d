"""The encoder layers below the lowest adapter, run once for each clip instead of in every step.

What enters the first layer that training runs (with adapters in the decoder alone: the encoder's
last norm) depends on the clip and on the positions it is padded to, and on nothing that training
changes. The run's plan says beforehand which clips are heard at which positions, so each such pair
is computed before the first update, as the step would, and kept in the type it has.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from peft_whisper.data.epochs import MicroBatch
from peft_whisper.errors import NoRoomError
from peft_whisper.memory.cards import available_memory
from peft_whisper.model.encoder import encode_below, whisper_of
from peft_whisper.terminal import progress
from peft_whisper.training.stream import Course, living_loaders, log_mels, made_ahead

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.console import Console

    from peft_whisper.training.updater import Updater

AT_ONCE = 6000  # encoder positions run together: four clips of 30 s, so that steps take more memory
MOST = 0.75  # share of what is free that is taken: training and its checkpoints need some too


class FrozenOutputs:
    """What the frozen layers gave for every clip at every length that one process hears it at.

    `pairs` is int64 (n,), sorted: positions x `clips` + clip, where `clips` is how many there are.
    `rows`, (sum of positions, d_model), holds them one behind the other.
    """

    def __init__(self, pairs: np.ndarray, clips: int, rows: Tensor):
        self.pairs, self.clips, self.rows = pairs, clips, rows
        positions = pairs // clips
        self.starts = np.cumsum(positions) - positions
        self.seconds = 0.0  # that it took to compute

    @property
    def event(self) -> dict[str, Any]:
        """What the run's log holds of it."""
        sizes = {"inputs": len(self.pairs), "bytes": self.rows.nbytes}
        return {"event": "frozen_layers", **sizes, "seconds": self.seconds}

    def __getitem__(self, micro: MicroBatch) -> Tensor:
        """A copy of what was kept: (clips, positions, d_model)."""
        wanted = micro.positions * self.clips + np.asarray(micro.clips)
        starts = self.starts[np.searchsorted(self.pairs, wanted)]
        return torch.stack([self.rows[at : at + micro.positions] for at in starts.tolist()])


@living_loaders()
def run_frozen_layers(
    course: Course, updater: Updater, where: str, folder: Path, console: Console
) -> Course:
    """Run them on all that this process will hear; returns the course with what they gave.

    It is kept in "memory", or on "disk" in `folder`, in a file without a name, which is gone when
    the process is, however it ends. Raises NoRoomError where it does not fit.
    """
    began, accelerator = time.perf_counter(), updater.accelerator
    whisper = whisper_of(updater.model)
    clips, pairs = len(course.clips), heard_pairs(course, accelerator.process_index)
    shape = int((pairs // clips).sum()), whisper.config.d_model
    size = shape[0] * shape[1] * whisper.dtype.itemsize
    _check_room(size, where, folder, accelerator)
    kept = FrozenOutputs(pairs, clips, _room(shape, whisper.dtype, where, folder))
    place = "of memory" if where == "memory" else f"of disk in {folder}"
    console.print(
        f"frozen layers: {updater.first_layer} of {whisper.config.encoder_layers} in the encoder "
        f"run once, before training, on {clips:,} clips at {len(pairs) / clips:.2f} lengths each; "
        f"what they give takes {size / 1e9:.2f} GB {place}"
    )
    with progress(console, "running the frozen layers", len(pairs)) as task:
        micros = micro_batches(pairs, clips)
        first = 0
        for mel in made_ahead(_LogMels(course), micros, course.data.workers):
            hidden = _run(updater, mel).flatten(0, 1)
            kept.rows[first : first + len(hidden)] = hidden
            first += len(hidden)
            task.advance(len(mel))
    kept.seconds = time.perf_counter() - began
    return replace(course, frozen=kept)


def heard_pairs(course: Course, rank: int) -> np.ndarray:
    """Every clip at every number of positions at which this process will hear it, once."""
    clips = len(course.clips)
    pairs = {
        micro.positions * clips + clip
        for _, update in course.plan(rank)
        for micro in update
        for clip in micro.clips
    }
    return np.array(sorted(pairs), dtype=np.int64)


def micro_batches(pairs: np.ndarray, clips: int) -> Iterator[MicroBatch]:
    """The pairs in their order, as many of one length at once as AT_ONCE has room for."""
    for positions, group in groupby(pairs.tolist(), key=lambda pair: pair // clips):
        numbers = tuple(pair % clips for pair in group)
        most = max(1, AT_ONCE // positions)
        for at in range(0, len(numbers), most):
            yield MicroBatch(numbers[at : at + most], positions)


class _LogMels:
    """Map-style dataset of log-mels, for loader processes."""

    def __init__(self, course: Course):
        self.course = course

    def __getitem__(self, micro: MicroBatch) -> Tensor:
        return log_mels(self.course, micro)


@torch.no_grad()
def _run(updater: Updater, mel: Tensor) -> Tensor:
    """What the step would compute: (clips, positions, d_model)."""
    device, encoder = updater.accelerator.device, whisper_of(updater.model).model.encoder
    first = updater.first_layer
    assert first is not None  # else there is nothing to run once
    updater.model.eval()
    mel = mel.to(device, encoder.conv1.weight.dtype, non_blocking=True)
    with torch.autocast(device.type, updater.autocast, enabled=updater.autocast is not None):
        return encode_below(encoder, mel, first)


def _check_room(size: int, where: str, folder: Path, accelerator: Accelerator) -> None:
    """Raise NoRoomError where what all processes keep is more than MOST of what is free."""
    free = available_memory() if where == "memory" else shutil.disk_usage(folder).free
    if accelerator.num_processes > 1:  # and no process takes any before all have looked
        size = int(accelerator.reduce(torch.tensor(size, device=accelerator.device)))
    if size <= MOST * free:
        return
    place, other, moved = "in memory", "disk", ""
    if where == "disk":
        place, other = f"on the disk of {folder}", "memory"
        moved = "set output to a folder on a larger disk, "
    raise NoRoomError(
        f"training.frozen_cache: {where}: what the frozen layers give takes {size / 1e9:.2f} GB; "
        f"{free / 1e9:.2f} GB are free {place}, of which {MOST:.0%} may be taken. What helps: "
        f"{moved}training.frozen_cache={other}, or training.frozen_cache=none, which runs them in "
        "every step"
    )


def _room(shape: tuple[int, int], dtype: torch.dtype, where: str, folder: Path) -> Tensor:
    """An uninitialised tensor in main memory, or mapped from a file that only this process has."""
    if where == "memory":
        return torch.empty(shape, dtype=dtype)
    size = shape[0] * shape[1] * dtype.itemsize
    try:
        with TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process later
                os.posix_fallocate(file.fileno(), 0, size)
            data = np.memmap(file, np.uint8, "r+", shape=(size,))
    except OSError as error:
        raise NoRoomError(
            f"training.frozen_cache: disk: no file of {size / 1e9:.2f} GB can be made in {folder}: "
            f"{error.strerror}. What helps: set output to a folder on another disk, or "
            "training.frozen_cache=memory or none"
        ) from error
    return torch.from_numpy(data).view(dtype).view(shape)
