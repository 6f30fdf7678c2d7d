"""The model of the CUDA caching allocator against its rules, and against torch's own answers."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_whisper.memory.allocator import (
    CUBLAS_WORKSPACE,
    MIB,
    USED,
    Allocator,
    Block,
    Replay,
    replay,
)


def run(*story: int, limit: int | None = None, expandable: bool = False) -> Replay:
    """Replay births of so many bytes; -n is the death of the n-th birth, counted from 1."""
    sizes = [size for size in story if size >= 0]
    births = iter(range(len(sizes)))
    events = [next(births) if step >= 0 else step for step in story]
    return replay(events, sizes, limit=limit, expandable=expandable, standing=0)


def held(*story: int) -> tuple[int, int]:
    done = run(*story)
    return done.allocated, done.reserved


def given_out(card: Allocator, size: int) -> Block:
    block = card.malloc(size)
    assert block is not None
    return block


# The rules of CUDACachingAllocator.cpp, one by one.


def test_a_request_is_rounded_up_to_512_bytes():
    assert held(1) == (512, 2 * MIB)
    assert held(513) == (1024, 2 * MIB)


def test_an_empty_storage_asks_for_nothing():
    assert held(0, -1) == (0, 0)


def test_up_to_1_mib_comes_from_segments_of_2_mib():
    assert held(MIB, MIB) == (2 * MIB, 2 * MIB)
    assert held(MIB, MIB, 1) == (2 * MIB + 512, 4 * MIB)


def test_the_small_pool_splits_down_to_512_bytes():
    assert held(*[512] * 4096) == (2 * MIB, 2 * MIB)
    assert held(*[512] * 4097) == (2 * MIB + 512, 4 * MIB)


def test_from_1_to_10_mib_comes_from_segments_of_20_mib():
    assert held(MIB + 1) == (MIB + 512, 20 * MIB)
    assert held(9 * MIB, 9 * MIB) == (18 * MIB, 20 * MIB)


def test_from_10_mib_on_a_segment_is_the_request_in_steps_of_2_mib():
    assert held(10 * MIB) == (10 * MIB, 10 * MIB)
    assert held(10 * MIB + 1) == (10 * MIB + 512, 12 * MIB)


def test_the_large_pool_does_not_split_off_1_mib_or_less():
    assert held(11 * MIB) == (12 * MIB, 12 * MIB)
    assert held(11 * MIB - 512) == (11 * MIB - 512, 12 * MIB)


def test_the_pools_do_not_serve_each_other():
    assert held(512, -1, MIB + 1) == (MIB + 512, 22 * MIB)
    assert held(MIB + 1, -1, 512) == (MIB + 512, 22 * MIB)


def test_the_smallest_free_block_that_is_large_enough_serves():
    card = Allocator()
    blocks = [given_out(card, size * MIB) for size in (30, 12, 16)]
    for block in blocks:
        card.free(block, 10 * MIB)
    assert given_out(card, 13 * MIB).address == blocks[2].address


def test_of_two_free_blocks_of_one_size_the_lower_serves():
    card = Allocator()
    first, second = given_out(card, 12 * MIB), given_out(card, 12 * MIB)
    card.free(second, 12 * MIB)
    card.free(first, 12 * MIB)
    assert given_out(card, 12 * MIB).address == 0


@pytest.mark.parametrize("deaths", [(-1, -2, -3), (-3, -2, -1), (-1, -3, -2), (-2, -1, -3)])
def test_free_neighbours_become_one_block(deaths):
    assert run(4 * MIB, 4 * MIB, 4 * MIB, *deaths, 20 * MIB).reserved == 20 * MIB


def test_segments_do_not_become_one_block():
    assert run(12 * MIB, 12 * MIB, -1, -2, 24 * MIB).reserved == 48 * MIB


def test_the_cublas_workspaces_stand_before_everything_else():
    assert replay([], []) == Replay(CUBLAS_WORKSPACE, 18 * MIB, 0, True)
    assert not replay([], [], limit=16 * MIB).fits


# A card that is full.


def test_a_full_card_gets_its_cached_segments_back():
    story = (20 * MIB, -1, 30 * MIB)
    assert run(*story, limit=49 * MIB) == Replay(30 * MIB, 30 * MIB, 1, True)
    assert run(*story, limit=50 * MIB) == Replay(30 * MIB, 50 * MIB, 0, True)


def test_a_segment_with_one_live_block_is_not_given_back():
    story = (4 * MIB, 16 * MIB, -2, 30 * MIB)
    assert run(*story, limit=49 * MIB) == Replay(20 * MIB, 20 * MIB, 1, False)


def test_a_flush_does_not_make_the_small_pool_serve_the_large_one():
    assert run(512, 20 * MIB, limit=21 * MIB) == Replay(512, 2 * MIB, 1, False)


def test_the_replay_stops_where_the_card_is_too_small():
    done = run(20 * MIB, 40 * MIB, -1, 12 * MIB, limit=50 * MIB)
    assert done == Replay(20 * MIB, 20 * MIB, 1, False)


def test_the_death_of_what_does_not_live_is_a_fault():
    with pytest.raises(KeyError):
        run(512, -1, -1)


# Expandable segments.


def test_an_expandable_segment_grows_by_pages_of_its_pool():
    assert run(1, expandable=True) == Replay(512, 2 * MIB, 0, True)
    assert run(MIB, MIB, 1, expandable=True) == Replay(2 * MIB + 512, 4 * MIB, 0, True)
    assert run(MIB + 1, expandable=True) == Replay(MIB + 512, 20 * MIB, 0, True)
    assert run(21 * MIB, expandable=True) == Replay(21 * MIB, 40 * MIB, 0, True)


def test_an_expandable_segment_splits_down_to_512_bytes():
    assert run(20 * MIB - 512, 11 * MIB, expandable=True).allocated == 31 * MIB - 512


def test_what_is_free_at_the_end_grows():
    assert run(12 * MIB, 28 * MIB, expandable=True).reserved == 40 * MIB


def test_the_end_that_can_grow_is_kept_for_what_fits_nowhere_else():
    card = Allocator(expandable=True)
    hole, _ = given_out(card, 16 * MIB), given_out(card, 12 * MIB)  # 12 of 40 MiB are left
    card.free(hole, 16 * MIB)
    assert given_out(card, 10 * MIB).address == 0


def test_a_full_card_gets_whole_pages_of_an_expandable_segment_back():
    story = (40 * MIB, 20 * MIB, -1, 50 * MIB)
    assert run(*story, limit=80 * MIB, expandable=True) == Replay(70 * MIB, 80 * MIB, 1, True)
    assert not run(*story, limit=79 * MIB, expandable=True).fits


def test_a_page_in_use_stays_and_the_gap_is_filled_first():
    card = Allocator(limit=180 * MIB, expandable=True)
    first = given_out(card, 50 * MIB)  # pages 0, 1 and half of 2
    given_out(card, 30 * MIB)  # the other half and page 3
    card.free(first, 50 * MIB)
    assert given_out(card, 110 * MIB).address == 80 * MIB  # with the memory of pages 0 and 1
    assert (card.flushes, card.reserved) == (1, 160 * MIB)
    assert given_out(card, 15 * MIB).address == 0
    assert (card.flushes, card.reserved) == (1, 180 * MIB)


def test_a_segment_has_the_addresses_of_the_card_and_an_eighth_more():
    card = Allocator(limit=100 * MIB, expandable=True)
    first = given_out(card, 50 * MIB)
    given_out(card, 30 * MIB)
    card.free(first, 50 * MIB)
    assert given_out(card, 60 * MIB).address == 120 * MIB  # 40 were left: a second segment
    assert (card.flushes, card.reserved) == (1, 100 * MIB)


def test_some_runs_fit_in_expandable_segments_only():
    story = (4 * MIB, 30 * MIB)
    assert not run(*story, limit=40 * MIB).fits
    assert run(*story, limit=40 * MIB, expandable=True) == Replay(34 * MIB, 40 * MIB, 0, True)


# What holds for any run.

SIZES = st.one_of(
    st.integers(0, 4096), st.integers(1, 3 * MIB), st.integers(1, 40 * MIB), st.just(6 * MIB)
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Events and sizes of a run at whose end everything is dead."""
    sizes = draw(st.lists(SIZES, min_size=1, max_size=40))
    events: list[int] = []
    live: list[int] = []
    for i in range(len(sizes)):
        live.append(i)
        events.append(i)
        for _ in range(draw(st.integers(0, 2))):
            if live:
                events.append(~live.pop(draw(st.integers(0, len(live) - 1))))
    return [*events, *(~i for i in draw(st.permutations(live)))], sizes


def rounded(size: int, to: int) -> int:
    return -(-size // to) * to


def check(card: Allocator, live: dict[int, Block], sizes: list[int]) -> None:
    """Blocks hold what was asked for, overlap nowhere and add up; neighbours are merged."""
    assert all(live[i].size >= sizes[i] for i in live)
    for pool in (card.small, card.large):
        blocks = [*(b for i, b in live.items() if (sizes[i] <= MIB) == (pool is card.small))]
        blocks += [b for *_, b in pool.free] + [b for _, b in pool.unmapped]
        blocks.sort(key=lambda block: block.address)
        for block, after in pairwise(blocks):
            assert block.address + block.size <= after.address
            if block.after is after:
                assert block.state == USED or block.state != after.state
    free = sum(size for pool in (card.small, card.large) for size, *_ in pool.free)
    assert card.allocated == sum(block.size for block in live.values())
    assert card.reserved == card.allocated + free <= card.limit


@settings(max_examples=150, deadline=None)
@given(runs(), st.booleans(), st.integers(1, 200))
def test_blocks_overlap_nowhere_and_add_up_to_what_is_reserved(story, expandable, limit_mib):
    events, sizes = story
    card = Allocator(limit_mib * MIB, expandable)
    live: dict[int, Block] = {}
    for event in events:
        if event < 0 and ~event in live:
            card.free(live.pop(~event), sizes[~event])
        elif event >= 0 and sizes[event] and (block := card.malloc(sizes[event])) is not None:
            live[event] = block
        check(card, live, sizes)
    assert card.allocated == 0
    card.flush()
    assert card.reserved == 0


@settings(max_examples=100, deadline=None)
@given(runs(), st.booleans())
def test_a_limit_that_is_not_reached_changes_nothing(story, expandable):
    free = replay(*story, expandable=expandable)
    assert free.fits and free.flushes == 0
    assert free.allocated >= CUBLAS_WORKSPACE
    assert replay(*story, expandable=expandable, limit=free.reserved) == free


@settings(max_examples=100, deadline=None)
@given(runs(), st.booleans(), st.floats(0, 1))
def test_less_than_the_live_bytes_never_fits(story, expandable, part):
    events, sizes = story
    live = peak = 0
    for event in events:
        live += sizes[event] if event >= 0 else -sizes[~event]
        peak = max(peak, live)
    limit = min(int(part * peak), peak - 1)
    done = replay(events, sizes, limit=limit, expandable=expandable, standing=0)
    assert done.fits == (peak == 0)
    assert done.reserved <= max(limit, 0)


@settings(max_examples=100, deadline=None)
@given(runs())
def test_an_expandable_segment_reserves_no_more_than_all_requests_laid_end_to_end(story):
    events, sizes = story
    ends = [0, 0]
    for size in sizes:
        ends[size > MIB] += rounded(size, 512)
    bound = rounded(ends[0], 2 * MIB) + rounded(ends[1], 20 * MIB)
    assert replay(events, sizes, expandable=True, standing=0).reserved <= bound


@settings(max_examples=100, deadline=None)
@given(runs())
def test_in_an_expandable_segment_a_second_round_needs_no_more_than_the_first(story):
    events, sizes = story
    again = [i + len(sizes) if i >= 0 else i - len(sizes) for i in events]
    once = replay(events, sizes, expandable=True)
    assert replay(events + again, sizes + sizes, expandable=True) == once


# What libc10_cuda.so of torch 2.14.1 itself answered, on a driver that was faked in C
# (cudaMalloc, cuMemCreate): allocated, reserved, num_alloc_retries, and whether it ended.
TORCH_SAYS: list[tuple[int, int | None, bool, Replay]] = [
    (1, None, False, Replay(411378176, 528482304, 0, True)),
    (1, 507343011, False, Replay(411378176, 463470592, 1, True)),
    (1, 415491957, False, Replay(311350272, 379584512, 1, False)),
    (2, 511369543, False, Replay(327463424, 463470592, 1, True)),
    (2, 330738058, False, Replay(288515584, 329252864, 4, False)),
    (3, 591900180, False, Replay(403896320, 547356672, 1, True)),
    (3, 408523765, False, Replay(365281792, 402653184, 5, False)),
    (1, None, True, Replay(410304512, 448790528, 0, True)),
    (2, 392586854, True, Replay(315340288, 387973120, 2, False)),
    (4, 301046169, True, Replay(251705344, 299892736, 4, True)),
    (5, 557381058, True, Replay(500160000, 553648128, 1, True)),
    (7, 374299688, True, Replay(292191744, 343932928, 0, True)),
]


def long_run(seed: int, events: int = 2000) -> tuple[list[int], list[int]]:
    """A run with up to 60 live storages of 1 byte to 64 MiB; the same on every Python."""

    def draw(below: int) -> int:
        nonlocal seed
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        return (seed >> 33) % below

    story: list[int] = []
    sizes: list[int] = []
    live: list[int] = []
    while len(story) < events:
        if len(live) == 60 or (live and draw(100) < 45):
            story.append(~live.pop(draw(len(live))))
        else:
            live.append(len(sizes))
            story.append(len(sizes))
            sizes.append(1 + draw(2 ** (4 + draw(23))))
    return story, sizes


@pytest.mark.parametrize(("seed", "limit", "expandable", "answer"), TORCH_SAYS)
def test_the_model_answers_what_torch_answers(seed, limit, expandable, answer):
    assert replay(*long_run(seed), limit=limit, expandable=expandable) == answer


def test_a_step_is_replayed_in_an_instant():
    events, sizes = long_run(1, events=60_000)
    start = time.perf_counter()
    replay(events, sizes)
    seconds = time.perf_counter() - start
    print(f"60,000 events in {seconds:.3f} s")
    assert seconds < 2  # 0.1 on an idle core
