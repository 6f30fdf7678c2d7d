"""Clips -> batches: which clips together, how much context each batch gets, and the tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_whisper.data.audio import unchanged
from peft_whisper.data.mel import SAMPLE_RATE, SAMPLES_PER_POSITION, log_mel
from peft_whisper.positions import FULL_POSITIONS, heard_positions, positions_for

if TYPE_CHECKING:
    import torch

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import LabelRow

ROUND_TO = 64  # positions: few distinct shapes, and matrices of a size that kernels like
WINDOW = 32  # updates whose clips are sorted by length together: enough to pack, still random
SILENCE = 2  # positions of zeros after which every further frame is the same


@dataclass(frozen=True)
class Context:
    """How many encoder positions (20 ms each) a clip gets; the rule is in positions.py.

    `margin`: so many hear the silence behind a clip one by one, at least.
    """

    margin: int

    def positions(self, seconds: float) -> int:
        """Positions that the encoder runs for a clip of `seconds`."""
        speech = int(np.ceil(seconds * SAMPLE_RATE / SAMPLES_PER_POSITION))
        wanted = positions_for(min(FULL_POSITIONS, speech + self.margin))
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

    def allows(self, micro: MicroBatch) -> bool:
        """Whether these clips may pass the model together."""
        count = len(micro.clips)
        return count == 1 or (1 < count <= self.batch and micro.fits(self.audio_s))


def plan_epoch(
    durations: Sequence[float],
    layout: Layout,
    context: Context,
    seed: int,
    epoch: int,
    tokens: Sequence[int] | None = None,
) -> list[list[Update]]:
    """One epoch's updates for every process: `plan[update][process]`.

    Each clip is heard once. Clips that need the same context travel together (the sort is stable,
    so within a context their order stays random), and the order of updates is random; all of it is
    a function of seed and epoch alone. The last update may be smaller; it repeats clips only where
    each process would not have one for each of its micro-steps. `tokens`, the clips' label lengths,
    decide only which clips of an update share a micro-step.
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
    plan = []
    for group in groups:
        positions = {i: context.positions(durations[i]) for i in group}
        group.sort(key=lambda i: (positions[i], tokens[i] if tokens else 0))
        plan.append(_deal(group, positions, layout))
    return plan


def _deal(group: list[int], positions: dict[int, int], layout: Layout) -> list[Update]:
    """Deal one update's clips, shortest first, into micro-steps x processes.

    As few micro-steps as the layout allows, of about as many seconds each, or else as many clips.
    """
    steps = -(-len(group) // (layout.batch * layout.processes))
    while True:
        count = steps * layout.processes
        repeats = np.arange(max(len(group), count)) % len(group)  # where there are too few clips
        filled = [group[at] for at in sorted(repeats)]
        needs = [positions[i] for i in filled]
        for cuts in (_even(needs, count), _even([1] * len(filled), count)):
            parts = [filled[start:end] for start, end in pairwise(cuts)]
            if not all(parts):
                continue
            micro = [MicroBatch(tuple(part), positions[part[-1]]) for part in parts]
            if all(map(layout.allows, micro)):
                return [tuple(micro[rank :: layout.processes]) for rank in range(layout.processes)]
        steps += 1


def _even(needs: Sequence[int], count: int) -> list[int]:
    """Where to cut a row of needs into `count` parts of about equal sums: count + 1 indices."""
    sums = np.cumsum([0, *needs])
    inner = np.searchsorted(sums, sums[-1] * np.arange(1, count) / count - needs[0] / 2)
    return [0, *inner.tolist(), len(needs)]


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch, b clips, t decoder positions, n real target tokens.

    Padding never reaches the loss: `index` (n,) picks the real positions out of the flattened
    (b * t) decoder outputs, and `targets` (n,) are the tokens expected there.
    """

    sound: torch.Tensor  # log-mel, float32 (b, mels, 2 * heard positions), or what frozen layers
    # made of it (training/frozen.py), (b, positions, d_model)
    positions: int  # that the encoder runs for every clip, those that stand for silence included
    decoder_input_ids: torch.Tensor  # int64 (b, t)
    index: torch.Tensor  # int64 (n,)
    targets: torch.Tensor  # int64 (n,)
    clip_ids: tuple[str, ...]
    durations_s: tuple[float, ...]  # of each clip, without padding

    @property
    def audio_s(self) -> float:
        return sum(self.durations_s)

    def to(self, device: torch.device) -> Batch:
        """The same on `device`; from pinned memory the copy does not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; a DataLoader calls this by its name."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        names = ("sound", "decoder_input_ids", "index", "targets")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)

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
            sound=self.sound[first:end],
            positions=self.positions,
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
    """Log-mel float32 (clips, n_mels, 2 * heard) of clips that fit into `positions`.

    `heard` is how many of the positions hear them (positions.py).

    Clip by clip, at its own length: the frames of the silence behind it are all alike. Raises
    DataError where `wave_of` finds a clip no more as the audit did.
    """
    import torch

    heard = heard_positions(positions)
    out = torch.empty(len(clips), n_mels, 2 * heard)
    for row, clip in zip(out, clips, strict=True):
        wave = unchanged(clip, wave_of)
        own = min(heard, -(-len(wave) // SAMPLES_PER_POSITION) + SILENCE)
        mel = log_mel(pad_waves([wave], own), n_mels)[0]
        row[:, : mel.shape[1]] = mel
        row[:, mel.shape[1] :] = mel[:, -1:]
    return out


def collate(
    sound: torch.Tensor, positions: int, rows: Sequence[LabelRow], pad: int, clips: Sequence[Clip]
) -> Batch:
    """Put sounds, their label rows and the names of their clips together."""
    fed, index, targets = label_tensors(rows, pad)
    return Batch(
        sound=sound,
        positions=positions,
        decoder_input_ids=fed,
        index=index,
        targets=targets,
        clip_ids=tuple(clip.id for clip in clips),
        durations_s=tuple(clip.duration_s for clip in clips),
    )


def label_tensors(
    rows: Sequence[LabelRow], pad: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad label rows on the right and note, by length, where the real tokens are.

    Returns decoder_input_ids, index and targets as a Batch has them.
    """
    import torch

    longest = max(len(row.targets) for row in rows)
    fed = torch.full((len(rows), longest), pad)
    index: list[int] = []
    targets: list[int] = []
    for number, row in enumerate(rows):
        fed[number, : len(row.decoder_input_ids)] = torch.tensor(row.decoder_input_ids)
        index += range(number * longest, number * longest + len(row.targets))
        targets += row.targets
    return fed, torch.tensor(index), torch.tensor(targets)
