"""AdaLoRA cuts ranks away for good, and what it leaves is ordinary LoRA."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import whispers
from peft import PeftModel
from test_standing import ADAPTER, WAYS, made, step

from peft_whisper.model.find import find_base
from peft_whisper.training import checkpoint
from peft_whisper.training.ranks import Ranks
from peft_whisper.training.standing import Standing
from peft_whisper.training.tally import Meter, Selection
from peft_whisper.training.updater import Updater

UPDATES = 10
RANK = 4


@pytest.fixture
def updater(monkeypatch) -> Updater:
    adapter = replace(ADAPTER, method="adalora", rank=RANK, dropout=0.0)
    monkeypatch.setitem(WAYS, "AdaLoRA", (adapter, torch.float32, "adamw", "fp32"))
    one = made("AdaLoRA")
    one.plan(UPDATES)
    return one


def directions(updater: Updater) -> list[int]:
    """How many each matrix has that are not zero."""
    lengths = [one for name, one in updater.masters.named.items() if ".lora_E." in name]
    return [int(one.count_nonzero()) for one in lengths]


def test_ranks_are_cut_to_the_budget_and_stay_cut(updater: Updater) -> None:
    matrices, counts = len(directions(updater)), []
    for update in range(1, UPDATES + 1):
        step(updater, update)
        counts.append(sum(directions(updater)))
    print(f"directions after each update, of {matrices} matrices: {counts}")
    assert counts[:2] == [6 * matrices] * 2  # KEEP_ALL of the run
    assert counts == sorted(counts, reverse=True)
    assert counts[6:] == [RANK * matrices] * 4  # from CUT_UNTIL on
    assert len(set(directions(updater))) > 1  # they went where they are worth most


def test_what_is_published_is_smaller_and_hears_the_same(updater: Updater, tmp_path: Path) -> None:
    for update in range(1, UPDATES + 1):
        step(updater, update)
    standing = Standing(UPDATES, due=True, best=Selection("mer", UPDATES, 0.5), meter=Meter(1))
    checkpoint.save_run(tmp_path, standing, updater, {})
    base = find_base(str(whispers.save_base(tmp_path / "base", ".en", 80)))
    checkpoint.publish(tmp_path, UPDATES, tmp_path / "adapter", base, {"method": "adalora"})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    kept = directions(updater)
    assert config["peft_type"] == "LORA"
    assert sorted(config["rank_pattern"].values()) == sorted(max(1, one) for one in kept)
    plain = PeftModel.from_pretrained(
        whispers.model(whispers.config()), str(tmp_path / "adapter")
    ).eval()
    held = sum(one.numel() for name, one in plain.named_parameters() if ".lora_" in name)
    trained = sum(one.numel() for one in updater.masters.fp32)
    print(f"{trained:,} weights trained, {held:,} published")
    assert held < 0.75 * trained
    fed = {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": torch.arange(4)[None]}
    with torch.no_grad():
        expected, found = updater.model.eval()(**fed).logits, plain(**fed).logits
        torch.testing.assert_close(expected, found, atol=1e-5, rtol=1e-4)
        with plain.disable_adapter():
            assert (plain(**fed).logits - found).abs().max() > 1e-4


def test_the_penalty_pulls_as_autograd_would(updater: Updater) -> None:
    """The gradient of the mean distance of A A' and B' B from 1, times its weight."""
    assert isinstance(updater.ranks, Ranks)
    sides = {n: one for n, one in updater.masters.named.items() if ".lora_E." not in n}
    far = sum(
        (w @ w.T - torch.eye(len(w))).norm()
        for w in (one if ".lora_A." in name else one.T for name, one in sides.items())
    )
    assert isinstance(far, torch.Tensor)
    expected = torch.autograd.grad(0.5 * far / len(sides), list(sides.values()))
    for one in sides.values():
        one.grad = torch.zeros_like(one)
    updater.ranks.pull()
    for one, gradient in zip(sides.values(), expected, strict=True):
        torch.testing.assert_close(one.grad, gradient)
