"""Clips -> batches: the tensors of what passes the model together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_whisper.data.audio import unchanged
from peft_whisper.data.mel import SAMPLES_PER_POSITION, log_mel
from peft_whisper.positions import heard_positions

if TYPE_CHECKING:
    import torch

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import LabelRow

SILENCE = 2  # positions of zeros after which every further frame is the same


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
