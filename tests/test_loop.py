"""The update: exact token weighting, the non-finite guard, selection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import whispers
from accelerate import Accelerator

from peft_whisper.data.batches import Batch
from peft_whisper.errors import StateError
from peft_whisper.model.adapters import Adapter, FirstBackwardCheck, attach, trainable
from peft_whisper.model.encoder import encode, whisper_of
from peft_whisper.positions import positions_for
from peft_whisper.recipe_sections import Training
from peft_whisper.training.tally import Selection
from peft_whisper.training.updater import Updater

CHOSEN = Adapter(4, 8, 0.0, range(2), range(2), ("q", "v", "fc1"))


def updater(dtype: torch.dtype = torch.float32, **settings) -> Updater:
    base = whispers.model(whispers.config()).to(dtype)
    torch.manual_seed(7)
    model = attach(base, CHOSEN)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    training = Training(updates=9, learning_rate=1e-2, **settings)
    check = FirstBackwardCheck(whisper_of(model), CHOSEN)
    return Updater(Accelerator(cpu=True), model, training, check)


def batch_of(clips: list[tuple[int, torch.Tensor, list[int]]], positions: int = 256) -> Batch:
    """A batch of (number, mel, target tokens) with ragged lengths; `positions` hear them."""
    longest = max(len(tokens) for _, _, tokens in clips)
    fed = torch.full((len(clips), longest), 50_256)
    index: list[int] = []
    for row, (_, _, tokens) in enumerate(clips):
        fed[row, : len(tokens)] = torch.tensor([50_257, *tokens[:-1]])
        index += range(row * longest, row * longest + len(tokens))
    return Batch(
        sound=torch.stack([mel for _, mel, _ in clips])[..., : 2 * positions],
        positions=positions_for(positions),
        decoder_input_ids=fed,
        index=torch.tensor(index),
        targets=torch.tensor([token for _, _, tokens in clips for token in tokens]),
        clip_ids=tuple(f"clip-{number}" for number, _, _ in clips),
        durations_s=(1.0,) * len(clips),
    )


def clips(lengths: list[int]) -> list[tuple[int, torch.Tensor, list[int]]]:
    torch.manual_seed(2)
    return [
        (number, torch.randn(80, 512), torch.randint(50_000, (length,)).tolist())
        for number, length in enumerate(lengths)
    ]


def gradients_of(made: Updater, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    made.forward.train()
    loss = float(made.backward(batches))
    return loss, {name: p.grad.clone() for name, p in made.masters.named.items()}


def test_accumulation_4x1_equals_1x4_with_ragged_labels() -> None:
    rows = clips([3, 17, 1, 40])
    one = gradients_of(updater(), [batch_of(rows)])
    four = gradients_of(updater(), [batch_of([row]) for row in rows])
    uneven = gradients_of(updater(), [batch_of(rows[:3]), batch_of(rows[3:])])
    worst = 0.0
    for loss, gradients in (four, uneven):
        assert loss == pytest.approx(one[0], abs=1e-6)
        for name, gradient in gradients.items():
            worst = max(worst, float((gradient - one[1][name]).abs().max()))
    print(f"accumulation: largest gradient difference of 4 x 1 to 1 x 4: {worst:.1e}")
    assert worst < 1e-6
    assert max(float(g.abs().max()) for g in one[1].values()) > 1e-3  # there is something to differ


def test_loss_is_the_mean_over_tokens() -> None:
    rows = clips([3, 17])
    made, short = updater(), batch_of(rows)
    at_30_s = torch.nn.functional.pad(short.sound, (0, 3000 - short.sound.shape[-1]))
    batch = replace(short, sound=at_30_s, positions=1500)  # as the stock decoder needs it
    loss, _ = gradients_of(made, [batch])
    whisper = whisper_of(made.forward.model)
    with torch.inference_mode():
        heard = encode(whisper.model.encoder, batch.sound)
        hidden = whisper.model.decoder(batch.decoder_input_ids, None, heard).last_hidden_state
        logits = whisper.proj_out(hidden).flatten(0, 1)[batch.index]
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, batch.targets)))


def test_an_update_learns_and_counts_no_padding() -> None:
    made, rows = updater(), clips([3, 17, 1, 40])
    losses = [made.step([batch_of(rows)], 5.0)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.3


def test_bf16_base_trains_through_fp32_masters() -> None:
    made, rows = updater(torch.bfloat16, precision="bf16"), clips([3, 17, 1, 40])
    losses = [made.step([batch_of(rows)], 5.0)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.3
    assert all(p.dtype == torch.float32 for p in made.masters.fp32)
    assert {p.dtype for p in made.masters.model} == {torch.bfloat16}


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_before_the_update(poison: float) -> None:
    made, rows = updater(), clips([3, 17])
    before = [p.detach().clone() for p in made.masters.fp32]
    rows[1] = (rows[1][0], torch.full_like(rows[1][1], poison), rows[1][2])
    with pytest.raises(StateError, match=r"clip-0, clip-1") as stopped:
        made.step([batch_of(rows)], 1.0)
    assert "nan" in str(stopped.value)
    after = made.masters.fp32
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_gradients_are_clipped() -> None:
    made, rows = updater(max_grad_norm=1e-3), clips([5, 9])
    made.optimizer = torch.optim.SGD([{"params": made.masters.fp32, "ratio": 1.0}], lr=1.0)
    before = [p.detach().clone() for p in made.masters.fp32]
    made.training = made.training.model_copy(update={"learning_rate": 1.0})
    made.step([batch_of(rows)], 1.0)
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(made.masters.fp32, before, strict=True)]
    ).norm()
    assert float(moved) == pytest.approx(1e-3, rel=0.02)


def test_selection_keeps_the_first_of_equals_and_counts_patience() -> None:
    best = Selection("mer")
    seen = [best.consider(update, value) for update, value in ((5, 0.9), (10, 0.4), (15, 0.4))]
    assert seen == [True, True, False]
    assert (best.update, best.value, best.waited) == (10, 0.4, 1)


def test_lora_plus_steps_the_second_matrix_farther() -> None:
    """Adam's first step is the learning rate itself, wherever the gradient points."""
    one = updater(up_ratio=8)
    before = {name: p.detach().clone() for name, p in one.masters.named.items()}
    one.step([batch_of(clips([3, 5]))], 1.0)
    moved = {name: (p - before[name]).abs().max().item() for name, p in one.masters.named.items()}
    for name, largest in moved.items():
        expected = 8e-2 if "lora_B" in name else 1e-2
        assert largest == pytest.approx(expected, rel=0.02), name
