"""Where LoRA sits, what trains, and what the first backward proves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import whispers

from peft_whisper.errors import RecipeError, StateError
from peft_whisper.model.adapters import (
    Adapter,
    FirstBackwardCheck,
    attach,
    layer_range,
    merged,
    train_everything,
    trainable,
    trainable_count,
)
from peft_whisper.model.attention import join_attention
from peft_whisper.model.encoder import TokenLoss, whisper_of

ALL = ("q", "k", "v", "out", "fc1", "fc2")


def adapter(encoder: range = range(2), decoder: range = range(2), modules=ALL) -> Adapter:
    return Adapter(4, 8, 0.0, encoder, decoder, tuple(modules))


def tiny():
    return whispers.model(whispers.config())


def backward(model: torch.nn.Module) -> None:
    fed = torch.randint(100, (2, 5))
    targets = torch.randint(100, (10,))
    TokenLoss(model)(torch.randn(2, 80, 512), fed, torch.arange(10), targets).backward()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("all", range(32)),
        ("none", range(0)),
        ("top 8", range(24, 32)),
        ("0-7", range(8)),
        ("5-5", range(5, 6)),
    ],
)
def test_layer_ranges(choice: str, expected: range) -> None:
    assert layer_range(choice, 32, "adapter.encoder_layers") == expected


@pytest.mark.parametrize("choice", ["top 33", "30-32"])
def test_layers_that_a_model_lacks_are_refused(choice: str) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.encoder_layers.*32 layers"):
        layer_range(choice, 32, "adapter.encoder_layers")


@pytest.mark.parametrize(
    ("encoder", "decoder", "modules", "linears"),
    [
        (range(2), range(2), ALL, 2 * 6 + 2 * 10),
        (range(2), range(0), ("q", "v"), 2 * 2),
        (range(0), range(2), ("q", "v"), 2 * 4),
        (range(1, 2), range(1, 2), ("fc1", "out"), 2 + 3),
    ],
)
def test_adapted_layers_are_those_named(encoder, decoder, modules, linears) -> None:
    model = attach(tiny(), adapter(encoder, decoder, modules))
    names = [name for name in trainable(model) if "lora_A" in name]
    assert len(names) == linears
    assert all(p.dtype == torch.float32 for p in trainable(model).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"rank_stabilized": True},
        {"method": "dora"},
        {"start": "pissa"},
        {"method": "layernorm"},
        {"method": "adalora"},
    ],
)
def test_every_method_begins_as_the_base(changes) -> None:
    """And trains through the product's own layers, with a gradient for each tensor."""
    torch.manual_seed(1)
    heard = torch.randn(2, 80, 512)
    fed, targets = torch.randint(100, (2, 5)), torch.randint(100, (10,))
    base, model = tiny(), attach(tiny(), replace(adapter(), **changes))
    join_attention(whisper_of(model), False)
    check = FirstBackwardCheck(whisper_of(model), adapter())
    losses = [TokenLoss(one)(heard, fed, torch.arange(10), targets) for one in (base, model)]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-5)
    losses[1].backward()
    check.finish(trainable(model))
    if "layernorm" in changes.values():
        assert trainable_count(model) == (2 * 2 + 2 * 3) * 2 * whispers.config().d_model


def test_rank_stabilised_lora_is_scaled_by_the_root_of_its_rank() -> None:
    plain, stable = (attach(tiny(), replace(adapter(), rank_stabilized=one)) for one in (0, 1))
    scales = [
        next(one.scaling["default"] for one in model.modules() if hasattr(one, "lora_A"))
        for model in (plain, stable)
    ]
    assert scales == [8 / 4, 8 / 2]


def test_published_counts_of_large_v3() -> None:
    """FLOP and memory tables quote these; the model is built without its weights."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = WhisperConfig(
        vocab_size=51_866,
        num_mel_bins=128,
        d_model=1280,
        encoder_layers=32,
        decoder_layers=32,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
    )
    counts = {}
    for modules in (("q", "v"), ALL):
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(sizes).requires_grad_(False)
            chosen = Adapter(32, 64, 0.0, range(32), range(32), modules)
            counts[modules] = trainable_count(attach(model, chosen))
    print(f"LoRA r32 on large-v3: q,v {counts['q', 'v']:,}; all linear {counts[ALL]:,}")
    assert counts["q", "v"] == 15_728_640
    assert counts[ALL] == 57_671_680


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [(range(2), range(2)), (range(0), range(2)), (range(1, 2), range(0)), (range(0), range(1, 2))],
)
def test_first_backward_passes_where_all_is_well(encoder: range, decoder: range) -> None:
    chosen = adapter(encoder, decoder)
    model = attach(tiny(), chosen)
    check = FirstBackwardCheck(whisper_of(model), chosen)
    backward(model)
    check.finish(trainable(model))


def test_a_tensor_without_gradient_is_named() -> None:
    chosen = adapter()
    model = attach(tiny(), chosen)
    check = FirstBackwardCheck(whisper_of(model), chosen)
    backward(model)
    name, parameter = next(iter(trainable(model).items()))
    parameter.grad = None
    with pytest.raises(StateError, match=name.replace(".", r"\.")):
        check.finish(trainable(model))


def test_a_walk_through_frozen_layers_is_named() -> None:
    """peft's habit of making conv1's output ask for gradients costs decoder-only LoRA twofold."""
    chosen = adapter(encoder=range(0))
    model = attach(tiny(), chosen)
    whisper = whisper_of(model)
    whisper.model.encoder.conv1.register_forward_hook(lambda m, i, out: out.requires_grad_(True))
    check = FirstBackwardCheck(whisper, chosen)
    backward(model)
    with pytest.raises(StateError, match="the whole encoder"):
        check.finish(trainable(model))


@pytest.mark.parametrize("encoder", [range(2), range(0), range(1, 2)])
def test_gradient_checkpointing_walks_no_further(encoder: range) -> None:
    chosen = adapter(encoder=encoder)
    gradients = []
    for recompute in (False, True):
        whisper = tiny()
        torch.manual_seed(3)
        model = attach(whisper, chosen).train()
        if recompute:
            whisper.activation_checkpointing_enable({"use_reentrant": False})
        check = FirstBackwardCheck(whisper, chosen)
        torch.manual_seed(4)
        backward(model)
        check.finish(trainable(model))
        gradients.append([p.grad for p in trainable(model).values()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_full_fine_tune_trains_all_but_the_sinusoids() -> None:
    model = train_everything(tiny())
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["model.encoder.embed_positions.weight"]
    check = FirstBackwardCheck(model, None)
    backward(model)
    check.finish(trainable(model))


def test_merging_for_decoding_restores_the_base_bit_for_bit() -> None:
    model = attach(tiny(), adapter())
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mel, fed, index = torch.randn(1, 80, 512), torch.randint(100, (1, 4)), torch.arange(4)
    batch = mel, fed, index, torch.randint(100, (4,))
    loss = TokenLoss(model)
    with torch.inference_mode():
        apart = loss(*batch)
        with merged(model):
            folded = loss(*batch)
    assert torch.allclose(apart, folded, atol=1e-4)
    assert not torch.equal(folded, TokenLoss(tiny())(*batch))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
