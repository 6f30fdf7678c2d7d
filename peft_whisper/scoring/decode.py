"""Decoding of batches: each clip encoded once at its own length, for its tokens and its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from peft_whisper.data.ahead import in_order
from peft_whisper.data.audio import load_wave
from peft_whisper.data.batches import features, label_tensors
from peft_whisper.data.epochs import Context
from peft_whisper.data.labels import MAX_TOKENS
from peft_whisper.data.mel import FRAMES_PER_POSITION
from peft_whisper.environment import empty_caches, is_out_of_memory
from peft_whisper.model.encoder import encode
from peft_whisper.positions import FULL_POSITIONS
from peft_whisper.scoring.search import Greedy, Truth

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import Labels

# Clips x positions (20 ms) in the encoder at once: on a card to bound its memory, on a CPU because
# what fits into its caches is faster (measured, AMD EPYC: 5 % less time than 12,000).
ENCODED_POSITIONS = {"cpu": 3_000}
Work = TypeVar("Work")
Prepared = tuple["Clip", Tensor]  # with its log-mel (mels, frames)
Found = tuple[list[list[int]], Truth | None]  # tokens of each row, and the true ones, graded


@dataclass(frozen=True)
class Decoder:
    """Everything decoding needs besides the clips.

    `batch`: clips at once, halved where memory does not suffice.
    `max_tokens`: new tokens per clip at most; None for the model's own limit of 448 with prefix.
    `autocast`: type that matrices are multiplied in; None for that of the weights.
    """

    whisper: WhisperForConditionalGeneration
    labels: Labels
    generation: GenerationConfig
    n_mels: int
    channel: str
    batch: int
    max_tokens: int | None
    autocast: torch.dtype | None = None

    def transcribe(
        self,
        clips: Sequence[Clip],
        context: Context | None,
        progress: Callable[[int], None] = lambda _clips: None,
    ) -> dict[str, str]:
        """Transcripts by clip id, each clip heard at its own length, or at 30 s without `context`.

        What is heard of a clip does not depend on the clips beside it.
        """
        texts: dict[str, str] = {}
        for part, (ids, _) in self._decoded(clips, context, graded=False):
            texts |= self._texts(part, ids)
            progress(len(part))
        return texts

    def graded(
        self,
        clips: Sequence[Clip],
        context: Context | None,
        check: Callable[[], None] | None = None,
    ) -> tuple[dict[str, str], float, int]:
        """Transcripts, and the loss of the true texts on the same encoder output.

        The loss is summed over their tokens, whose number is the third. `check` is called after
        each batch, and may raise what ends the work.
        """
        texts: dict[str, str] = {}
        total, tokens = 0.0, 0
        for part, (ids, truth) in self._decoded(clips, context, graded=True):
            texts |= self._texts(part, ids)
            assert truth is not None
            total += truth.loss.item()
            tokens += len(truth.targets)
            if check:
                check()
        return texts, total, tokens

    def tokens(
        self, mel: Tensor, prefix: Tensor, limit: int, truth: Truth | None = None
    ) -> list[list[int]]:
        """At most `limit` token ids of each clip after `prefix`; sets the loss of `truth`.

        Args:
            mel: (batch, mels, 2 * positions).
            prefix: int64 (batch, p).
        """
        return self._tokens(self.search(), [mel], prefix, limit, truth)

    def _texts(self, part: Sequence[Prepared], ids: Sequence[Sequence[int]]) -> dict[str, str]:
        rows = zip(part, ids, strict=True)
        return {clip.id: self.labels.decode(row) for (clip, _), row in rows}

    def _decoded(
        self, clips: Sequence[Clip], context: Context | None, *, graded: bool
    ) -> Iterator[tuple[Sequence[Prepared], Found]]:
        """Parts of the clips and what was found for them; smaller ones where memory runs out."""
        most = self.batch
        greedy = self.search()
        for left in self._prepared(clips, context):
            while left:
                part = left[:most]
                found = unless_too_large(partial(self._found, greedy, part, graded), len(part))
                if found is None:
                    most = len(part) // 2
                    empty_caches(self.whisper.device)
                    continue
                yield part, found
                left = left[most:]

    def search(self) -> Greedy:
        """The search, made for the weights as they are now."""
        with self.working():
            return Greedy(self.whisper, self.generation)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Without gradients, and in autocast's type where there is one."""
        cast = torch.autocast(
            self.whisper.device.type, self.autocast, enabled=self.autocast is not None
        )
        with torch.inference_mode(), cast:
            yield

    def encoded(self, mel: Tensor) -> Tensor:
        """Encoder output (batch, positions, d_model) of log-mel (batch, mels, 2 * positions)."""
        encoder = self.whisper.model.encoder
        most = ENCODED_POSITIONS.get(self.whisper.device.type, 12_000)
        parts = mel.split(max(1, most * FRAMES_PER_POSITION // mel.shape[-1]))
        return torch.cat([encode(encoder, part.to(encoder.conv1.weight)) for part in parts])

    def _prepared(self, clips: Sequence[Clip], context: Context | None) -> Iterator[list[Prepared]]:
        """Batches of like length; on a card the next one is read while this one is decoded."""
        ordered = sorted(clips, key=lambda clip: (clip.duration_s, clip.id))
        parts = [ordered[at : at + self.batch] for at in range(0, len(ordered), self.batch)]
        read = partial(self._features, context=context)
        if self.whisper.device.type == "cpu":  # a thread would take the cores that decode
            return map(read, parts)
        return in_order(read, parts, threads=1, ahead=1)

    def _features(self, clips: Sequence[Clip], *, context: Context | None) -> list[Prepared]:
        """Clips, shortest first, with their log-mels."""

        def positions(clip: Clip) -> int:
            return context.positions(clip.duration_s) if context else FULL_POSITIONS

        prepared: list[Prepared] = []
        for length, group in groupby(clips, positions):
            alike = list(group)
            mel = features(
                alike, length, self.n_mels, lambda clip: load_wave(clip.audio, self.channel)
            )
            prepared += zip(alike, mel, strict=True)
        return prepared

    def _found(self, greedy: Greedy, part: Sequence[Prepared], graded: bool) -> Found:
        """Tokens of each clip, and where wanted its true text with its loss."""
        clips = [clip for clip, _ in part]
        prefix = torch.tensor([self.labels.prefix(clip.language) for clip in clips])
        room = MAX_TOKENS - prefix.shape[1]
        limit = room if self.max_tokens is None else min(room, self.max_tokens)
        mels = [
            torch.stack([mel for _, mel in group])
            for _, group in groupby(part, lambda one: one[1].shape[-1])
        ]
        truth = None
        if graded:
            rows = [self.labels.row(clip.text, clip.language) for clip in clips]
            truth = Truth(*label_tensors(rows, self.labels.end))
        return self._tokens(greedy, mels, prefix, limit, truth), truth

    def _tokens(
        self,
        greedy: Greedy,
        mels: Sequence[Tensor],
        prefix: Tensor,
        limit: int,
        truth: Truth | None,
    ) -> list[list[int]]:
        with self.working():
            heard = [self.encoded(mel) for mel in mels]
            return greedy(heard, prefix.to(self.whisper.device), limit, truth)


def unless_too_large(work: Callable[[], Work], clips: int) -> Work | None:
    """What `work` on so many clips gives; None where memory does not suffice, but may for fewer."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or clips == 1:
            raise
    return None  # outside of `except`: there the failed work would still be held
