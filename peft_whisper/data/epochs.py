"""An epoch's plan: which clips together, in which order, and how much the encoder runs for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from peft_whisper.data.mel import SAMPLE_RATE, SAMPLES_PER_POSITION
from peft_whisper.positions import FULL_POSITIONS, positions_for

ROUND_TO = 64  # positions: few distinct shapes, and matrices of a size that kernels like
WINDOW = 32  # updates whose clips are sorted by length together
LENGTHS = 4  # parts of like length that an update is made of, from the shortest to the longest
STEP = 512  # positions that cost about what a micro-step costs beside them, launching its kernels


@dataclass(frozen=True)
class Context:
    """How many encoder positions (20 ms each) a clip gets; the rule is in positions.py.

    `margin`: so many hear the silence behind a clip one by one, at least.
    """

    margin: int

    def positions(self, seconds: float) -> int:
        """Positions that the encoder runs for a clip of `seconds`."""
        speech = int(np.ceil(seconds * SAMPLE_RATE / SAMPLES_PER_POSITION))
        wanted = positions_for(min(FULL_POSITIONS, speech + self.margin))
        return min(FULL_POSITIONS, -(-wanted // ROUND_TO) * ROUND_TO)


@dataclass(frozen=True)
class MicroBatch:
    """Clips (indices into the split) that pass the model together, and their context."""

    clips: tuple[int, ...]
    positions: int

    def fits(self, audio_s: float | None) -> bool:
        """Whether the encoder's input, padding included, is at most `audio_s` seconds long."""
        seconds = len(self.clips) * self.positions * SAMPLES_PER_POSITION / SAMPLE_RATE
        return audio_s is None or seconds <= audio_s


Update = tuple[MicroBatch, ...]  # what one process sees between two optimizer steps


@dataclass(frozen=True)
class Layout:
    """Clips per process and micro-step, micro-steps per update, processes.

    A micro-step whose encoder input would exceed `audio_s` seconds (padding included; None: no
    bound) is split into more of them.
    """

    batch: int
    accumulation: int
    processes: int
    audio_s: float | None = None

    @property
    def clips_per_update(self) -> int:
        return self.batch * self.accumulation * self.processes

    def updates_per_epoch(self, clips: int) -> int:
        return -(-clips // self.clips_per_update)

    def allows(self, micro: MicroBatch) -> bool:
        """Whether these clips may pass the model together."""
        count = len(micro.clips)
        return count == 1 or (1 < count <= self.batch and micro.fits(self.audio_s))


def plan_epoch(
    durations: Sequence[float],
    layout: Layout,
    context: Context,
    seed: int,
    epoch: int,
    tokens: Sequence[int] | None = None,
) -> list[list[Update]]:
    """One epoch's updates for every process: `plan[update][process]`.

    Each clip is heard once. An update has as many short clips as long ones: updates of one length
    each learn worse (benchmarks/LOG.md). Clips of like length share its micro-steps. Which ones
    they are is random, a function of seed and epoch alone. The last update may be smaller; it
    repeats clips only where each process would not have one for each of its micro-steps. `tokens`,
    the clips' label lengths, decide only which clips of an update share a micro-step.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(durations))
    size, window = layout.clips_per_update, layout.clips_per_update * WINDOW
    groups: list[list[int]] = []
    for at in range(0, len(order), window):
        # The sort is stable: among clips of one context the order stays random.
        part = sorted(
            order[at : at + window].tolist(), key=lambda i: context.positions(durations[i])
        )
        groups += _mixed(part, size, rng)
    plan = []
    for group in groups:
        positions = {i: context.positions(durations[i]) for i in group}
        group.sort(key=lambda i: (positions[i], tokens[i] if tokens else 0))
        plan.append(_deal(group, positions, layout))
    return plan


def _mixed(part: list[int], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Clips, shortest first, in groups of `size`, each with neighbours from all along the row.

    Where they don't come out even the last group is smaller.
    """
    rest = len(part) % size
    drawn = set(rng.permutation(len(part))[:rest].tolist())
    whole = [clip for at, clip in enumerate(part) if at not in drawn]
    count = len(whole) // size
    groups: list[list[int]] = [[] for _ in range(count)]
    for first, end in pairwise(np.linspace(0, size, min(LENGTHS, size) + 1).astype(int).tolist()):
        width, stretch = end - first, whole[first * count : end * count]
        for group, place in zip(groups, rng.permutation(count).tolist(), strict=True):
            group += stretch[place * width : (place + 1) * width]
    return groups + ([[part[at] for at in sorted(drawn)]] if drawn else [])


def _deal(group: list[int], positions: dict[int, int], layout: Layout) -> list[Update]:
    """Deal one update's clips, shortest first, into micro-steps x processes.

    Neighbours go to different processes. Where to cut is chosen by what it takes: each clip is run
    at the length of the longest in its micro-batch, and each micro-step costs STEP.
    """
    rows = -(-len(group) // layout.processes)
    repeats = np.arange(rows * layout.processes) % len(group)  # where there are too few clips
    filled = [group[at] for at in sorted(repeats)]
    ranks = [filled[rank :: layout.processes] for rank in range(layout.processes)]
    longest = ranks[-1]
    least, before = [0.0] + [math.inf] * rows, [0] * (rows + 1)  # of the clips up to each
    for end in range(1, rows + 1):
        for first in reversed(range(end)):
            micro = MicroBatch(tuple(longest[first:end]), positions[longest[end - 1]])
            if not layout.allows(micro):
                break
            taken = least[first] + (end - first) * micro.positions + STEP
            if taken < least[end]:
                least[end], before[end] = taken, first
    cuts = [rows]
    while cuts[0]:
        cuts.insert(0, before[cuts[0]])
    return [
        tuple(MicroBatch(tuple(r[at:end]), positions[r[end - 1]]) for at, end in pairwise(cuts))
        for r in ranks
    ]
