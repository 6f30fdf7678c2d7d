"""Whisper's attention over whole batches, as training runs it: the same sums, fewer kernels.

The stock forward scales q in a kernel of its own, copies q, k and v into another layout, and
reads its input three times. Here attention takes views of what the linear layers made, scales its
scores as it goes, and layers that read one input do it together (lora.py). How the attention itself
is computed is chosen: by torch's kernels, or, where a CPU is faster so, in tiles (tiled.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperAttention

from peft_whisper.model.lora import products
from peft_whisper.model.tiled import Tiled

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

KeyValue = tuple[Tensor, Tensor]  # each (rows, heads, positions, head width)


def join_attention(whisper: WhisperForConditionalGeneration, tiled: bool = False) -> None:
    """Make the layers of `whisper` run their attention as here; weights and names stay."""
    kind = TiledAttention if tiled else Attention
    for layer in (*whisper.model.encoder.layers, *whisper.model.decoder.layers):
        layer.self_attn.__class__ = kind
        if hasattr(layer, "encoder_attn"):
            layer.encoder_attn.__class__ = kind


class Attention(WhisperAttention):
    """Asked for what it does not do (a cache, masks of rows, weights, dropout): the stock one."""

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(rows, t, d_model) -> (rows, t, d_model), of what comes before where `is_causal`.

        `key_value_states`: (rows, positions, d_model) to look at, instead of `hidden_states`;
        `attention_mask`: (1, 1, 1, positions) to add to the scores of each key.
        """
        config: Any = self.config
        masked = attention_mask is not None and not self._weighs(attention_mask)
        asked = cache is not None or masked or output_attentions
        if asked or self.dropout or config._attn_implementation != "sdpa":
            return super().forward(
                hidden_states, key_value_states, cache, attention_mask, output_attentions, **kwargs
            )
        if key_value_states is None:
            linears = (self.q_proj, self.k_proj, self.v_proj)
            query, key, value = products(hidden_states, linears)
        else:
            query = self.q_proj(hidden_states)
            key, value = products(key_value_states, (self.k_proj, self.v_proj))
        kept = heads(self, key), heads(self, value)
        causal = self.is_causal and hidden_states.shape[1] > 1
        return self.out_proj(self.attended(heads(self, query), kept, attention_mask, causal)), None

    def _weighs(self, mask: Tensor) -> bool:
        """Whether a mask is the same number for every query of a key."""
        alike = mask.dim() == 4 and mask.shape[:3] == (1, 1, 1)
        return alike and mask.is_floating_point() and not self.is_causal

    def attended(
        self, query: Tensor, kept: KeyValue, weights: Tensor | None, causal: bool
    ) -> Tensor:
        """What the queries find, by torch's kernels."""
        return attended(self, query, kept, weights, causal)


class TiledAttention(Attention):
    """In tiles, but for the decoder's attention to its own few tokens."""

    def attended(
        self, query: Tensor, kept: KeyValue, weights: Tensor | None, causal: bool
    ) -> Tensor:
        """What the queries find, tile by tile."""
        if causal:
            return super().attended(query, kept, weights, causal)
        return Tiled.apply(query, *kept, weights, self.scaling).flatten(2)


def heads(attention: Any, x: Tensor) -> Tensor:
    """(rows, t, d_model) -> (rows, heads, t, head width), a view."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def attended(
    attention: Any,
    query: Tensor,
    kept: KeyValue,
    weights: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """What the queries find: (rows, t, d_model); `weights` are added to the scores of the keys."""
    if weights is not None:
        weights = weights.to(query.dtype)
    found = F.scaled_dot_product_attention(
        query, *kept, attn_mask=weights, is_causal=causal, scale=attention.scaling
    )
    return found.transpose(1, 2).flatten(2)
