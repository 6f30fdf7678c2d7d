"""bf16 weights trained themselves: what fp32 masters would come to, bit for bit, and resumable."""

from __future__ import annotations

import io
from collections.abc import Iterator

import bitsandbytes as bnb
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from peft_whisper.training.optim import Masters, build_optimizer
from peft_whisper.training.split import SplitAdamW8bit, join, split


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """bitsandbytes' CPU kernels wait for one another, for ages where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def halves(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    high = torch.empty_like(exact, dtype=torch.bfloat16)
    low = torch.empty_like(exact, dtype=torch.int16)
    split(exact.clone(), high, low)
    return high, low


def from_bits(*bits: int) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)


def test_halves_join_to_the_same_32_bits() -> None:
    """Numbers of all sizes and signs, denormals, the largest, zeros and infinities."""
    torch.manual_seed(0)
    every = torch.randint(-(2**31), 2**31, (1_000_000,)).to(torch.int32).view(torch.float32)
    edges = from_bits(0, -(2**31), 1, 0x7F7FFFFF, -0x00800001, 0x7F800000, -0x00800000, 0x3F808000)
    exact = torch.cat([every[~every.isnan()], edges])
    assert torch.equal(join(*halves(exact)).view(torch.int32), exact.view(torch.int32))


def test_the_upper_half_is_the_nearest_bf16() -> None:
    torch.manual_seed(0)
    exact = torch.randn(1_000_000) * 10 ** torch.empty(1_000_000).uniform_(-38, 38)
    high, low = halves(exact)
    tie = low == -32_768  # halfway between two: either is nearest
    assert torch.equal(high[~tie], exact.bfloat16()[~tie])
    assert 0 < tie.sum() < 100


def test_every_number_that_bf16_has_stays_itself() -> None:
    """All 65,536 patterns, of which 254 are NaN and stay NaN."""
    every = torch.arange(-32_768, 32_768).to(torch.int16)
    exact = every.view(torch.bfloat16).float()
    high, low = halves(exact)
    numbers = ~exact.isnan()
    assert numbers.sum() == 65_536 - 254
    assert torch.equal(high[numbers].view(torch.int16), every[numbers])
    assert (low == 0).all()
    assert high[~numbers].isnan().all()


def test_nan_stays_nan_whatever_its_bits() -> None:
    """CUDA's own is 0x7fffffff: rounded up by its bits, it would become -0 and train on."""
    assert halves(from_bits(0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000))[0].isnan().all()


SHAPES = (64, 80), (80, 64), (5120,), (64,)


def weights_of(matrices: torch.dtype) -> list[Parameter]:
    draw = torch.Generator().manual_seed(0)
    made = [(0.02 * torch.randn(shape, generator=draw)).bfloat16() for shape in SHAPES]
    return [Parameter(p.to(matrices if p.ndim >= 2 else torch.float32)) for p in made]


def train(optimizer: torch.optim.Optimizer, weights: list[Parameter], steps: range) -> None:
    """Steps along gradients (bf16 numbers) that depend on the number of the step alone."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draw).bfloat16().to(weight.dtype)
        optimizer.step()


def test_bf16_follows_fp32_bit_for_bit() -> None:
    """Also on "ranks" whose dropout has other random numbers: nothing here is random."""
    masters = weights_of(torch.float32)
    train(bnb.optim.AdamW8bit(masters, lr=1e-5, weight_decay=0.1), masters, range(200))
    for rank in range(2):
        torch.manual_seed(rank * 500_009)
        weights = weights_of(torch.bfloat16)
        optimizer = SplitAdamW8bit(weights, lr=1e-5, weight_decay=0.1)
        train(optimizer, weights, range(200))
        for weight, master in zip(weights, masters, strict=True):
            assert weight.dtype == (torch.bfloat16 if weight.ndim >= 2 else torch.float32)
            low = optimizer.state[weight].get("low")
            exact = weight if low is None else join(weight.detach(), low)
            assert torch.equal(exact, master)


def test_small_updates_add_up_where_nearest_rounding_stands_still() -> None:
    """2,000 updates of 1e-5 on weights of 0.02, mostly in one direction each."""
    torch.manual_seed(0)
    start = (0.02 * torch.randn(64, 64)).bfloat16()
    direction = torch.randn(64, 64)

    def moved(optimizer_of: type[bnb.optim.AdamW8bit], dtype: torch.dtype) -> float:
        weight = Parameter(start.to(dtype, copy=True))
        optimizer = optimizer_of([weight], lr=1e-5, weight_decay=0.0)
        draw = torch.Generator().manual_seed(1)
        for _ in range(2000):
            weight.grad = (direction + torch.randn(64, 64, generator=draw)).to(dtype)
            optimizer.step()
        return float(((start - weight.detach().float()) * direction.sign()).mean())

    exact = moved(bnb.optim.AdamW8bit, torch.float32)
    found = moved(SplitAdamW8bit, torch.bfloat16) / exact
    nearest = moved(bnb.optim.AdamW8bit, torch.bfloat16) / exact
    print(f"2,000 updates of 1e-5, as a share of fp32's way: {found:.2%}, nearest {nearest:.2%}")
    assert found == pytest.approx(1, abs=0.005)
    assert nearest < 0.25


def test_a_regression_reaches_the_loss_of_fp32() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    y = x @ torch.randn(64, 64) * 0.1 + 0.1 * torch.randn(256, 64)
    start = (0.02 * torch.randn(64, 64)).bfloat16()

    def fitted(optimizer_of: type[torch.optim.Optimizer], dtype: torch.dtype) -> float:
        weight = Parameter(start.to(dtype, copy=True))
        optimizer = optimizer_of([weight], lr=3e-3, weight_decay=0.0)  # type: ignore[call-arg]
        for step in range(400):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 400)
            optimizer.zero_grad()
            loss = (x @ weight.float() - y).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    exact = fitted(torch.optim.AdamW, torch.float32)
    found = fitted(SplitAdamW8bit, torch.bfloat16)
    print(f"regression: fp32 AdamW {exact:.5f}, bf16 weights and 8-bit moments {found:.5f}")
    assert found == pytest.approx(exact, rel=0.02)


def test_gradients_laid_out_otherwise_are_read_in_order() -> None:
    """A transposed gradient, as convolutions may leave it, must not be stepped in its own order."""
    moved = []
    for layout in (torch.Tensor.contiguous, lambda g: g.t().contiguous().t()):
        weight = weights_of(torch.bfloat16)[0]
        optimizer = SplitAdamW8bit([weight], lr=1e-2)
        torch.manual_seed(5)
        weight.grad = layout(torch.randn(weight.shape, dtype=torch.bfloat16))
        optimizer.step()
        moved.append(weight.detach())
    assert torch.equal(*moved)


def test_bytes_of_a_weight() -> None:
    """8 bits a moment and 16 of lower half; tensors below 4,096 elements keep fp32 moments."""
    weights = weights_of(torch.bfloat16)
    optimizer = SplitAdamW8bit(weights, lr=1e-3)
    train(optimizer, weights, range(1))
    for weight in weights:
        state = optimizer.state[weight]
        expected = torch.uint8 if weight.numel() >= 4096 else torch.float32
        assert state["state1"].dtype == state["state2"].dtype == expected
    tables = ("qmap1", "qmap2")  # one for the whole optimizer
    kept = [one for name, one in optimizer.state[weights[0]].items() if name not in tables]
    state_bytes = sum(one.nbytes for one in kept if isinstance(one, torch.Tensor))
    each = (weights[0].nbytes + weights[0].grad.nbytes + state_bytes) / weights[0].numel()
    print(f"full fine-tune in bf16: {each:.2f} bytes a weight")
    assert each == pytest.approx(8.03, abs=0.005)


@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw8bit"])
def test_a_restart_continues_bit_for_bit(name: str) -> None:
    def begin() -> tuple[torch.optim.Optimizer, Masters]:
        named = {str(number): p for number, p in enumerate(weights_of(torch.bfloat16))}
        masters = Masters(named, torch.bfloat16, in_place=True)
        return build_optimizer(name, masters, 1e-4, 0.1), masters

    whole, masters = begin()
    train(whole, masters.fp32, range(3))
    file = io.BytesIO()
    torch.save({"optimizer": whole.state_dict(), "weights": masters.fp32}, file)
    train(whole, masters.fp32, range(3, 6))
    file.seek(0)
    saved = torch.load(file)
    resumed, again = begin()
    resumed.load_state_dict(saved["optimizer"])
    with torch.no_grad():
        for weight, value in zip(again.fp32, saved["weights"], strict=True):
            weight.copy_(value)
    train(resumed, again.fp32, range(3, 6))
    for one, other in zip(masters.fp32, again.fp32, strict=True):
        assert torch.equal(one, other)
        old, new = whole.state[one], resumed.state[other]
        assert old["step"] == new["step"] == 6
        assert all(torch.equal(old[key], new[key]) for key in old if key != "step")


def test_it_can_be_traced_without_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    # The constructor of bitsandbytes reads its tables, which fakes have no values for.
    monkeypatch.setattr(bnb.functional, "create_dynamic_map", lambda signed: torch.empty(256))
    with FakeTensorMode():
        matrix = Parameter(torch.empty(51_866, 1280, dtype=torch.bfloat16))
        vector = Parameter(torch.empty(1280))
        optimizer = SplitAdamW8bit([matrix, vector], lr=1e-3)
        for _ in range(2):
            for weight in (matrix, vector):
                weight.grad = torch.empty_like(weight)
            optimizer.step()
        assert optimizer.state[matrix]["low"].shape == matrix.shape
        assert matrix.dtype == torch.bfloat16
