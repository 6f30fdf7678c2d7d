"""What goes into a batch: every clip once an epoch, true lengths, exact masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_whisper.data.batches import collate, pad_waves
from peft_whisper.data.epochs import Context, Layout, plan_epoch
from peft_whisper.data.labels import LabelRow
from peft_whisper.positions import (
    counts_for,
    heard_positions,
    positions_for,
    silent_positions,
)

CONTEXT = Context(margin=8)


@pytest.mark.parametrize(
    ("seconds", "positions"),
    [(0.1, 128), (1.0, 192), (1.94, 192), (1.95, 256), (10.0, 576), (29.2, 1472), (29.3, 1500)],
)
def test_positions_follow_the_rule(seconds: float, positions: int) -> None:
    assert CONTEXT.positions(seconds) == positions


@given(st.floats(0.01, 30), st.integers(8, 1500))
def test_speech_is_never_cut_and_has_its_margin(seconds: float, margin: int) -> None:
    heard = heard_positions(Context(margin).positions(seconds))
    assert heard * 0.02 >= min(30, seconds + 0.02 * margin) - 1e-9


def test_what_is_run_stands_for_thirty_seconds() -> None:
    for heard in range(1, 1501):
        positions = positions_for(heard)
        assert heard_positions(positions) >= heard > heard_positions(positions - 1)
    for positions in range(1, 1501):
        silent = silent_positions(positions)
        stands_for = silent * counts_for(positions) if silent else 1500 - positions
        assert heard_positions(positions) + stands_for == pytest.approx(1500)
        assert not silent or 15.9 < counts_for(positions) < 31


@settings(max_examples=60, deadline=None)
@given(
    clips=st.integers(1, 200),
    batch=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    processes=st.integers(1, 3),
    audio_s=st.sampled_from([None, 1.0, 30.0, 90.0]),
    seed=st.integers(0, 9),
)
def test_an_epoch_hears_every_clip_once(
    clips: int, batch: int, accumulation: int, processes: int, audio_s: float | None, seed: int
) -> None:
    durations = np.random.default_rng(seed).uniform(0.3, 30, clips).tolist()
    layout = Layout(batch, accumulation, processes, audio_s)
    plan = plan_epoch(durations, layout, CONTEXT, seed, epoch=2)
    assert len(plan) == layout.updates_per_epoch(clips)
    heard = [i for update in plan for rank in update for micro in rank for i in micro.clips]
    assert set(heard) == set(range(clips))
    assert clips <= len(heard) < clips + processes  # repeats: so that no process goes without
    for update in plan:
        assert len(update) == processes
        assert len({len(rank) for rank in update}) == 1  # no process waits for another
        assert all(0 < len(micro.clips) <= batch for rank in update for micro in rank)
        for micro in (micro for rank in update for micro in rank):
            assert len(micro.clips) == 1 or micro.fits(audio_s)


def test_a_bound_on_seconds_splits_full_context_batches_and_leaves_short_ones() -> None:
    durations = [1.0] * 80 + [30.0] * 80
    plan = plan_epoch(durations, Layout(16, 1, 1, 90.0), CONTEXT, seed=1, epoch=0)
    for (micro,) in plan:
        assert sorted((len(one.clips), one.positions) for one in micro) == [
            (2, 1500),
            (3, 1500),
            (3, 1500),
            (8, 192),
        ]


def test_every_update_has_short_clips_and_long_ones() -> None:
    durations = np.random.default_rng(3).uniform(1, 29, 64 * 16).tolist()
    plan = plan_epoch(durations, Layout(16, 1, 1), CONTEXT, seed=1, epoch=0)
    means = [np.mean([durations[i] for one in micro for i in one.clips]) for (micro,) in plan]
    ends = [sorted(durations[i] for one in micro for i in one.clips) for (micro,) in plan]
    print(f"mean length of an update's clips: {min(means):.1f} to {max(means):.1f} s of 1 to 29")
    assert 11 < min(means) < max(means) < 19
    assert all(update[3] < 11 and update[-4] > 19 for update in ends)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    durations = np.random.default_rng(0).uniform(0.3, 30, 100).tolist()
    layout = Layout(4, 2, 1)
    again = [plan_epoch(durations, layout, CONTEXT, 5, 3) for _ in range(2)]
    assert again[0] == again[1]
    assert plan_epoch(durations, layout, CONTEXT, 6, 3) != again[0]
    assert plan_epoch(durations, layout, CONTEXT, 5, 4) != again[0]


def test_lengths_travel_together() -> None:
    durations = np.random.default_rng(1).uniform(0.5, 30, 512).tolist()
    plan = plan_epoch(durations, Layout(16, 1, 1), CONTEXT, 1, 0)
    spent = sum(len(micro.clips) * micro.positions for (steps,) in plan for micro in steps)
    needed = sum(CONTEXT.positions(seconds) for seconds in durations)
    print(f"encoder positions spent / needed with length buckets: {spent / needed:.3f}")
    assert spent < 1.05 * needed


def test_real_tokens_are_indexed_and_padding_is_not() -> None:
    class Named:
        def __init__(self, name: str):
            self.id, self.duration_s = name, 1.0

    rows = [LabelRow((5, 6, 7), (6, 7, 9)), LabelRow((5, 9), (9, 9))]
    batch = collate(torch.zeros(2, 80, 512), 256, rows, pad=9, clips=[Named("a"), Named("b")])
    assert batch.decoder_input_ids.tolist() == [[5, 6, 7], [5, 9, 9]]
    assert batch.index.tolist() == [0, 1, 2, 3, 4]
    assert batch.targets.tolist() == [6, 7, 9, 9, 9]  # end-of-text carries loss, padding none
    assert batch.clip_ids == ("a", "b")
    assert batch.audio_s == 2.0


def test_waves_are_padded_with_silence() -> None:
    padded = pad_waves([np.ones(100, np.float32), np.ones(640, np.float32)], positions=2)
    assert padded.shape == (2, 640)
    assert padded.sum(dim=1).tolist() == [100.0, 640.0]
