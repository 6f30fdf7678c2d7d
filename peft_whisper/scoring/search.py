"""Greedy search over a decoder's tokens, and the loss of the true ones on the way.

Token for token what `generate` gives greedily on the same encoder output, without its overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peft_whisper.model.decoder import TokenDecoder, Vocabulary
from peft_whisper.model.loss import summed_cross_entropy

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperForConditionalGeneration

DROPPED_AT = 0.5  # share of rows that have ended when they are dropped, which copies the others


@dataclass
class Truth:
    """The true texts of some rows; the three tensors are those of a Batch."""

    decoder_input_ids: Tensor  # int64 (rows, t)
    index: Tensor  # int64 (n,)
    targets: Tensor  # int64 (n,)
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))  # float32, summed over the n

    @property
    def width(self) -> int:
        return self.decoder_input_ids.shape[1]

    def grade(self, decoder: TokenDecoder, vocabulary: Tensor) -> None:
        """Feed the true texts and set their loss; the decoder then stands at its start again."""
        device = vocabulary.device
        hidden = decoder(self.decoder_input_ids.to(device)).flatten(0, 1)[self.index.to(device)]
        self.loss = summed_cross_entropy(hidden, vocabulary, self.targets.to(device))
        decoder.fed = 0


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

    def __call__(
        self, heard: Sequence[Tensor], prefix: Tensor, limit: int, truth: Truth | None = None
    ) -> list[list[int]]:
        """New token ids of each row, end-of-text left out, at most `limit`.

        Args:
            heard: encoder outputs (rows, positions, d_model), one for each length; their rows in
                this order are those of `prefix`.
            prefix: forced tokens int64 (rows, p).
            truth: its loss is set on the way.
        """
        room = prefix.shape[1] + limit - 1
        decoder = TokenDecoder(self.whisper, heard, max(room, truth.width if truth else 0))
        if truth:
            truth.grade(decoder, self.whisper.proj_out.weight)
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
