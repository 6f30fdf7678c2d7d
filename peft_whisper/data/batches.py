"""Clips -> batches: which clips together, how much context each batch gets, and the tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from peft_whisper.data.audio import load_wave, unchanged
from peft_whisper.data.mel import FULL_POSITIONS, SAMPLE_RATE, SAMPLES_PER_POSITION, log_mel

if TYPE_CHECKING:
    import torch

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import Labels

ROUND_TO = 64  # positions: few distinct shapes, and matrices of a size that kernels like
WINDOW = 32  # updates whose clips are sorted by length together: enough to pack, still random


@dataclass(frozen=True)
class Context:
    """How many encoder positions (20 ms each) a batch gets, and how often all 1,500."""

    margin: int
    jitter: int
    minimum: int
    full_share: float

    def positions(self, seconds: float, extra: int = 0) -> int:
        """Positions for a batch whose longest clip lasts `seconds`, `extra` beyond the margin.

        Silence after the speech is what tells Whisper to stop, so there is always a margin.
        """
        speech = int(np.ceil(seconds * SAMPLE_RATE / SAMPLES_PER_POSITION))
        wanted = max(speech + self.margin + extra, self.minimum, speech)
        return min(FULL_POSITIONS, -(-wanted // ROUND_TO) * ROUND_TO)


@dataclass(frozen=True)
class MicroBatch:
    """Clips (indices into the split) that pass the model together, and their context."""

    clips: tuple[int, ...]
    positions: int

    def fits(self, audio_s: float | None) -> bool:
        """Whether the encoder's input, padding included, is at most `audio_s` seconds long."""
        seconds = len(self.clips) * self.positions * SAMPLES_PER_POSITION / SAMPLE_RATE
        return audio_s is None or seconds <= audio_s


Update = tuple[MicroBatch, ...]  # what one process sees between two optimizer steps


@dataclass(frozen=True)
class Layout:
    """Clips per process and micro-step, micro-steps per update, processes.

    A micro-step whose encoder input would exceed `audio_s` seconds (padding included; None: no
    bound) is split into more of them.
    """

    batch: int
    accumulation: int
    processes: int
    audio_s: float | None = None

    @property
    def clips_per_update(self) -> int:
        return self.batch * self.accumulation * self.processes

    def updates_per_epoch(self, clips: int) -> int:
        return -(-clips // self.clips_per_update)


def plan_epoch(
    durations: Sequence[float], layout: Layout, context: Context, seed: int, epoch: int
) -> list[list[Update]]:
    """One epoch's updates for every process: `plan[update][process]`.

    Each clip is heard once. Clips that need the same context travel together (the sort is stable,
    so within a context their order stays random), and the order of updates is random; all of it is
    a function of seed and epoch alone. The last update may be smaller; it repeats
    clips only where each process would not have one for each of its micro-steps.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(durations))
    size, window = layout.clips_per_update, layout.clips_per_update * WINDOW
    by_length = [
        sorted(order[at : at + window].tolist(), key=lambda i: context.positions(durations[i]))
        for at in range(0, len(order), window)
    ]
    groups = [part[at : at + size] for part in by_length for at in range(0, len(part), size)]
    rng.shuffle(groups)
    first = epoch * layout.updates_per_epoch(len(durations))
    plan = []
    for number, group in enumerate(groups, start=first):
        extra = int(rng.integers(-context.jitter, context.jitter + 1))
        if int((number + 1) * context.full_share) > int(number * context.full_share):
            extra = FULL_POSITIONS
        plan.append(_deal(group, durations, layout, context, extra))
    return plan


def _deal(
    group: list[int],
    durations: Sequence[float],
    layout: Layout,
    context: Context,
    extra: int,
) -> list[Update]:
    """Deal one update's clips, shortest first, into micro-steps x processes of even size."""
    steps = -(-len(group) // (layout.batch * layout.processes))
    while True:
        count = steps * layout.processes
        filled = np.resize(group, max(len(group), count))  # repeats clips where there are too few
        parts = [part.tolist() for part in np.array_split(filled, count)]
        micro = [
            MicroBatch(tuple(part), context.positions(max(durations[i] for i in part), extra))
            for part in parts
        ]
        if all(len(one.clips) == 1 or one.fits(layout.audio_s) for one in micro):
            return [tuple(micro[rank :: layout.processes]) for rank in range(layout.processes)]
        steps += 1


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch, b clips, t decoder positions, n real target tokens.

    Padding never reaches the loss: `index` (n,) picks the real positions out of the flattened
    (b * t) decoder outputs, and `targets` (n,) are the tokens expected there.
    """

    mel: torch.Tensor  # float32 (b, mels, 2 * positions)
    decoder_input_ids: torch.Tensor  # int64 (b, t)
    index: torch.Tensor  # int64 (n,)
    targets: torch.Tensor  # int64 (n,)
    clip_ids: tuple[str, ...]
    durations_s: tuple[float, ...]  # of each clip, without padding

    @property
    def audio_s(self) -> float:
        return sum(self.durations_s)

    @property
    def positions(self) -> int:
        """Encoder positions (20 ms each) of every clip, padding included."""
        return self.mel.shape[-1] // 2

    def to(self, device: torch.device) -> Batch:
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("mel", "decoder_input_ids", "index", "targets")
        }
        return replace(self, **tensors)

    def split(self) -> tuple[Batch, Batch]:
        """Halves, in order, the first the larger; labels are padded to the longest of each half.

        Raises ValueError where there is one clip alone.
        """
        count = len(self.clip_ids)
        if count == 1:
            raise ValueError(f"clip {self.clip_ids[0]} is alone: there is nothing to split")
        middle = -(-count // 2)
        return self._rows(0, middle), self._rows(middle, count)

    def _rows(self, first: int, end: int) -> Batch:
        """The clips from `first` to before `end`, at the same encoder positions."""
        width = self.decoder_input_ids.shape[1]
        rows, columns = self.index // width, self.index % width
        here = (rows >= first) & (rows < end)
        longest = int(columns[here].max()) + 1
        return Batch(
            mel=self.mel[first:end],
            decoder_input_ids=self.decoder_input_ids[first:end, :longest],
            index=(rows[here] - first) * longest + columns[here],
            targets=self.targets[here],
            clip_ids=self.clip_ids[first:end],
            durations_s=self.durations_s[first:end],
        )


def pad_waves(waves: Sequence[np.ndarray], positions: int) -> torch.Tensor:
    """Stack waves (n,) into float32 (batch, positions * 320), zeros behind each."""
    import torch

    out = torch.zeros(len(waves), positions * SAMPLES_PER_POSITION)
    for row, wave in zip(out, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    return out


def features(
    clips: Sequence[Clip], positions: int, n_mels: int, wave_of: Callable[[Clip], np.ndarray]
) -> torch.Tensor:
    """Log-mel float32 (clips, n_mels, 2 * positions) of clips that fit into `positions`.

    Raises DataError where `wave_of` finds a clip no more as the audit did.
    """
    waves = [unchanged(clip, wave_of) for clip in clips]
    return log_mel(pad_waves(waves, positions), n_mels)


class TrainingBatches:
    """Map-style dataset whose items are whole batches, so that loader workers collate.

    An item is a function of seed, epoch and clip alone: workers and restarts change nothing.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        micro_batches: Sequence[MicroBatch],
        labels: Labels,
        n_mels: int,
        *,
        channel: str,
        timestamps: float,
        seed: int,
        epoch: int,
    ):
        self.clips, self.micro_batches, self.labels = clips, micro_batches, labels
        self.n_mels, self.channel = n_mels, channel
        self.timestamps, self.seed, self.epoch = timestamps, seed, epoch

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, number: int) -> Batch:
        micro = self.micro_batches[number]
        clips = [self.clips[i] for i in micro.clips]
        mel = features(
            clips, micro.positions, self.n_mels, lambda clip: load_wave(clip.audio, self.channel)
        )
        rows = [
            self.labels.row(clip.text, clip.language, self._speech_s(i, clip))
            for i, clip in zip(micro.clips, clips, strict=True)
        ]
        return collate(mel, rows, self.labels.end, clips)

    def _speech_s(self, i: int, clip: Clip) -> float | None:
        """The clip's length where this epoch's draw gives it timestamps, else None."""
        if not self.timestamps:
            return None
        drawn = np.random.default_rng([self.seed, self.epoch, i]).random()
        return clip.duration_s if drawn < self.timestamps else None


def collate(mel: torch.Tensor, rows: Sequence, pad: int, clips: Sequence[Clip]) -> Batch:
    """Pad label rows on the right and note, by length, where the real tokens are."""
    import torch

    longest = max(len(row.targets) for row in rows)
    fed = torch.full((len(rows), longest), pad)
    index: list[int] = []
    targets: list[int] = []
    for number, row in enumerate(rows):
        fed[number, : len(row.decoder_input_ids)] = torch.tensor(row.decoder_input_ids)
        index += range(number * longest, number * longest + len(row.targets))
        targets += row.targets
    return Batch(
        mel=mel,
        decoder_input_ids=fed,
        index=torch.tensor(index),
        targets=torch.tensor(targets),
        clip_ids=tuple(clip.id for clip in clips),
        durations_s=tuple(clip.duration_s for clip in clips),
    )
