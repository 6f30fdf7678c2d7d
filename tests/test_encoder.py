"""The true-length encoder against the stock one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import whispers
from torch import Tensor
from torch.nn import functional as F

from peft_whisper.data.batches import pad_waves
from peft_whisper.data.epochs import Context
from peft_whisper.data.mel import log_mel
from peft_whisper.model.attention import join_attention
from peft_whisper.model.encoder import TokenLoss, encode
from peft_whisper.positions import heard_positions, positions_for


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


def silent_behind(heard: int, kind: str = ".en") -> tuple[Any, Tensor]:
    """A model whose positions behind the clip are all alike, and a clip padded with silence."""
    model = whispers.model(whispers.config(80, whispers.VOCABULARIES[kind]))
    mel = torch.zeros(2, 80, 3000)
    mel[:, :, : 2 * heard - 12] = torch.randn(2, 80, 2 * heard - 12)
    with torch.no_grad():
        table = model.model.encoder.embed_positions.weight
        table[heard - 1 :] = table[heard - 1].clone()
    return model, mel


@pytest.mark.parametrize("attention", ["sdpa", "ours", "tiled"])
def test_silence_that_is_alike_need_not_be_run(attention: str) -> None:
    """Then 1,500 positions and a fifth of them give the same encoder output and the same loss."""
    heard = 240
    model, mel = silent_behind(heard)
    if attention != "sdpa":
        join_attention(model, tiled=attention == "tiled")
    fed, index, targets = torch.randint(100, (2, 5)), torch.arange(10), torch.randint(100, (10,))
    with torch.inference_mode():
        full = encode(model.model.encoder, mel)
        short = encode(model.model.encoder, mel[:, :, : 2 * heard])
        losses = [TokenLoss(model)(one, fed, index, targets) for one in (mel, mel[:, :, :480])]
    assert short.shape[1] == positions_for(heard) == 318
    worst = (short[:, :heard] - full[:, :heard]).abs().max().item()
    alone = (encode_without_silence(model, mel, heard) - full[:, :heard]).abs().max().item()
    print(f"{attention}: {worst:.1e} off with silence sampled, {alone:.1e} without silence")
    assert worst < 1e-5 < alone
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)


def encode_without_silence(model: Any, mel: Tensor, heard: int) -> Tensor:
    """What a short input gives where nothing stands for the silence behind it."""
    encoder = model.model.encoder
    with torch.inference_mode():
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel[:, :, : 2 * heard]))))
        hidden = hidden.transpose(1, 2) + encoder.embed_positions.weight[:heard]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return encoder.layer_norm(hidden)


def test_on_speech_it_is_nearer_to_thirty_seconds_than_without_silence(demo: Path) -> None:
    """tiny.en on prompts of the demo's test split: relative error at the positions of speech."""
    from peft_whisper.model.find import find_base

    model = find_base(str(demo / "whisper-tiny.en")).load("float32")
    errors = []
    for path in sorted((demo / "speech" / "clips").glob("*.flac"))[:12]:
        wave, _ = soundfile.read(path, dtype="float32")
        seconds = len(wave) / 16_000
        heard = heard_positions(Context(8).positions(seconds))
        mel = log_mel(pad_waves([wave], 1500), 80)
        with torch.inference_mode():
            full = encode(model.model.encoder, mel)
            short = encode(model.model.encoder, mel[:, :, : 2 * heard])
        said = int(50 * seconds)
        truth, bare = full[:, :said], encode_without_silence(model, mel, heard)
        apart = ((one[:, :said] - truth).norm() / truth.norm() for one in (short, bare))
        errors.append([one.item() for one in apart])
    with_silence, without = torch.tensor(errors).mean(0).tolist()
    print(f"12 prompts: {with_silence:.3f} off 30 s with silence, {without:.3f} without")
    assert with_silence < 0.25
    assert with_silence < 0.5 * without


def test_clip_and_silence_are_what_is_run() -> None:
    model = whispers.model(whispers.config())
    with torch.inference_mode():
        out = encode(model.model.encoder, torch.randn(2, 80, 640))
    assert out.shape == (2, 320 + 73, 16)


@pytest.mark.parametrize("frames", [0, 641, 2970, 3002])
def test_impossible_lengths_are_refused(frames: int) -> None:
    model = whispers.model(whispers.config())
    with pytest.raises(ValueError, match=f"(not|hears) {frames}"):
        encode(model.model.encoder, torch.randn(1, 80, frames))


def test_the_loss_is_that_of_the_stock_model_where_tokens_are() -> None:
    model = whispers.model(whispers.config())
    mel, fed = torch.randn(2, 80, 3000), torch.randint(100, (2, 5))
    index, targets = torch.tensor([0, 1, 2, 5, 6]), torch.randint(100, (5,))
    with torch.inference_mode():
        ours = TokenLoss(model)(mel, fed, index, targets)
        stock = model(input_features=mel, decoder_input_ids=fed).logits.flatten(0, 1)[index]
    assert torch.allclose(ours, F.cross_entropy(stock, targets, reduction="sum"))
