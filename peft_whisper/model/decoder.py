"""The stock Whisper's decoder, a token at a time: what was computed once is kept and not copied.

The same computation as transformers' WhisperDecoder, through the same modules (which may be peft's
or quantised), without what single tokens don't need: masks, checks, caches that grow by a copy of
themselves at each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from peft_whisper.model.attention import KeyValue, attended, heads
from peft_whisper.model.encoder import key_weights

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

GROWTH = 64  # tokens by which the room for keys and values grows
PACKED_FOR = 32  # rows; the packing is good for fewer and for more too


class TokenDecoder:
    """The decoder over rows that have heard something; each call goes on where the last ended."""

    def __init__(
        self, whisper: WhisperForConditionalGeneration, heard: Sequence[Tensor], tokens: int
    ):
        """Compute keys and values of what was heard.

        Args:
            heard: encoder outputs (rows, positions, d_model), one for each length; the rows of
                all of them, in this order, are decoded together.
            tokens: how many a row will be fed at most, the prefix included.
        """
        self.decoder: Any = whisper.model.decoder
        self.rows = [len(one) for one in heard]  # of each length
        self.most, self.fed = tokens, 0
        self.heard: list[list[KeyValue]] = [
            [_key_value(layer.encoder_attn, one) for one in heard] for layer in self.decoder.layers
        ]
        self.weights = [key_weights(one) for one in heard]
        self.said: list[KeyValue] = []  # with room for more than `fed` tokens

    def __call__(self, ids: Tensor) -> Tensor:
        """Feed int64 (rows, t), t > 1 only the first time; returns hidden (rows, t, d_model)."""
        decoder, end = self.decoder, self.fed + ids.shape[1]
        x = decoder.embed_tokens(ids) + decoder.embed_positions.weight[self.fed : end]
        for number, layer in enumerate(decoder.layers):
            x = x + self._attend_said(number, layer.self_attn, layer.self_attn_layer_norm(x))
            x = x + self._attend_heard(number, layer.encoder_attn, layer.encoder_attn_layer_norm(x))
            x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
        self.fed = end
        return decoder.layer_norm(x)

    def keep(self, live: Tensor) -> None:
        """Go on with the rows where bool (rows,) `live` is true."""
        groups = live.split(self.rows)
        indices = [group.nonzero().flatten() for group in groups]
        left = [number for number, one in enumerate(indices) if len(one)]
        self.rows = [len(indices[number]) for number in left]
        self.weights = [self.weights[number] for number in left]
        for number, kept in enumerate(self.heard):
            self.heard[number] = [_rows(kept[one], indices[one]) for one in left]
        rows = live.nonzero().flatten()
        self.said = [_rows(kept, rows) for kept in self.said]

    def _attend_said(self, number: int, attention: Any, x: Tensor) -> Tensor:
        key, value = _key_value(attention, x)
        first, end = self.fed, self.fed + x.shape[1]
        keys, values = self._room(number, key, value, end)
        keys[:, :, first:end], values[:, :, first:end] = key, value
        query = heads(attention, attention.q_proj(x))
        said = keys[:, :, :end], values[:, :, :end]
        found = attended(attention, query, said, causal=x.shape[1] > 1)
        return attention.out_proj(found)

    def _attend_heard(self, number: int, attention: Any, x: Tensor) -> Tensor:
        queries = heads(attention, attention.q_proj(x)).split(self.rows)
        found = [
            attended(attention, query, kept, weights)
            for query, kept, weights in zip(queries, self.heard[number], self.weights, strict=True)
        ]
        return attention.out_proj(torch.cat(found) if len(found) > 1 else found[0])

    def _room(self, number: int, key: Tensor, value: Tensor, end: int) -> KeyValue:
        """A layer's keys and values with room for `end` tokens, in steps of GROWTH."""
        if number == len(self.said):
            self.said.append((key[:, :, :0], value[:, :, :0]))
        if self.said[number][0].shape[2] < end:
            room = min(self.most, -(-end // GROWTH) * GROWTH)
            keys, values = self.said[number]
            self.said[number] = _grown(keys, room), _grown(values, room)
        return self.said[number]


class Vocabulary:
    """The product with every token's embedding: most of a small Whisper's work at each token.

    For products of few rows in fp32 torch calls MKL, which takes up to seven times as long as the
    oneDNN beside it (measured, AMD EPYC); so there the weights are packed for oneDNN, once. In
    autocast they are cast once.
    """

    def __init__(self, whisper: WhisperForConditionalGeneration):
        self.weight: Tensor = whisper.proj_out.weight
        kind = self.weight.device.type
        if torch.is_autocast_enabled(kind):
            self.weight = self.weight.to(torch.get_autocast_dtype(kind))
        self.packed: Tensor | None = None
        if (
            kind == "cpu"
            and self.weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        ):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), PACKED_FOR)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(rows, d_model) -> logits (rows, vocabulary)."""
        if self.packed is None:
            return F.linear(hidden.to(self.weight.dtype), self.weight)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self.packed, None, "none", [], ""
        )
        return found


def _key_value(attention: Any, x: Tensor) -> KeyValue:
    return heads(attention, attention.k_proj(x)), heads(attention, attention.v_proj(x))


def _rows(kept: KeyValue, rows: Tensor) -> KeyValue:
    return kept[0][rows], kept[1][rows]


def _grown(kept: Tensor, room: int) -> Tensor:
    """`kept` (rows, heads, t, width) at the start of a new tensor with room for `room` tokens."""
    rows, heads, held, width = kept.shape
    grown = kept.new_empty(rows, heads, room, width)
    grown[:, :, :held] = kept
    return grown
