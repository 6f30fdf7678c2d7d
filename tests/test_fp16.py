"""float16, for cards without bfloat16: the loss scale, its overflows, and what is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import batch_of, clips, updater
from test_train import losses, make_place, train

from peft_whisper.errors import StateError
from peft_whisper.training.precision import GROW_AFTER, LossScale, autocast_dtype
from peft_whisper.training.updater import Updater

HELD = [torch.float16, torch.float32]  # weights in float16, and float32 under autocast


def gradients(made: Updater, rows: list) -> torch.Tensor:
    """Gradients as the masters get them, in one vector."""
    made.forward.train()
    made.backward([batch_of(rows)])
    made.masters.take_gradients()
    if made.loss_scale:
        made.loss_scale.divide(made.masters.fp32)
    return torch.cat([parameter.grad.flatten() for parameter in made.masters.fp32])


def masters(made: Updater) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in made.masters.fp32]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("held", HELD)
def test_fp16_learns_through_fp32_masters(held: torch.dtype) -> None:
    made, rows = updater(held, precision="fp16"), clips([3, 17])
    losses = [made.step([batch_of(rows)], 5.0)[0] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.3
    assert all(p.dtype == torch.float32 for p in made.masters.fp32)
    assert {p.dtype for p in made.masters.model} == {held}


@pytest.mark.parametrize("held", HELD)
def test_gradients_are_those_of_fp32(held: torch.dtype) -> None:
    rows = clips([3, 17, 1, 40])
    expected = gradients(updater(), rows)
    found = gradients(updater(held, precision="fp16"), rows)
    apart = float((found - expected).norm() / expected.norm())
    print(f"fp16 gradients, weights in {held}: {apart:.1e} from those of fp32, relatively")
    assert found.dtype == torch.float32
    assert apart < 0.01


def test_the_scale_keeps_what_float16_would_lose() -> None:
    """Of a loss 1e-6 times as large the gradients are too small for float16, but for the scale."""
    rows = clips([3, 17])

    def small(made: Updater) -> torch.Tensor:
        made.forward.register_forward_hook(lambda _module, _inputs, loss: loss * 1e-6)
        return gradients(made, rows)

    def apart(scale: float) -> float:
        made = updater(torch.float16, precision="fp16")
        made.loss_scale = LossScale(scale)
        return float((small(made) - expected).norm() / expected.norm())

    expected = small(updater())
    unscaled, scaled = apart(1.0), apart(2.0**16)
    print(f"tiny gradients: {unscaled:.0%} lost without a loss scale, {scaled:.1%} with it")
    assert scaled < 0.02 < 0.5 < unscaled


@pytest.mark.parametrize("held", HELD)
def test_an_overflow_halves_the_scale_and_repeats_the_same_step(held: torch.dtype) -> None:
    made, again, events = updater(held, precision="fp16"), updater(held, precision="fp16"), []
    made.loss_scale = LossScale(2.0**40)
    for lengths in ([3, 17], [5, 9], [2, 4]):
        batches = [batch_of(clips(lengths))]
        found = made.step(batches, 1.0, events.append)
        again.loss_scale = LossScale(made.loss_scale.value)  # as if that had been known
        assert found == again.step(batches, 1.0, pytest.fail)
    assert equal(masters(made), masters(again))
    halvings = [2.0 ** (39 - number) for number in range(len(events))]
    assert events == [{"event": "overflow", "loss_scale": scale} for scale in halvings]
    assert len(events) > 5


def test_an_overflow_that_no_scale_cures_stops_before_the_update() -> None:
    made, events = updater(torch.float16, precision="fp16"), []
    before = masters(made)
    made.masters.model[0].register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(StateError, match=r"loss scale 1\. Nothing was updated\. Clips: clip-0"):
        made.step([batch_of(clips([3, 17]))], 1.0, events.append)
    assert len(events) == 16
    assert equal(masters(made), before)


def test_a_loss_that_is_not_finite_is_no_matter_of_scale() -> None:
    made, rows, events = updater(precision="fp16"), clips([3, 17]), []
    rows[1] = (rows[1][0], torch.full_like(rows[1][1], float("nan")), rows[1][2])
    with pytest.raises(StateError, match="loss nan"):
        made.step([batch_of(rows)], 1.0, events.append)
    assert events == []
    assert made.loss_scale.value == 2.0**16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_know_no_scale(precision: str) -> None:
    made, events = updater(precision=precision), []
    assert made.loss_scale is None
    made.masters.model[0].register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(StateError, match="Nothing was updated"):
        made.step([batch_of(clips([3, 17]))], 1.0, events.append)
    assert events == []


def test_the_scale_grows_after_enough_good_updates() -> None:
    scale = LossScale(4.0)
    for _ in range(GROW_AFTER - 1):
        scale.succeed()
    assert scale == LossScale(4.0, GROW_AFTER - 1)
    scale.succeed()
    assert scale == LossScale(8.0, 0)
    scale.succeed()
    assert scale.shrink()
    assert scale == LossScale(4.0, 0)
    assert not LossScale(1.0).shrink()


@pytest.mark.parametrize(
    ("precision", "held", "expected"),
    [
        ("fp32", torch.float32, None),
        ("bf16", torch.float32, torch.bfloat16),
        ("fp16", torch.float32, torch.float16),
        ("bf16", torch.bfloat16, None),
        ("fp16", torch.float16, None),
    ],
)
def test_autocast_is_for_weights_held_in_float32(precision, held, expected) -> None:
    assert autocast_dtype(precision, held) == expected


def test_a_run_in_float16_goes_to_its_end(tmp_path: Path) -> None:
    make_place(tmp_path)
    train(tmp_path, "tiny.yaml", "training.precision=fp16", "base.dtype=float16")
    run = tmp_path / "outputs" / "tiny"
    found = losses(run)
    print(f"a run in float16: losses {found}")
    assert len(found) == 4
    assert max(found) < 12  # chance is log(51,865) = 10.9
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert json.loads((run / "metrics.json").read_text())["tuned"]["clips"] == 7
