"""Greedy decoding of batches: each clip encoded once at its own length, finished rows dropped.

Token for token what `generate` gives greedily on the same encoder output, without its overhead.
"""

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
from peft_whisper.data.batches import Context, features
from peft_whisper.data.labels import MAX_TOKENS
from peft_whisper.data.mel import FRAMES_PER_POSITION, FULL_POSITIONS
from peft_whisper.environment import empty_caches, is_out_of_memory
from peft_whisper.model.decoder import TokenDecoder, Vocabulary
from peft_whisper.model.encoder import encode

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import Labels

# Clips x positions (20 ms) in the encoder at once: on a card to bound its memory, on a CPU because
# what fits into its caches is faster (measured, AMD EPYC: 5 % less time than 12,000).
ENCODED_POSITIONS = {"cpu": 3_000}
DROPPED_AT = 0.5  # share of rows that have ended when they are dropped, which copies the others
Ids = TypeVar("Ids")
Prepared = tuple["Clip", Tensor]  # with its log-mel (mels, frames)


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
        most = self.batch
        greedy = self.search()
        for left in self._prepared(clips, context):
            while left:
                part = left[:most]
                ids = unless_too_large(partial(self._ids, greedy, part), len(part))
                if ids is None:
                    most = len(part) // 2
                    empty_caches(self.whisper.device)
                    continue
                for (clip, _), row in zip(part, ids, strict=True):
                    texts[clip.id] = self.labels.decode(row)
                left = left[most:]
                progress(len(part))
        return texts

    def tokens(self, mel: Tensor, prefix: Tensor, limit: int) -> list[list[int]]:
        """At most `limit` token ids of each clip after `prefix`.

        Args:
            mel: (batch, mels, 2 * positions).
            prefix: int64 (batch, p).
        """
        return self._tokens(self.search(), [mel], prefix, limit)

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

    def _ids(self, greedy: Greedy, part: Sequence[Prepared]) -> list[list[int]]:
        """Tokens of each clip."""
        prefix = torch.tensor([self.labels.prefix(clip.language) for clip, _ in part])
        room = MAX_TOKENS - prefix.shape[1]
        limit = room if self.max_tokens is None else min(room, self.max_tokens)
        mels = [
            torch.stack([mel for _, mel in group])
            for _, group in groupby(part, lambda one: one[1].shape[-1])
        ]
        return self._tokens(greedy, mels, prefix, limit)

    def _tokens(
        self, greedy: Greedy, mels: Sequence[Tensor], prefix: Tensor, limit: int
    ) -> list[list[int]]:
        with self.working():
            heard = [self.encoded(mel) for mel in mels]
            return greedy(heard, prefix.to(self.whisper.device), limit)


def unless_too_large(work: Callable[[], Ids], clips: int) -> Ids | None:
    """What `work` on so many clips gives; None where memory does not suffice, but may for fewer."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or clips == 1:
            raise
    return None  # outside of `except`: there the failed work would still be held


class Greedy:
    """The most likely token, again and again.

    `generation` gives `suppress_tokens` (never), `begin_suppress_tokens` (not first) and
    `eos_token_id`.
    """

    def __init__(self, whisper: WhisperForConditionalGeneration, generation: GenerationConfig):
        self.whisper, self.vocabulary = whisper, Vocabulary(whisper)
        end = generation.eos_token_id
        self.end: int = end[0] if isinstance(end, list) else end
        never, not_first = generation.suppress_tokens or [], generation.begin_suppress_tokens or []
        device = whisper.device
        self.never = torch.tensor(never, dtype=torch.long, device=device)
        self.not_first = torch.tensor(not_first, dtype=torch.long, device=device)

    def __call__(self, heard: Sequence[Tensor], prefix: Tensor, limit: int) -> list[list[int]]:
        """New token ids of each row, end-of-text left out, at most `limit`.

        Args:
            heard: encoder outputs (rows, positions, d_model), one for each length; their rows in
                this order are those of `prefix`.
            prefix: forced tokens int64 (rows, p).
        """
        decoder = TokenDecoder(self.whisper, heard, prefix.shape[1] + limit - 1)
        hidden = decoder(prefix)[:, -1]
        return follow(decoder, self.vocabulary, hidden, limit, self.end, self.choose)

    def choose(self, logits: Tensor, _rows: Tensor, step: int) -> Tensor:
        """Token (rows,) of logits (rows, vocabulary), which are changed."""
        self.suppress(logits, step)
        return logits.argmax(-1)

    def suppress(self, logits: Tensor, step: int) -> None:
        """Make what may not come at this step, counted from 0, infinitely unlikely."""
        logits.index_fill_(1, self.never, -torch.inf)
        if step == 0:
            logits.index_fill_(1, self.not_first, -torch.inf)


def follow(
    decoder: TokenDecoder,
    vocabulary: Vocabulary,
    hidden: Tensor,
    limit: int,
    end: int,
    choose: Callable[[Tensor, Tensor, int], Tensor],
) -> list[list[int]]:
    """Feed each row what was chosen for it, until `end` or `limit` tokens.

    Args:
        hidden: (rows, d_model) after the prefix.
        choose: called with logits (live rows, vocabulary), the numbers of these rows (live rows,)
            and the step, counted from 0.

    Returns:
        Tokens of each row, `end` left out.
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    done = torch.zeros_like(rows, dtype=torch.bool)
    out = torch.full((len(hidden), limit), end, device=hidden.device)
    for step in range(limit):
        token = choose(vocabulary(hidden), rows, step).masked_fill(done, end)
        out[rows, step] = token
        done = token == end
        finished = int(done.sum())  # the one wait for the device: who is done decides what follows
        if finished == len(rows) or step + 1 == limit:
            break
        if finished >= DROPPED_AT * len(rows):
            live = ~done
            decoder.keep(live)
            rows, token, done = rows[live], token[live], done[live]
        hidden = decoder(token[:, None])[:, -1]
    return [row[: row.index(end)] if end in row else row for row in out.tolist()]


def greedy(
    whisper: WhisperForConditionalGeneration,
    heard: Tensor,
    prefix: Tensor,
    generation: GenerationConfig,
    max_tokens: int,
) -> list[list[int]]:
    """Most likely tokens of each row of `heard` after `prefix`; see Greedy."""
    return Greedy(whisper, generation)([heard], prefix, max_tokens)
