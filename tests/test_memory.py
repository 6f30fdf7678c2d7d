"""The tracer: a card that is not there, storages from birth to death, and the real allocator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import whispers
from torch import nn
from torch.nn import functional as F

from peft_whisper.memory.account import excerpt, find_peak, twice
from peft_whisper.memory.fake_cuda import fake_cpu, fake_cuda
from peft_whisper.memory.recorder import Recorder, Timeline
from peft_whisper.model.decoder import Vocabulary

ROOT = Path(__file__).parent.parent


def test_traces_equal_the_allocators_own_log() -> None:
    """Six of `make bench-memory`: LoRA, int8, attention in tiles, kept encoder outputs."""
    command = [sys.executable, "benchmarks/memory.py", "2", "19", "22", "23", "24", "25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "largest difference of 6 combinations" in done.stdout


def network(device: str) -> tuple[nn.Module, torch.Tensor]:
    with torch.device(device):
        made = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64))
        return made, torch.zeros(512, 64)


def test_backward_runs_on_a_card_that_is_not_there() -> None:
    with fake_cuda(flash=True):
        made, x = network("cuda")
        made(x).sum().backward()
        gradients = [p.grad for p in made.parameters()]
        assert all(g is not None and g.device.type == "cuda" for g in gradients)
        assert made.to("cuda")[0].weight.device == torch.device("cuda", 0)
    assert not torch.cuda.is_initialized()


def test_nothing_of_it_is_left_behind() -> None:
    before = nn.Module._apply, torch.Tensor._make_subclass, torch.clear_autocast_cache
    with fake_cuda(flash=True):
        pass
    with fake_cpu():
        pass
    assert before == (nn.Module._apply, torch.Tensor._make_subclass, torch.clear_autocast_cache)
    assert type(torch.zeros(2)) is torch.Tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_a_card_does(dtype: torch.dtype) -> None:
    with fake_cuda(flash=True), torch.autocast("cuda", dtype):
        made, x = network("cuda")
        hidden = made[0](x)
        assert hidden.dtype == dtype
        assert made[1](hidden).dtype == dtype
        assert made[3](hidden[:, :64]).dtype == torch.float32
        assert torch.softmax(hidden, -1).dtype == torch.float32


@pytest.mark.parametrize(
    ("flash", "dtype", "mask", "kernel"),
    [
        (True, torch.bfloat16, False, "flash"),
        (False, torch.float16, False, "efficient"),
        (True, torch.float32, False, "efficient"),
        (True, torch.bfloat16, True, "efficient"),
    ],
)
def test_the_attention_kernel_is_the_cards(flash, dtype, mask, kernel) -> None:
    with fake_cuda(flash):
        recorder = Recorder("cuda", {})
        q = torch.zeros(1, 2, 64, 64, dtype=dtype, device="cuda", requires_grad=True)
        masked = torch.zeros(1, 1, 64, 64, dtype=dtype, device="cuda") if mask else None
        recorder.phase("forward")
        with recorder:
            F.scaled_dot_product_attention(q, q, q, attn_mask=masked).sum().backward()
    assert any(f"{kernel}_attention" in name for name in recorder.line.made_by)
    assert any("backward" in name and "scratch" in name for name in recorder.line.made_by)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_traced_step_knows_its_parts(device: str) -> None:
    with fake_cuda(True) if device == "cuda" else fake_cpu():
        recorder = Recorder(device, {})
        with recorder:
            recorder.phase("loading")
            made, x = network(device)
            recorder.label("weights", made.parameters())
            recorder.phase("forward")
            out = made(x).sum()
            recorder.phase("backward")
            out.backward()
            recorder.label("gradients", [p.grad for p in made.parameters()])
            del out, x
    peak = find_peak(recorder.line, round_to=1)
    weights = sum(p.numel() * 4 for p in made.parameters())
    assert peak.parts["weights"] == weights
    assert peak.phase == "backward"
    assert peak.parts["activations"] > 512 * 256 * 4  # what GELU and the second layer keep
    assert sum(peak.parts.values()) == peak.size
    assert recorder.line.flops == 2 * 512 * 64 * 256 * 5  # no grad for x


@pytest.mark.parametrize("factors", [(2, 2.0), (2.0, 2), (True, 2.0)])
def test_equal_numbers_of_different_types_give_different_tensors(factors) -> None:
    real = [(torch.zeros(4, dtype=torch.int64) * factor).dtype for factor in factors]
    with fake_cuda(True):
        whole = torch.zeros(4, dtype=torch.int64, device="cuda")
        assert [(whole * factor).dtype for factor in factors] == real


def test_gradients_of_one_value_are_summed_in_place() -> None:
    """As without a mode: else a full fine-tune would seem 9 % larger than it is."""
    with fake_cpu():
        recorder = Recorder("cpu", {})
        w = torch.zeros(1000, 1000, requires_grad=True)
        x = torch.zeros(1, 1000)
        recorder.phase("backward")
        with recorder:
            ((x @ w).sum() + (x @ (w * 2)).sum()).backward()
    assert find_peak(recorder.line, 1).size < 3.1 * w.numel() * 4


def line(events: list[int], sizes: list[int], phases: list[tuple[int, str]]) -> Timeline:
    return Timeline(events, sizes, [f"op{n}" for n in range(len(sizes))], phases=phases)


def test_a_step_happens_twice_but_what_stays_is_made_once() -> None:
    made = line([0, 1, 2, ~1], [10, 20, 30], [(0, "loading"), (1, "forward")])
    assert twice(made, 1) == [0, 1, 2, ~1, 1, ~1]


def test_an_excerpt_numbers_on_and_leaves_foreign_deaths_out() -> None:
    made = line([0, 1, ~5, 7, ~1, ~7], list(range(10)), [(0, "loading"), (2, "forward"), (6, "x")])
    made.parts = {0: "weights", 7: "gradients", 5: "weights"}
    found = excerpt(made, 2)
    assert found.events == [0, 1, 2, ~1, ~2]
    assert found.sizes == [0, 1, 7]
    assert found.parts == {0: "weights", 2: "gradients"}
    assert found.phases == [(0, "loading"), (2, "forward"), (5, "x")]


def test_what_forward_leaves_is_an_activation_and_the_rest_passes() -> None:
    made = line(
        [0, 1, 2, ~2, 3, ~3, ~1],
        [8, 100, 50, 60],
        [(0, "loading"), (1, "forward"), (4, "backward")],
    )
    made.parts = {0: "weights"}
    peak = find_peak(made, 1)
    assert (peak.size, peak.phase) == (168, "backward")
    assert peak.parts["activations"] == 100
    assert peak.parts["temporaries"] == 60


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this build")
def test_decoding_in_fp32_on_a_cpu_can_be_traced() -> None:
    """There the vocabulary is packed for oneDNN, in an operator that torch can't fake by itself."""
    with fake_cpu(), torch.inference_mode():
        model = whispers.model(whispers.config())
        vocabulary = Vocabulary(model)
        logits = vocabulary(torch.randn(3, whispers.config().d_model))
    assert vocabulary.packed is not None
    assert vocabulary.packed.nbytes == model.proj_out.weight.nbytes
    assert logits.shape == (3, whispers.config().vocab_size)
