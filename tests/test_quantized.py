"""Bases in 8 and 4 bits: bitsandbytes' own numbers, nothing kept, and whole runs on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import test_train
import torch
import whispers
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BitsAndBytesConfig, GenerationConfig, WhisperForConditionalGeneration

from peft_whisper import merge
from peft_whisper.errors import RecipeError
from peft_whisper.files import seal
from peft_whisper.model.adapters import (
    Adapter,
    FirstBackwardCheck,
    attach,
    expected_parameters,
    merged,
    trainable,
    trainable_count,
)
from peft_whisper.model.base import Base
from peft_whisper.model.encoder import TokenLoss, whisper_of
from peft_whisper.model.find import find_base
from peft_whisper.model.quantized import (
    FrozenLinear,
    empty_quantized,
    is_quantized,
    parameter_count,
    quantize,
)
from peft_whisper.model.recompute import recompute
from peft_whisper.model.trained import load_tuned
from peft_whisper.training import checkpoint
from peft_whisper.training.optim import Masters

KINDS = ("int8", "nf4")
DTYPES = ("float32", "bfloat16", "float16")
EVERYWHERE = Adapter(4, 8, 0.0, range(2), range(2), ("q", "k", "v", "out", "fc1", "fc2"))


def save_wide(folder: Path) -> Path:
    """A base that is 64 wide, as one block of nf4 is."""
    whispers.save_base(folder, "multilingual", 80)
    sizes = whispers.config(80, whispers.VOCABULARIES["multilingual"])
    sizes.d_model, sizes.encoder_ffn_dim, sizes.decoder_ffn_dim = 64, 128, 128
    made = whispers.model(sizes)
    made.generation_config = GenerationConfig.from_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    return find_base(str(save_wide(tmp_path_factory.mktemp("wide") / "base")))


def bitsandbytes_own(base: Base, kind: str, dtype: str) -> WhisperForConditionalGeneration:
    """The same base, loaded and run by transformers and bitsandbytes alone."""
    kinds = {
        "int8": {"load_in_8bit": True},
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": getattr(torch, dtype),
        },
    }
    config = BitsAndBytesConfig(llm_int8_skip_modules=["proj_out"], **kinds[kind])
    return WhisperForConditionalGeneration.from_pretrained(
        base.folder,
        dtype=getattr(torch, dtype),
        quantization_config=config,
        device_map={"": "cpu"},
        attn_implementation="sdpa",
    )


def held(layer: nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """What a bitsandbytes layer holds, by our names; nf4's 16 levels are in its kernels too."""
    if kind == "int8":
        return {"weight": layer.weight.CB, "scale": layer.weight.SCB}
    state = layer.weight.quant_state
    return {
        "weight": layer.weight.data,
        "scale": state.absmax,
        "nested_scale": state.state2.absmax,
        "nested_levels": state.state2.code,
        "offset": state.offset,
    }


def batch(whisper: WhisperForConditionalGeneration) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(7)
    mel = torch.randn(2, whisper.config.num_mel_bins, 512).to(whisper.dtype)
    return mel, torch.randint(100, (2, 5)), torch.arange(10), torch.randint(100, (10,))


@torch.inference_mode()
def logits(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(8)
    mel, fed = torch.randn(1, 80, 3000), torch.randint(1000, (1, 6))
    return model(input_features=mel.to(model.dtype), decoder_input_ids=fed).logits.float()


def adapted(whisper: WhisperForConditionalGeneration, adapter: Adapter = EVERYWHERE):
    """LoRA whose B matrices are not 0, the same for every base of these sizes."""
    torch.manual_seed(3)
    model = attach(whisper, adapter)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_those_of_a_bitsandbytes_config(base: Base, kind: str, dtype: str) -> None:
    ours, theirs = base.load(dtype, kind), bitsandbytes_own(base, kind, dtype)
    layers = {n: m for n, m in ours.named_modules() if isinstance(m, FrozenLinear)}
    assert len(layers) == 2 * 6 + 2 * 10
    for name, layer in layers.items():
        found = {n: p for n, p in layer.named_parameters() if n != "bias"}
        expected = held(theirs.get_submodule(name), kind)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[n], expected[n]) for n in expected)
        assert layer.bias is None or layer.bias.dtype == ours.dtype
    others = [n for n, p in ours.named_parameters() if n.rpartition(".")[0] not in layers]
    assert {ours.get_parameter(n).dtype for n in others} == {getattr(torch, dtype)}
    assert ours.proj_out.weight is ours.model.decoder.embed_tokens.weight
    # What bitsandbytes gives in training; in decoding its int8 rounds the inputs as well.
    assert torch.equal(logits(ours), logits(theirs.train()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_one_has_the_tensors_of_a_loaded_one(base: Base, kind: str) -> None:
    """The memory tracer builds on it: name, type and bytes of every storage."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def storages(model: nn.Module) -> dict[str, tuple[torch.dtype, int]]:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: (t.dtype, t.untyped_storage().nbytes()) for name, t in tensors.items()}

    loaded = base.load("bfloat16", kind)
    with FakeTensorMode():
        empty = WhisperForConditionalGeneration._from_config(base.config(), dtype=torch.bfloat16)
        empty.requires_grad_(False)
        empty_quantized(empty, kind)
        assert storages(empty) == storages(loaded)
        # Backward reaches the input through every kind of layer.
        mel = torch.empty(2, 80, 512, dtype=torch.bfloat16, requires_grad=True)
        fed, index = torch.zeros(2, 5, dtype=torch.int64), torch.arange(10)
        TokenLoss(empty).train()(mel, fed, index, torch.zeros_like(index)).backward()
        assert mel.grad is not None and mel.grad.shape == mel.shape


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_counts_are_those_of_the_model(base: Base, kind: str | None) -> None:
    whisper, plain = base.load("float32", kind), base.load("float32")
    assert is_quantized(whisper) == (kind is not None)
    assert parameter_count(whisper) == sum(p.numel() for p in plain.parameters())
    model = attach(whisper, EVERYWHERE)
    assert trainable_count(model) == expected_parameters(plain, EVERYWHERE) == 18_432
    assert all(p.dtype == torch.float32 for p in trainable(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_bitsandbytes_and_peft(base: Base, kind: str) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt

    whisper = base.load("float32", kind)
    ours = adapted(whisper).train()
    check = FirstBackwardCheck(whisper, EVERYWHERE)
    loss = TokenLoss(ours)(*batch(whisper))
    loss.backward()
    check.finish(trainable(ours))

    config = LoraConfig(r=4, lora_alpha=8, target_modules=EVERYWHERE.pattern())
    theirs = get_peft_model(bitsandbytes_own(base, kind, "float32"), config).train()
    assert any(isinstance(m, Linear4bit | Linear8bitLt) for m in theirs.modules())
    theirs.load_state_dict({n: p.data for n, p in trainable(ours).items()}, strict=False)
    expected = TokenLoss(theirs)(*batch(whisper))
    expected.backward()
    assert torch.allclose(loss, expected)
    for name, parameter in trainable(theirs).items():
        torch.testing.assert_close(trainable(ours)[name].grad, parameter.grad)


class Births(TorchDispatchMode):
    """Remembers the storage of every result but views of `model`'s weights, without keeping it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.born: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.weights:
                    self.born[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive(self) -> int:
        """Bytes of what still lives."""
        return sum(size for reference, size in self.born.values() if not reference.expired())


def kept(model: nn.Module, choice: str) -> tuple[int, list[torch.Tensor]]:
    """Bytes that forward keeps for backward, and the gradients."""
    whisper = whisper_of(model)
    recompute(whisper, choice)
    fed = batch(whisper)
    with Births(model) as births:
        loss = TokenLoss(model)(*fed)
        alive = births.alive()
    loss.backward()
    return alive, [p.grad for p in trainable(model).values()]


def test_checkpointing_keeps_no_more_than_on_a_plain_base(base: Base) -> None:
    from peft import LoraConfig, get_peft_model

    plain = {c: kept(adapted(base.load("float32")).train(), c)[0] for c in ("none", "all")}
    for kind in KINDS:
        found = {c: kept(adapted(base.load("float32", kind)).train(), c) for c in plain}
        assert {choice: alive for choice, (alive, _) in found.items()} == plain
        for one, other in zip(found["none"][1], found["all"][1], strict=True):
            torch.testing.assert_close(one, other)
        cheap, gradients = kept(adapted(base.load("float32", kind)).train(), "cheap")
        assert plain["all"] < cheap < plain["none"]
        for one, other in zip(found["none"][1], gradients, strict=True):
            torch.testing.assert_close(one, other)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=EVERYWHERE.pattern())
    theirs = get_peft_model(bitsandbytes_own(base, "int8", "float32"), config).train()
    their_own = kept(theirs, "all")[0]
    assert their_own > 2 * plain["all"]  # else bitsandbytes has learned it, and we can go
    print(f"kept with recompute all: ours {plain['all']:,}, bitsandbytes int8 {their_own:,} bytes")


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_decides_the_type_and_leaves_the_biases(kind: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 64).requires_grad_(False)
    layer = FrozenLinear(linear, kind, torch.device("cpu")).fill(linear.weight)
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert layer.bias.dtype == torch.float32
    assert torch.allclose(out.float(), layer(x), atol=0.05)
    assert torch.allclose(layer.dequantized(torch.float32), linear.weight, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_it_is_the_same_and_merges_into_the_plain_base(
    base: Base, kind: str, dtype: str, tmp_path: Path
) -> None:
    model = adapted(base.load(dtype, kind))
    masters = Masters(trainable(model), getattr(torch, dtype))
    weights = checkpoint.folder_of(tmp_path, 1)
    checkpoint.save_weights(weights, model, masters)
    seal(weights, {})
    facts = {"method": "lora", "update": 1, "quantize": kind}
    checkpoint.publish(tmp_path, 1, tmp_path / "adapter", base, facts)
    again = load_tuned(base.load(dtype, kind), base.fingerprint, tmp_path / "adapter").eval()
    with masters.exposed(), merged(model):  # as validation decodes
        trained = logits(model)
    if dtype == "float32":
        assert torch.equal(logits(again), trained)
    else:  # peft's layer and ours round once more or less
        assert torch.allclose(logits(again), trained, atol=0.1)

    into = tmp_path / "merged"
    assert merge.main([str(tmp_path / "adapter"), "--into", str(into)]) == 0
    whole = WhisperForConditionalGeneration.from_pretrained(into).eval()
    assert whole.dtype == torch.float32
    assert json.loads((into / "peft_whisper.json").read_text())["quantize"] == kind
    exact = load_tuned(base.load("float32"), base.fingerprint, tmp_path / "adapter").eval()
    assert torch.allclose(logits(whole), logits(exact), atol=1e-3)
    changed = _distance(logits(whole), logits(base.load("float32")))
    quantised = _distance(logits(whole), trained)
    print(f"{kind} {dtype}: the adapter moves logits by {changed:.3f}, quantising {quantised:.3f}")
    assert quantised < {"int8": 0.05, "nf4": 0.6}[kind] * changed


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def test_a_device_that_cannot_is_told_in_one_sentence(base: Base) -> None:
    for kind in KINDS:
        with pytest.raises(RecipeError, match=r"^base\.quantize: .* on mps .*remove") as caught:
            quantize(base.load("float32"), kind, "mps")
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = test_train.make_place(tmp_path_factory.mktemp("place"))
    save_wide(folder / "base")
    return folder


RUNS = [
    ("int8", "adamw", "fp32", ()),
    ("int8", "adamw8bit", "bf16", ("base.dtype=bfloat16", "training.recompute=cheap")),
    ("nf4", "adamw", "bf16", ("training.recompute=all",)),
    ("nf4", "adamw8bit", "bf16", ("base.dtype=bfloat16",)),
]


@pytest.mark.parametrize(("kind", "optimizer", "precision", "more"), RUNS)
def test_a_whole_run_learns_and_is_scored_again(
    place: Path, kind: str, optimizer: str, precision: str, more: tuple[str, ...]
) -> None:
    name = f"{kind}_{optimizer}"
    changes = (f"base.quantize={kind}", f"training.optimizer={optimizer}", f"name={name}")
    steps = ("training.updates=4", "training.learning_rate=1e-2", "evaluation.every=4")
    arguments = (*changes, *steps, f"training.precision={precision}", *more)
    done = test_train.train(place, "tiny.yaml", *arguments)
    assert "warn" not in (done.stdout + done.stderr).lower()
    run = place / "outputs" / name
    losses = test_train.losses(run)
    print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.3
    facts = json.loads((run / "adapter" / "peft_whisper.json").read_text())
    assert facts["quantize"] == kind
    assert f"| base held in | {kind}" in (run / "README.md").read_text()
    recorded = json.loads((run / "environment.json").read_text())
    plain = find_base(str(place / "base")).load("float32")
    assert recorded["base"]["parameters"] == sum(p.numel() for p in plain.parameters())


def test_evaluate_repeats_a_quantised_runs_figures(place: Path) -> None:
    """Of the run above; it is made here where that test was left out."""
    run = place / "outputs" / "nf4_adamw8bit"
    if not run.exists():
        test_a_whole_run_learns_and_is_scored_again(place, *RUNS[-1])
    before = json.loads((run / "metrics.json").read_text())
    test_train.command(place, "peft_whisper.evaluate", str(run.relative_to(place)))
    assert json.loads((run / "metrics.json").read_text()) == before


def test_a_full_fine_tune_of_a_quantised_base_is_refused(place: Path) -> None:
    arguments = ("name=full", "adapter={method: none}", "base.quantize=nf4")
    refused = test_train.train(place, "tiny.yaml", *arguments, expect=2)
    assert "base.quantize" in refused.stderr
