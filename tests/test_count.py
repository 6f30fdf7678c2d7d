"""What benchmarks/count.py counts: by hand on small things, by closed form on large ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_form import flops_per_clip
from counted_steps import Counted, blueprint, count, count_rival, shapes_of, total
from counting import Meter, Tally
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.nn import functional as F

from peft_whisper.memory.fake_cuda import fake_cuda
from peft_whisper.memory.recorder import Recorder
from peft_whisper.model.adapters import MODULES, Adapter
from peft_whisper.model.sizes import Blueprint, public_sizes
from peft_whisper.planning.selftest import small_sizes
from peft_whisper.planning.tracing import Shape
from peft_whisper.recipe import Recipe
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.training.updater import Updater

ROOT = Path(__file__).parent.parent
STEP = (Shape(2, 256, 24),)


def counted(work: Callable[[Tensor], Any], *shape: int) -> Tally:
    """What `work` does with an fp32 tensor on the card."""
    meter = Meter()
    with fake_cuda(flash=True), Recorder("cuda", {}):
        x = torch.zeros(shape or (8, 16), device="cuda", requires_grad=True)
        meter.watching(work)(x)
    return meter.tally


def sums(tally: Tally) -> tuple[int, int, int]:
    return tally.kernels.total(), tally.moved.total(), tally.flops.total()


def test_a_linear_layer_by_hand() -> None:
    """x (8, 16) through W (4, 16), back from ones: kernels, bytes of four to a number, FLOPs."""

    def work(x: Tensor) -> None:
        w = torch.empty(4, 16, device="cuda", requires_grad=True)
        b = torch.empty(4, device="cuda")
        F.linear(x, w, b).backward()

    forward = 4 + 8 * 16 + 4 * 16 + 8 * 4
    backward = 8 * 4 + (8 * 4 + 4 * 16 + 8 * 16) + (8 * 4 + 8 * 16 + 4 * 16)
    assert sums(counted(work)) == (4, 4 * (forward + backward), 3 * 2 * 8 * 16 * 4)


@pytest.mark.parametrize(
    ("work", "kernels", "numbers"),
    [
        (lambda x: x.t().reshape(128).unsqueeze(1), 1, 2 * 128),  # reshape must copy
        (lambda x: x.view(4, 32).t()[:3].detach().expand(2, 3, 4), 0, 0),
        (lambda x: torch.empty_like(x), 0, 0),
        (lambda x: torch.zeros_like(x), 1, 128),
        (lambda x: x.detach().add_(1), 1, 2 * 128),
        (lambda x: x.detach().copy_(torch.empty(16, device="cuda")), 1, 128 + 16),
        (lambda x: x + torch.empty(16, device="cuda").expand(8, 16), 1, 2 * 128 + 16),
        (lambda x: x.detach().zero_(), 1, 128),
        (lambda x: x[:, :4] * 2, 1, 2 * 32),
        (lambda x: torch.cat([x, x]), 1, 128 + 256),
        (lambda x: torch.mul(x.detach(), 2, out=x.detach()[:4].new_empty(8, 16)), 1, 2 * 128),
        (lambda x: torch._foreach_add_([x.detach(), x.detach()], 1.0), 1, 4 * 128),
    ],
)
def test_what_a_kernel_reads_and_writes(
    work: Callable[[Tensor], Any], kernels: int, numbers: int
) -> None:
    assert sums(counted(work))[:2] == (kernels, 4 * numbers)


def test_an_embedding_reads_the_rows_it_looks_up() -> None:
    def work(x: Tensor) -> None:
        rows = torch.empty(3, dtype=torch.int64, device="cuda")
        F.embedding(rows, x.detach())

    assert sums(counted(work, 50_000, 16)) == (1, 3 * 8 + 2 * 3 * 16 * 4, 0)


def test_lists_of_tensors_are_walked_in_few_kernels() -> None:
    """110 tensors to a kernel at most, and 320 chunks of 65,536 numbers."""

    def many(x: Tensor) -> None:
        torch._foreach_mul_([torch.empty(1, device="cuda") for _ in range(111)], 2.0)

    def large(x: Tensor) -> None:
        torch._foreach_mul_([x.detach()], 2.0)

    assert counted(many).kernels.total() == 2
    assert counted(large, 320 * 65_536).kernels.total() == 1
    assert counted(large, 320 * 65_536 + 1).kernels.total() == 2


def test_an_operator_of_our_own_is_counted_by_what_it_runs() -> None:
    library = torch.library.Library("counted_test", "DEF")
    library.define("sum_of_products(Tensor x, Tensor w) -> Tensor")
    library.impl("sum_of_products", lambda x, w: (x @ w).relu().sum(), "CUDA")
    library.impl("sum_of_products", lambda x, w: x.new_empty(()), "Meta")

    @torch.library.custom_op("counted_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return (x + x) * 1.0

    twice.register_fake(torch.empty_like)

    def work(x: Tensor) -> None:
        w = torch.empty(16, 4, device="cuda")
        torch.ops.counted_test.sum_of_products(x.detach(), w)
        twice(x.detach())

    product, relu, total_ = 8 * 16 + 16 * 4 + 8 * 4, 2 * 8 * 4, 8 * 4 + 1
    added, scaled = 2 * 128, 2 * 128
    moved = 4 * (product + relu + total_ + added + scaled)
    assert sums(counted(work)) == (5, moved, 2 * 8 * 16 * 4)


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x == 0).all()),
    "if": lambda x: 1 if x.sum() > 0 else 2,
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask written": lambda x: x.detach().index_put_((x > 0,), torch.zeros((), device="cuda")),
    "masked_select": lambda x: x.masked_select(x > 0),
    "cpu": lambda x: x.detach().cpu(),
    "to cpu": lambda x: x.detach().to("cpu"),
    "from cpu": lambda x: torch.zeros(4).to("cuda"),
    "from unpinned": lambda x: torch.zeros(4).to("cuda", non_blocking=True),
    "copied": lambda x: x.detach().copy_(torch.zeros(8, 16)),
    "made there": lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "equal": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("name", WAITING)
def test_the_host_waiting_is_counted(name: str) -> None:
    meter = Meter()
    with fake_cuda(flash=True):
        x = torch.zeros(8, 16, device="cuda", requires_grad=True)
        with suppress(
            DataDependentOutputException, DynamicOutputShapeException
        ):  # they have no values
            meter.watching(WAITING[name])(x)
    assert len(meter.tally.syncs) == 1, meter.tally.syncs
    assert "test_count.py" in meter.tally.syncs[0].where


def test_what_needs_no_wait_is_not() -> None:
    def work(x: Tensor) -> None:
        x = x[1:, torch.zeros(3, dtype=torch.int64, device="cuda")].to(torch.bfloat16)
        torch.zeros(4, device="cuda").fill_(x.shape[0] * 2.0)
        x.detach().to("cpu", non_blocking=True)
        torch.where(x > 0, x, 0.0).masked_fill(x > 1, 0.0).sum().backward()

    assert counted(work).syncs == []


class WaitsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * (2 if grads[0].sum().tolist() else 1)


def test_waiting_in_backward_is_counted_there() -> None:
    tally = counted(lambda x: WaitsInBackward.apply(x).sum().backward())
    assert [(sync.stage, sync.what) for sync in tally.syncs] == [("backward", "tolist")]


def recipe_of(adapter: dict[str, Any], **training: Any) -> Recipe:
    nowhere = {"manifest": "none.jsonl"}
    return Recipe.model_validate(
        {
            "name": "counted",
            "base": {"model": "small", "dtype": "bfloat16"},
            "data": {"train": nowhere, "validation": nowhere, "test": nowhere},
            "adapter": adapter,
            "training": {"updates": 9, "learning_rate": 1e-5, "precision": "bf16"} | training,
            "evaluation": {"every": 9},
        }
    )


LORA = {"rank": 8, "dropout": 0.1}


def small_step(recipe: Recipe, shapes: tuple[Shape, ...] = STEP) -> Counted:
    return count(recipe, Blueprint(small_sizes(layers=2)), shapes)


@pytest.mark.parametrize("recompute", ["none", "1/2"])
@pytest.mark.parametrize("adapter", [LORA, {"method": "none"}])
def test_a_micro_step_never_waits_and_an_update_once(
    adapter: dict[str, Any], recompute: str
) -> None:
    """The one wait of an update reads loss and gradient norm: a step must be finite to be made."""
    optimizer = {"optimizer": "adamw8bit"} if adapter is not LORA else {}
    found = small_step(recipe_of(adapter, recompute=recompute, **optimizer), STEP * 2)
    assert found.syncs("forward", "backward") == []
    assert [sync.what for sync in found.syncs("update")] == ["tolist"]


def test_a_step_that_asks_for_its_loss_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Updater._micro_step

    def curious(self: Updater, *args: Any) -> Tensor:
        loss = real(self, *args)
        if loss.item() < 0 or not loss:
            return loss
        return loss

    monkeypatch.setattr(Updater, "_micro_step", curious)
    found = small_step(recipe_of(LORA))
    assert len(found.syncs("forward", "backward")) == 2


def test_what_is_counted_is_what_the_tracer_counts() -> None:
    """FLOPs, by two ways: of single products here, of whole operators there."""
    from peft_whisper.planning.tracing import TrainingTrace, fake

    recipe = recipe_of(LORA, recompute="1/2")
    with fake("cuda"):
        trace = TrainingTrace(recipe, Blueprint(small_sizes(layers=2)), "cuda")
        trace.step(STEP)
    found = small_step(recipe)
    assert found.flops == trace.line.flops
    assert 0 < found.repeated == trace.line.repeated_flops


def test_decoder_only_never_walks_the_encoder_backward() -> None:
    everywhere = small_step(recipe_of(LORA))
    decoder = small_step(recipe_of(LORA | {"encoder_layers": "none"}))
    assert total(everywhere.tally.flops, "backward", part="encoder") > 0
    assert total(decoder.tally.flops, "backward", part="encoder") == 0
    assert total(decoder.tally.flops, "forward", part="encoder") > 0


# TFLOP a clip of Large V3 at 1500, 500 and 250 positions, some of them silence that no convolution
# hears, 64 labels; rank 32.
TABLE = [
    (None, [8.12, 2.66, 1.45]),
    ((("q", "v"), 32), [5.84, 1.84, 0.99]),
    ((tuple(MODULES), 32), [6.04, 1.91, 1.03]),
    ((tuple(MODULES), 0), [2.89, 1.03, 0.61]),
]


@pytest.mark.parametrize(("trained", "teraflops"), TABLE)
def test_the_closed_form(trained: tuple[tuple[str, ...], int] | None, teraflops: list) -> None:
    sizes = public_sizes("openai/whisper-large-v3")
    adapter = trained and Adapter(32, 64, 0.0, range(trained[1]), range(32), trained[0])
    found = [flops_per_clip(sizes, positions, 64, adapter) for positions in (1500, 500, 250)]
    assert [round(one / 1e12, 2) for one in found] == teraflops


@pytest.mark.parametrize("clips", [1, None])
def test_large_v3_keeps_to_its_bars(clips: int | None) -> None:
    """With 10 s clips, one at a time and as the recipe batches them; four layers stand for 32.

    What flash attention computes a second time is not in the closed form.
    """
    recipe = load_recipe(str(ROOT / "recipes/lora_a10.yaml"))
    shapes = shapes_of(recipe, 10.0, 64, clips)
    ours = count(recipe, blueprint(recipe, layers=4), shapes)
    rival = count_rival(recipe, blueprint(recipe, layers=4), shapes)
    found = {
        "FLOPs": ours.flops / ours.clips / ours.needed,
        "bytes": ours.moved() / rival.moved(),
        "kernels": ours.kernels() / rival.kernels(),
    }
    print({what: round(ratio, 3) for what, ratio in found.items()})
    assert 1 <= found["FLOPs"] <= 1.05
    assert found["bytes"] <= 0.5 and found["kernels"] <= 0.5
    assert ours.syncs("forward", "backward") == []


def test_the_usual_stack_takes_more() -> None:
    recipe = recipe_of(LORA)
    ours = small_step(recipe)
    rival = count_rival(recipe, Blueprint(small_sizes(layers=2)), STEP)
    assert rival.shapes[0].positions == 1500
    assert rival.flops > ours.flops and rival.moved() > ours.moved() and rival.saved > ours.saved
    assert len(rival.syncs("forward", "backward")) == 5  # 2 copies, packed?, isnan, isinf


@pytest.mark.parametrize(
    "wrong", [["--clips", "0"], ["training.recompute=auto"], ["base.quantize=int8", "--rival"]]
)
def test_a_wrong_argument_is_one_sentence(wrong: list[str]) -> None:
    command = [sys.executable, "benchmarks/count.py", "recipes/lora_a10.yaml", *wrong]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
