"""The chunked loss: equal to torch's, in value and gradient, and small."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from peft_whisper.model.loss import CHUNK, summed_cross_entropy


def both(tokens: int, dtype: torch.dtype, train_weight: bool, autocast: bool = False):
    """(value, gradients) of ours and of torch's own over the same numbers."""
    torch.manual_seed(tokens)
    hidden, weight = torch.randn(tokens, 8).to(dtype), torch.randn(300, 8).to(dtype)
    targets, found = torch.randint(300, (tokens,)), []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(train_weight)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if ours:
                value = summed_cross_entropy(h, w, targets)
            else:
                value = F.cross_entropy(F.linear(h, w).float(), targets, reduction="sum")
        (value / tokens).backward()
        found.append((value, [h.grad] + [w.grad] * train_weight))
    return found


@pytest.mark.parametrize("tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("train_weight", [False, True])
def test_value_and_gradients_are_those_of_cross_entropy(tokens: int, train_weight: bool) -> None:
    (ours, grads), (stock, expected) = both(tokens, torch.float32, train_weight)
    assert torch.allclose(ours, stock)
    for found, wanted in zip(grads, expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.bfloat16, False), (torch.float32, True)])
def test_sixteen_bits_stay_within_their_rounding(dtype: torch.dtype, autocast: bool) -> None:
    (ours, grads), (stock, expected) = both(2 * CHUNK, dtype, True, autocast)
    assert torch.allclose(ours, stock, rtol=1e-3)
    for found, wanted in zip(grads, expected, strict=True):
        assert found.dtype == dtype
        assert (found - wanted).float().norm() < 0.02 * wanted.float().norm()


def test_logits_exist_a_chunk_at_a_time() -> None:
    hidden, weight = torch.randn(8 * CHUNK, 8, requires_grad=True), torch.randn(300, 8)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, id):
        summed_cross_entropy(hidden, weight, torch.zeros(8 * CHUNK, dtype=torch.int64))
    assert sum(saved) == hidden.numel()  # the gradient of what came in, and nothing wider
