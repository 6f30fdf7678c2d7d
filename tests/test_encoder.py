"""The true-length encoder against the stock one."""

from __future__ import annotations

import pytest
import torch
import whispers
from torch.nn import functional as F

from peft_whisper.model.encoder import TokenLoss, encode


@pytest.mark.parametrize(("n_mels", "kind"), [(80, ".en"), (128, "large-v3")])
def test_equal_bit_for_bit_at_full_length(n_mels: int, kind: str) -> None:
    model = whispers.model(whispers.config(n_mels, whispers.VOCABULARIES[kind]))
    mel = torch.randn(3, n_mels, 3000)
    with torch.inference_mode():
        stock = model.model.encoder(mel).last_hidden_state
        ours = encode(model.model.encoder, mel)
    assert torch.equal(ours, stock)


def test_equal_bit_for_bit_on_the_real_base(demo) -> None:
    from peft_whisper.model.find import find_base

    model = find_base(str(demo / "whisper-tiny.en")).load("float32")
    mel = torch.randn(2, 80, 3000).clamp(-1, 1)
    with torch.inference_mode():
        stock = model.model.encoder(mel).last_hidden_state
        ours = encode(model.model.encoder, mel)
    assert torch.equal(ours, stock)
    print("encoder at 1,500 positions, tiny.en fp32: equal bit for bit to transformers")


def test_a_short_input_is_the_start_of_the_position_table() -> None:
    model = whispers.model(whispers.config())
    with torch.inference_mode():
        out = encode(model.model.encoder, torch.randn(2, 80, 640))
    assert out.shape == (2, 320, 16)


@pytest.mark.parametrize("frames", [0, 641, 3002])
def test_impossible_lengths_are_refused(frames: int) -> None:
    model = whispers.model(whispers.config())
    with pytest.raises(ValueError, match=f"not {frames}"):
        encode(model.model.encoder, torch.randn(1, 80, frames))


def test_the_loss_is_that_of_the_stock_model_where_tokens_are() -> None:
    model = whispers.model(whispers.config())
    mel, fed = torch.randn(2, 80, 3000), torch.randint(100, (2, 5))
    index, targets = torch.tensor([0, 1, 2, 5, 6]), torch.randint(100, (5,))
    with torch.inference_mode():
        ours = TokenLoss(model)(mel, fed, index, targets)
        stock = model(input_features=mel, decoder_input_ids=fed).logits.flatten(0, 1)[index]
    assert torch.allclose(ours, F.cross_entropy(stock, targets, reduction="sum"))
