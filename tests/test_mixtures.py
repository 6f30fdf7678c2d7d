"""Several adapters by weight, one at less strength, other types, and the sweep over strengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whispers
from safetensors.torch import load_file

from peft_whisper import merge
from peft_whisper.errors import DataError, RecipeError, StateError
from peft_whisper.files import seal
from peft_whisper.model.adapters import Adapter, attach, trainable
from peft_whisper.model.base import Base
from peft_whisper.model.find import find_base
from peft_whisper.training import checkpoint
from peft_whisper.training.optim import Masters

LAYER = "model.decoder.layers.1.fc2.weight"


@pytest.fixture
def base(tmp_path) -> Base:
    return find_base(str(whispers.save_base(tmp_path / "base", ".en", 80)))


def adapter(base: Base, folder: Path, seed: int, rank: int = 4, method: str = "lora") -> str:
    """An adapter of `base` with random weights that matter, as a run would publish it."""
    torch.manual_seed(seed)
    chosen = Adapter(rank, 2 * rank, 0.0, range(2), range(2), ("q", "fc2"), method=method)
    model = attach(base.load("float32"), chosen)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    saved = checkpoint.folder_of(folder / "checkpoints", 1)
    checkpoint.save_weights(saved, model, Masters(trainable(model), torch.float32))
    seal(saved, {})
    checkpoint.publish(folder / "checkpoints", 1, folder / "adapter", base, {"method": method})
    return str(folder / "adapter")


def merged(into: Path, *words: str) -> dict[str, torch.Tensor]:
    assert merge.main([*words, "--into", str(into)]) == 0
    return load_file(into / "model.safetensors")


def test_a_strength_lies_on_the_line_from_base_to_adapter(base, tmp_path) -> None:
    one = adapter(base, tmp_path / "one", 1)
    whole, half, none = (
        merged(tmp_path / f"at{strength}", one, "--strength", strength)
        for strength in ("1", "0.5", "0")
    )
    start = load_file(base.folder / "model.safetensors")
    assert torch.equal(none[LAYER], start[LAYER])
    assert float((whole[LAYER] - start[LAYER]).abs().max()) > 0.1
    assert torch.allclose(half[LAYER], (whole[LAYER] + start[LAYER]) / 2, atol=1e-5)
    facts = json.loads((tmp_path / "at0.5" / "peft_whisper.json").read_text())
    assert (facts["method"], facts["strength"]) == ("merged", 0.5)


def test_linear_is_the_weighted_sum_of_what_adapters_of_any_rank_add(base, tmp_path) -> None:
    start = load_file(base.folder / "model.safetensors")[LAYER]
    folders = [adapter(base, tmp_path / "a", 1), adapter(base, tmp_path / "b", 2, rank=6)]
    a, b = (merged(tmp_path / f"m{i}", one)[LAYER] for i, one in enumerate(folders))
    both = merged(tmp_path / "both", *folders, "--weights", "0.7", "-0.3")[LAYER]
    assert torch.allclose(both - start, 0.7 * (a - start) - 0.3 * (b - start), atol=1e-5)
    equal = merged(tmp_path / "equal", *folders)[LAYER]
    assert torch.allclose(equal - start, ((a - start) + (b - start)) / 2, atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_pefts_other_methods_combine_and_repeat(base, tmp_path, method) -> None:
    folders = [adapter(base, tmp_path / "a", 1), adapter(base, tmp_path / "b", 2)]
    first, again = (
        merged(tmp_path / name, *folders, "--method", method)[LAYER] for name in ("m", "n")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, load_file(base.folder / "model.safetensors")[LAYER])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_load_as_such_with_everything_beside_them(base, tmp_path, dtype) -> None:
    one = adapter(base, tmp_path / "one", 1)
    held = merged(tmp_path / "m", one, "--dtype", dtype)
    assert {tensor.dtype for tensor in held.values()} == {getattr(torch, dtype)}
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names >= {"tokenizer.json", "preprocessor_config.json", "generation_config.json"}
    told = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert told["suppress_tokens"] == [1, 2, 7]
    assert find_base(str(tmp_path / "m")).load("float32").dtype == torch.float32


def refused(tmp_path: Path, kind: type, match: str, *words: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        merge.main([*words, "--into", str(tmp_path / "m")])
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_can_not_be_combined_is_told_and_leaves_nothing(base, tmp_path) -> None:
    a, b = adapter(base, tmp_path / "a", 1), adapter(base, tmp_path / "b", 2, rank=6)
    refused(tmp_path, StateError, "can't be combined by ties", a, b, "--method", "ties")
    refused(tmp_path, RecipeError, "--weights: 1 for 2 adapters", a, b, "--weights", "1")
    refused(tmp_path, RecipeError, "--strength: 3", a, "--strength", "3")
    refused(tmp_path, RecipeError, "--density: 0", a, b, "--density", "0")
    other = find_base(str(whispers.save_base(tmp_path / "other", ".en", 80, seed=2)))
    foreign = adapter(other, tmp_path / "foreign", 3)
    refused(tmp_path, StateError, "Equal shapes do not make it fit", a, foreign)
    dora = adapter(base, tmp_path / "dora", 1, method="dora")
    refused(tmp_path, StateError, "trained by dora", dora, "--strength", "0.5")
    refused(tmp_path, StateError, "trained by dora", a, dora)
    (tmp_path / "empty").mkdir()
    refused(tmp_path, StateError, r"holds no peft_whisper\.json", str(tmp_path / "empty"))


def test_the_sweep_scores_both_kinds_of_speech_and_draws_them(base, tmp_path, capsys) -> None:
    for name in ("tuned", "general"):
        (tmp_path / name).mkdir()
        noise = np.random.default_rng(len(name)).normal(0, 0.1, 16_000)
        soundfile.write(tmp_path / name / "a.wav", noise, 16_000)
        row = '{"audio": "a.wav", "text": "good morning"}\n'
        (tmp_path / name / "clips.jsonl").write_text(row)
    one = adapter(base, tmp_path / "one", 1)
    words = [one, "--sweep", "0", "1", "--speech", str(tmp_path / "tuned" / "clips.jsonl")]
    refused(tmp_path, RecipeError, "--general", *words)
    nowhere = ("--general", str(tmp_path / "nowhere.jsonl"))
    refused(tmp_path, DataError, "nowhere", *words, *nowhere)
    general = ("--general", str(tmp_path / "general" / "clips.jsonl"))
    assert merge.main([*words, *general, "--into", str(tmp_path / "s")]) == 0
    rows = json.loads((tmp_path / "s" / "strengths.json").read_text())["rows"]
    assert [row["strength"] for row in rows] == [0, 1]
    assert (tmp_path / "s" / "strengths.png").read_bytes().startswith(b"\x89PNG")
    assert "the mean of both is lowest at" in capsys.readouterr().out
