"""Training's own attention and grouped adapters, against transformers' and peft's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import whispers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperAttention

from peft_whisper.model.adapters import MODULES, Adapter, attach, merged, trainable
from peft_whisper.model.attention import Attention, join_attention
from peft_whisper.model.encoder import TokenLoss, decode, whisper_of
from peft_whisper.model.lora import Linear, products
from peft_whisper.model.lora_ops import own
from peft_whisper.model.quantized import FrozenLinear

SOME = [tuple(MODULES), ("q", "v"), ("k", "out"), ("fc1",)]


def batch() -> tuple[Tensor, ...]:
    torch.manual_seed(7)
    fed = torch.randint(100, (2, 7))
    return torch.randn(2, 80, 3000), fed, torch.arange(14), torch.randint(100, (14,))


def filled(model: nn.Module) -> nn.Module:
    """The same adapter for every model of these names, B not 0."""
    torch.manual_seed(3)
    for parameter in trainable(model).values():
        nn.init.normal_(parameter, std=0.1)
    return model.train()


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    loss.backward()
    return [loss.detach(), *(p.grad for p in trainable(model).values())]


def stock_loss(model: Any, mel: Tensor, fed: Tensor, index: Tensor, targets: Tensor) -> Tensor:
    logits = model(input_features=mel, decoder_input_ids=fed).logits.flatten(0, 1)
    return F.cross_entropy(logits[index], targets, reduction="sum")


@pytest.mark.parametrize("modules", SOME)
@pytest.mark.parametrize("encoder", [range(2), range(0)])
def test_loss_and_gradients_are_those_of_transformers_and_peft(
    modules: tuple[str, ...], encoder: range
) -> None:
    adapter = Adapter(4, 8, 0.0, encoder, range(2), modules)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=adapter.pattern())
    theirs = filled(get_peft_model(whispers.model(whispers.config()), config))
    ours = filled(attach(whispers.model(whispers.config()), adapter))
    assert trainable(ours).keys() == trainable(theirs).keys()
    expected = gradients(stock_loss(theirs, *batch()), theirs)
    join_attention(whisper_of(ours))
    found = gradients(TokenLoss(ours)(*batch()), ours)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def projections(dropout: float, adapted: str = "qkv", kind: str | None = None) -> list[nn.Module]:
    """Three linear layers of double precision (single, where quantised), k without bias."""
    torch.manual_seed(0)
    made: list[nn.Module] = []
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout)
    for name in "qkv":
        base = nn.Linear(64, 64, bias=name != "k").requires_grad_(False)
        if kind is not None:
            base = FrozenLinear(base, kind, "cpu").fill(base.weight)
        if name in adapted:
            base = Linear(base, "default", config, r=8, lora_alpha=16)
            nn.init.normal_(base.lora_B["default"].weight)
        made.append(base if kind else base.double())
    return made


def swept(linears: list[nn.Module], x: Tensor, run: Any) -> list[Tensor]:
    """Outputs, and gradients of x and of all adapters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    made = run(x, linears)
    sum(((n + 1) * y).square().sum() for n, y in enumerate(made)).backward()
    weights = [p for one in linears for p in one.parameters() if p.requires_grad]
    found = [*made, x.grad, *(p.grad for p in weights)]
    for weight in weights:
        weight.grad = None
    return found


def by_hand(x: Tensor, linears: list[nn.Module]) -> list[Tensor]:
    """As `products`, written out; the mask is the one that its operator draws."""
    adapted = [one for one in linears if isinstance(one, Linear)]
    share = adapted[0].share()
    downs = [one.lora_A["default"].weight.detach() for one in adapted]
    mask = own.lora_down(x.detach(), downs, share, True)[1] if share else 1.0
    made = []
    for one in linears:
        base = one.base_layer if isinstance(one, Linear) else one
        y = base(x)
        if isinstance(one, Linear):
            y = y + 2.0 * one.lora_B["default"](one.lora_A["default"](x * mask))
        made.append(y)
    return made


@pytest.mark.parametrize("adapted", ["qkv", "qv", "k", "v"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_group_is_its_layers_under_one_mask(adapted: str, dropout: float) -> None:
    linears, x = projections(dropout, adapted), torch.randn(2, 5, 64, dtype=torch.float64)
    for one, other in zip(swept(linears, x, products), swept(linears, x, by_hand), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_group_on_quantised_bases(kind: str) -> None:
    linears, x = projections(0.3, "qv", kind), torch.randn(2, 5, 64)
    for one, other in zip(swept(linears, x, products), swept(linears, x, by_hand), strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()


def test_a_group_under_autocast() -> None:
    linears = [one.float() for one in projections(0.0, "qv")]
    x = torch.randn(2, 5, 64)
    plain = swept(linears, x, products)
    with torch.autocast("cpu", torch.bfloat16):
        made = swept(linears, x, products)
    assert {one.dtype for one in made[:3]} == {torch.bfloat16}
    assert {one.dtype for one in made[3:]} == {torch.float32}
    for one, other in zip(made, plain, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_dropout_is_right_in_the_mean_and_off_outside_of_training() -> None:
    linears, x = projections(0.3), torch.randn(1, 2, 64, dtype=torch.float64)
    with torch.no_grad():
        draws = torch.stack([torch.cat(products(x, linears)) for _ in range(4000)])
        for one in linears:
            one.eval()
        plain = torch.cat(products(x, linears))
    within = 5 * draws.std(0) / len(draws) ** 0.5
    assert draws.std() > 0 and ((draws.mean(0) - plain).abs() <= within).all()


def test_what_is_unusual_goes_layer_by_layer() -> None:
    linears, x = projections(0.0), torch.randn(2, 5, 64, dtype=torch.float64)
    grouped = products(x, linears)
    one: Any = linears[1]
    one.enable_adapters(False)
    bare = products(x, linears)
    torch.testing.assert_close(bare[1], one.base_layer(x))
    torch.testing.assert_close([bare[0], bare[2]], [grouped[0], grouped[2]])
    one.enable_adapters(True)
    one.merge()
    torch.testing.assert_close(products(x, linears), grouped)


def test_a_merged_adapter_is_used_as_merged() -> None:
    model = filled(
        attach(
            whispers.model(whispers.config()),
            Adapter(4, 8, 0.0, range(2), range(2), tuple(MODULES)),
        )
    )
    join_attention(whisper_of(model))
    loss = TokenLoss(model.eval())
    with torch.no_grad():
        beside = loss(*batch())
        with merged(model):
            torch.testing.assert_close(loss(*batch()), beside)


@pytest.mark.parametrize("asked", [{"attention_mask": True}, {"output_attentions": True}])
def test_asked_for_more_attention_is_the_stock_one(asked: dict[str, Any]) -> None:
    whisper = whispers.model(whispers.config())
    whisper.set_attn_implementation("eager" if "output_attentions" in asked else "sdpa")
    attention, x = whisper.model.decoder.layers[0].self_attn, torch.randn(2, 5, 16)
    if "attention_mask" in asked:
        asked = {"attention_mask": torch.rand(2, 1, 5, 5) > 0.3}
    stock = attention(x, **asked)
    join_attention(whisper)
    assert type(attention) is Attention and isinstance(attention, WhisperAttention)
    for one, other in zip(attention(x, **asked), stock, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("tokens", [1, 9])
def test_whole_transcripts_decode_as_in_the_stock_decoder(tokens: int) -> None:
    whisper = whispers.model(whispers.config())
    ids, heard = torch.randint(1000, (3, tokens)), torch.randn(3, 1500, 16)
    with torch.no_grad():
        stock = whisper.model.decoder(
            input_ids=ids, encoder_hidden_states=heard, use_cache=False
        ).last_hidden_state
        assert torch.equal(decode(whisper.model.decoder, ids, heard), stock)
        join_attention(whisper)
        torch.testing.assert_close(decode(whisper_of(whisper).model.decoder, ids, heard), stock)
