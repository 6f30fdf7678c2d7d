"""Attention in tiles, against torch's own in double precision."""

from __future__ import annotations

import pytest
import torch
import whispers
from test_attention import batch, filled, gradients
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from peft_whisper.memory.cpu_log import alive, logged_peak
from peft_whisper.model import tiled
from peft_whisper.model.adapters import MODULES, Adapter, attach
from peft_whisper.model.attention import TiledAttention, join_attention
from peft_whisper.model.encoder import TokenLoss, whisper_of
from peft_whisper.model.operators import SCRATCH, own
from peft_whisper.model.recompute import recompute
from peft_whisper.model.tiled import Tiled

SHAPES = [(2, 6, 1500, 1500), (18, 6, 256, 256), (3, 5, 24, 700), (2, 6, 1, 5), (1, 2, 513, 40)]
EVERYWHERE = Adapter(4, 8, 0.0, range(2), range(2), tuple(MODULES))


def drawn(rows: int, heads: int, queries: int, keys: int) -> tuple[Tensor, ...]:
    """q, k and v as the linear layers give them, in double precision."""
    torch.manual_seed(11)
    made = (torch.randn(rows, t, heads, 64).double() for t in (queries, keys, keys))
    return tuple(one.transpose(1, 2) for one in made)


def swept(attend, qkv: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """What the queries find, and the gradients of all three."""
    given = [one.to(dtype).requires_grad_() for one in qkv]
    found = attend(*given)
    torch.manual_seed(2)
    grad = torch.randn(found.shape, dtype=torch.float64).to(dtype)
    return [found, *torch.autograd.grad(found, given, grad)]


def weights_of(key: Tensor) -> Tensor | None:
    """None for the shapes of a full length and of a few tokens."""
    keys = key.shape[2]
    ramp = torch.linspace(-1, 3, keys, device=key.device).to(key.dtype)
    return None if keys in (1500, 5) else ramp.view(1, 1, 1, keys)


def in_tiles(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return Tiled.apply(query, key, value, weights_of(key), 0.125)


def by_torch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    found = F.scaled_dot_product_attention(
        query, key, value, attn_mask=weights_of(key), scale=0.125
    )
    return found.transpose(1, 2)


def off(found: list[Tensor], truth: list[Tensor]) -> float:
    """The largest relative error of the four."""
    pairs = zip(found, truth, strict=True)
    return max(((one - other).norm() / other.norm()).item() for one, other in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_as_exact_as_torchs(shape: tuple[int, ...]) -> None:
    qkv = drawn(*shape)
    truth = swept(by_torch, qkv, torch.float64)
    assert off(swept(in_tiles, qkv, torch.float64), truth) < 1e-12
    assert off(swept(in_tiles, qkv, torch.float32), truth) < 1e-6
    mine, theirs = (off(swept(way, qkv, torch.bfloat16), truth) for way in (in_tiles, by_torch))
    print(f"{shape} in bf16: error {mine:.1e} in tiles, {theirs:.1e} by torch")
    assert mine < 2 * theirs


def test_a_batch_of_many_tiles_is_its_tiles() -> None:
    """The shapes above have tiles of one head, of some, a last one that is cut, and of all."""
    cut = [(rows * heads, tiled._tile(queries, keys)) for rows, heads, queries, keys in SHAPES]
    assert cut[0] == (12, 1)
    assert cut[1] == (108, 24) and 108 % 24
    assert cut[2][1] > cut[2][0]


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_memory_said_is_what_the_allocator_gives(shape: tuple[int, ...]) -> None:
    qkv = [one.bfloat16() for one in drawn(*shape)]
    grad = torch.randn_like(qkv[0].transpose(1, 2).contiguous())
    standing = alive()
    for operator, given in (
        (own.tiled_attention, (*qkv, weights_of(qkv[1]), 0.125)),
        (own.tiled_attention_backward, (grad, *qkv, weights_of(qkv[1]), 0.125)),
    ):
        out = operator(*given)
        outputs = sum(one.nbytes for one in (out if isinstance(out, tuple) else (out,)))
        del out
        taken = logged_peak(lambda op=operator, given=given: op(*given)) - standing
        said = SCRATCH[operator.default](*given) + outputs
        print(f"{operator}: {taken / said:.3f} of what is said")
        assert said == pytest.approx(taken, rel=0.02)


def test_its_flops_are_those_that_torch_counts_for_its_own() -> None:
    qkv, counted = drawn(*SHAPES[2]), []
    for attend in (in_tiles, by_torch):
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            given = [torch.empty(one.shape, requires_grad=True) for one in qkv]
            attend(*given).sum().backward()
        counted.append(counter.get_total_flops())
    assert counted[0] == 14 * qkv[0].numel() * qkv[1].shape[2]
    assert counted[0] == pytest.approx(counted[1], rel=0.2)


@pytest.mark.parametrize("kept", ["none", "cheap", "1/2", "all"])
def test_a_whisper_trains_in_tiles_as_in_the_stock_attention(kept: str) -> None:
    made = []
    for own_tiles in (False, True):
        model = filled(attach(whispers.model(whispers.config()), EVERYWHERE))
        recompute(whisper_of(model), kept)
        if own_tiles:
            join_attention(whisper_of(model), tiled=True)
            kinds = {type(one) for one in model.modules() if isinstance(one, TiledAttention)}
            assert kinds == {TiledAttention}
        made.append(gradients(TokenLoss(model)(*batch()), model))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
