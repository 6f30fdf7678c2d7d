"""Greedy decoding of batches: encoder once, key/value cache, finished rows dropped.

Token for token what `generate` gives greedily on the same encoder output, without its overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peft_whisper.data.audio import load_wave
from peft_whisper.data.batches import Context, features
from peft_whisper.data.labels import MAX_TOKENS
from peft_whisper.data.mel import FULL_POSITIONS
from peft_whisper.model.encoder import encode

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import Labels

ENCODED_POSITIONS = 12_000  # clips x positions (20 ms) in the encoder at once: bounds its memory


@dataclass(frozen=True)
class Decoder:
    """Everything decoding needs besides the clips.

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
        """Transcripts by clip id, each batch at its own length, or at 30 s without `context`."""
        texts: dict[str, str] = {}
        ordered = sorted(clips, key=lambda clip: (clip.duration_s, clip.id))
        for at in range(0, len(ordered), self.batch):
            part = ordered[at : at + self.batch]
            positions = context.positions(part[-1].duration_s) if context else FULL_POSITIONS
            ids = self._decode(part, positions)
            texts |= {c.id: self.labels.decode(i) for c, i in zip(part, ids, strict=True)}
            progress(len(part))
        return texts

    def _decode(self, clips: Sequence[Clip], positions: int) -> list[list[int]]:
        mel = features(
            clips, positions, self.n_mels, lambda clip: load_wave(clip.audio, self.channel)
        )
        prefix = torch.tensor([self.labels.prefix(clip.language) for clip in clips])
        room = MAX_TOKENS - prefix.shape[1]
        limit = room if self.max_tokens is None else min(room, self.max_tokens)
        return self.tokens(mel, prefix, limit)

    def tokens(self, mel: torch.Tensor, prefix: torch.Tensor, limit: int) -> list[list[int]]:
        """At most `limit` token ids of each clip after `prefix`.

        Args:
            mel: (batch, mels, 2 * positions).
            prefix: int64 (batch, p).
        """
        device = self.whisper.device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, self.autocast, enabled=self.autocast is not None),
        ):
            encoder = self.whisper.model.encoder
            parts = mel.split(max(1, ENCODED_POSITIONS * 2 // mel.shape[-1]))
            heard = torch.cat([encode(encoder, part.to(encoder.conv1.weight)) for part in parts])
            return greedy(self.whisper, heard, prefix.to(device), self.generation, limit)


def greedy(
    whisper: WhisperForConditionalGeneration,
    heard: torch.Tensor,
    prefix: torch.Tensor,
    generation: GenerationConfig,
    max_tokens: int,
) -> list[list[int]]:
    """Most likely tokens after `prefix`, until end-of-text or `max_tokens`.

    Args:
        heard: encoder output (batch, positions, d_model).
        prefix: forced tokens (batch, p), equally long for all rows.
        generation: gives `suppress_tokens` (never), `begin_suppress_tokens` (not first) and
            `eos_token_id`.

    Returns:
        New token ids of each row, end-of-text left out.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    end = generation.eos_token_id
    end = end[0] if isinstance(end, list) else end
    never = _mask(generation.suppress_tokens, whisper.config.vocab_size, heard)
    not_first = _mask(generation.begin_suppress_tokens, whisper.config.vocab_size, heard)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    rows = torch.arange(len(prefix), device=prefix.device)  # which clip each live row belongs to
    done = torch.zeros_like(rows, dtype=torch.bool)
    out = torch.full((len(prefix), max_tokens), end, device=prefix.device)
    fed = prefix
    for step in range(max_tokens):
        # by place: the cache's name differs between releases of transformers
        decoded = whisper.model.decoder(fed, None, heard, cache, use_cache=True)
        hidden = decoded.last_hidden_state[:, -1]
        logits = whisper.proj_out(hidden).float() + never
        if step == 0:
            logits += not_first
        token = logits.argmax(-1).masked_fill(done, end)
        out[rows, step] = token
        done = token == end
        finished = int(done.sum())
        if finished == len(rows):
            break
        if 2 * finished >= len(rows):  # dropping rows copies the cache: only when it halves it
            live = (~done).nonzero().flatten()
            cache.batch_select_indices(live)
            heard, rows, token, done = heard[live], rows[live], token[live], done[live]
        fed = token[:, None]
    return [row[: row.index(end)] if end in row else row for row in out.tolist()]


def _mask(ids: list[int] | None, vocabulary: int, like: torch.Tensor) -> torch.Tensor:
    """0 everywhere and -inf at `ids`, float32 (vocabulary,)."""
    mask = torch.zeros(vocabulary, device=like.device)
    mask[torch.tensor(ids or [], dtype=torch.long, device=like.device)] = -torch.inf
    return mask
