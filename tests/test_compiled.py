"""Layers compiled one by one: the same losses and gradients, few graphs, a plain refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import whispers
from test_train import REPOSITORY

from peft_whisper.model import compiled
from peft_whisper.model.adapters import MODULES, Adapter, attach
from peft_whisper.model.encoder import TokenLoss, encode

# (clips, positions, tokens): other clips, lengths and widths, and none of them 1
SHAPES = ((2, 64, 5), (3, 128, 7), (4, 192, 12), (2, 320, 3))
MOST_GRAPHS = 4  # of encoder and decoder layers, with and without something trained below


def adapted(own: bool) -> tuple[torch.nn.Module, TokenLoss]:
    """A tiny Whisper with an adapter whose B is not zero, so that all of it has gradients."""
    whisper = whispers.model(whispers.config())
    torch.manual_seed(1)
    rule = Adapter(4, 8, 0.0, range(2), range(2), tuple(MODULES))
    model = attach(whisper, rule, own=own)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return whisper, TokenLoss(model).train()


def step(model: TokenLoss, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Loss per token and gradient norm on random input of this shape."""
    clips, positions, width = shape
    draw = torch.Generator().manual_seed(positions)
    mel = torch.randn(clips, 80, 2 * positions, generator=draw)
    ids, targets = (torch.randint(50_000, (clips, width), generator=draw) for _ in range(2))
    loss = model(mel, ids, torch.arange(clips * width), targets.flatten()) / (clips * width)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    model.zero_grad()
    return loss.item(), norm.item()


def test_compiled_layers_give_the_same_losses_with_few_graphs() -> None:
    from torch._dynamo.utils import counters

    expected = [step(adapted(own=True)[1], shape) for shape in SHAPES]
    whisper, model = adapted(own=False)
    mel = torch.randn(2, 80, 128)
    decoded = encode(whisper.model.encoder.eval(), mel)
    compiled.compile_layers(whisper)
    before = counters["stats"]["unique_graphs"]
    model.train()
    found = [step(model, shape) for shape in SHAPES]
    graphs = counters["stats"]["unique_graphs"] - before
    print(f"{len(SHAPES)} shapes, 2 + 2 layers: {graphs} graphs")
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert 0 < graphs <= MOST_GRAPHS
    assert torch.equal(encode(whisper.model.encoder.eval(), mel), decoded)  # not compiled
    assert counters["stats"]["unique_graphs"] - before == graphs


def test_without_a_compiler_one_sentence_says_so(tmp_path: Path) -> None:
    source = (
        "import sys, torch\n"
        "from peft_whisper.errors import run\n"
        "from peft_whisper.model.compiled import prove_compiler\n"
        "run(lambda _words: prove_compiler(torch.device('cpu')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={
            **{name: value for name, value in os.environ.items() if name != "CXX"},
            "PATH": str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("training.compile: torch can't compile on this cpu (")
    assert done.stderr.count("\n") == 1
    assert "install it, or write training.compile: false" in done.stderr
