"""Attention some heads at a time, so that their scores stay in a CPU's cache, as two operators.

torch's flash kernel for CPUs gains nothing from bf16, since its small products are not oneDNN's.
Here a tile is a few heads: two of oneDNN's products with torch's softmax between them. As in flash
attention nothing is kept for backward but q, k and v; each tile is made again there. Two cores of
an EPYC with avx512_bf16, there and back, tiny.en's heads: 0.58 of flash's time for 8 clips at 256
positions, 0.73 for 2 at 1,500; in fp32 it takes longer than flash, so it is for bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peft_whisper.model.operators import define, own

TILE = 1536 * 1024  # scores at most, 3 MB in bf16; from 768 K to 2,304 K equally fast


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor | None, scale: float
) -> Tensor:
    """softmax(scale query key^T + weights) value.

    Args:
        query: (rows, heads, t, width).
        key, value: (rows, heads, positions, width), of the query's dtype.
        weights: (1, 1, 1, positions).

    Returns:
        (rows, t, heads, width).
    """
    q, k, v, added = _flat(query * scale), _flat(key), _flat(value), _added(weights, query)
    found = torch.empty_like(q)
    for heads in _tiles(q, k):
        torch.bmm(_chances(q[heads], k[heads], added), v[heads], out=found[heads])
    return found.view(query.shape).transpose(1, 2).contiguous()


def tiled_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; `grad` is (rows, t, heads, width)."""
    q, k, v, grads = _flat(query * scale), _flat(key), _flat(value), _flat(grad.transpose(1, 2))
    added = _added(weights, query)
    of_q, of_k, of_v = (torch.empty_like(one) for one in (q, k, v))
    for heads in _tiles(q, k):
        chances = _chances(q[heads], k[heads], added)
        of_scores = _of_scores(grads[heads], chances, v[heads], of_v[heads])
        del chances
        torch.bmm(of_scores, k[heads], out=of_q[heads])
        torch.bmm(of_scores.transpose(1, 2), q[heads], out=of_k[heads])
        del of_scores  # before the next tile's are made
    of_q.mul_(scale)
    return of_q.view(query.shape), of_k.view(key.shape), of_v.view(value.shape)


class Tiled(torch.autograd.Function):
    """`tiled_attention` with its gradients: apply(query, key, value, weights, scale)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weights: Tensor | None,
        scale: float,
    ) -> Tensor:
        """As `tiled_attention`."""
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        found: Tensor = own.tiled_attention(query, key, value, weights, scale)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """As `tiled_attention_backward`."""
        return *own.tiled_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None


def _flat(x: Tensor) -> Tensor:
    """(rows, heads, t, width) -> (rows * heads, t, width), contiguous."""
    return x.reshape(-1, *x.shape[2:]).contiguous()


def _tiles(q: Tensor, k: Tensor) -> Iterator[slice]:
    """The heads of each tile."""
    count = _tile(q.shape[1], k.shape[1])
    return (slice(first, first + count) for first in range(0, len(q), count))


def _tile(queries: int, keys: int) -> int:
    """How many heads a tile has."""
    return max(1, TILE // (queries * keys))


def _added(weights: Tensor | None, query: Tensor) -> Tensor | None:
    return None if weights is None else weights.flatten().to(query.dtype)


def _chances(q: Tensor, k: Tensor, added: Tensor | None) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2))
    return torch.softmax(scores if added is None else scores.add_(added), -1)


def _of_scores(grad: Tensor, chances: Tensor, v: Tensor, of_v: Tensor) -> Tensor:
    """Gradient of a tile's scores; writes that of its values."""
    torch.bmm(chances.transpose(1, 2), grad, out=of_v)
    of_chances = torch.bmm(grad, v.transpose(1, 2))
    return torch.ops.aten._softmax_backward_data(of_chances, chances, -1, chances.dtype)


def _meta(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def _backward_meta(_grad: Any, *qkv: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(one, memory_format=torch.contiguous_format) for one in qkv[:3])


def _flops(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    return 4 * query.numel() * key.shape[2]


def _backward_flops(_grad: Any, query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    return 10 * query.numel() * key.shape[2]


def _scratch(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    # The output is copied into its own order when the last tile is gone.
    tiles = max(2 * _tile_bytes(query, key) - query.nbytes, 0)
    return 2 * query.nbytes + _copied(key) + _copied(value) + tiles


def _backward_scratch(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    copied = query.nbytes + sum(map(_copied, (key, value, grad.transpose(1, 2))))
    return copied + 3 * _tile_bytes(query, key)


def _copied(x: Tensor) -> int:
    return 0 if x.is_contiguous() else x.nbytes


def _tile_bytes(query: Tensor, key: Tensor) -> int:
    rows, heads, queries, _ = query.shape
    keys = key.shape[2]
    return min(rows * heads, _tile(queries, keys)) * queries * keys * query.element_size()


define(
    "(Tensor query, Tensor key, Tensor value, Tensor? weights, float scale) -> Tensor",
    tiled_attention,
    _meta,
    _flops,
    _scratch,
)
define(
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? weights, float scale) -> "
    "(Tensor, Tensor, Tensor)",
    tiled_attention_backward,
    _backward_meta,
    _backward_flops,
    _backward_scratch,
)
