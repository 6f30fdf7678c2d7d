"""What a recipe's work takes of a card's memory, by tracing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft_whisper.memory.account import excerpt, find_peak, twice
from peft_whisper.memory.allocator import Replay, replay
from peft_whisper.planning.tracing import Shape, TrainingTrace

if TYPE_CHECKING:
    from peft_whisper.memory.recorder import Timeline
    from peft_whisper.model.sizes import Blueprint
    from peft_whisper.recipe import Recipe

SPARE = 0.05  # share of the card that must stay free for "fits": fragmentation of long runs


@dataclass(frozen=True)
class Limits:
    """The memory to fit into, in bytes; what `memory.cards.Card` says of it."""

    usable: int
    device: str  # "cuda" or "cpu"
    flash: bool  # whether it has flash attention
    workspaces: int  # taken throughout
    bf16: bool = True  # whether it computes in bfloat16


@dataclass(frozen=True)
class Cost:
    """What one kind of work takes, in bytes; and FLOPs."""

    allocated: int
    reserved: int  # with expandable segments, as training runs
    reserved_default: int  # with torch's default allocator
    verdict: str  # fits, tight or too large
    phase: str
    parts: dict[str, int]
    largest: list[tuple[str, int]]
    flops: int
    repeated: float  # FLOPs done twice, as a share of the others

    @property
    def fits(self) -> bool:
        return self.verdict != "too large"


def standing(line: Timeline, start: int) -> int:
    """Bytes alive before event `start`."""
    before = line.events[:start]
    return sum(line.sizes[one] if one >= 0 else -line.sizes[~one] for one in before)


class Tracer:
    """Traces of one recipe, made as they are asked for; the model is built once.

    To be made and used inside one `tracing.fake` of the device in `limits`.
    """

    def __init__(self, recipe: Recipe, base: Blueprint, limits: Limits):
        self.limits = limits
        self.trace = TrainingTrace(recipe, base, limits.device)
        self.start = len(self.trace.line.events)

    @property
    def least(self) -> int:
        """Bytes that an update of any size takes: all that stays, and every gradient."""
        trained = self.trace.updater.masters.fp32
        return standing(self.trace.line, self.start) + sum(p.nbytes for p in trained)

    def training(self, steps: tuple[Shape, ...]) -> tuple[Timeline, Cost]:
        """One update of these micro-batches."""
        line = self._work(lambda: self.trace.step(steps))
        return line, self._cost(line, twice(line, self.start))

    def decoding(self, shape: Shape) -> Cost:
        """Validation of so many clips at once, beside all that training holds."""
        line = self._work(lambda: self.trace.decode(shape))
        return self._cost(line, line.events)

    def would_fit(self, line: Timeline) -> bool:
        """Whether the work of a timeline, traced or computed, fits."""
        return self._fits(line, twice(line, self.start))

    def _work(self, work: Callable[[], None]) -> Timeline:
        line = self.trace.line
        flops, repeated, phases = line.flops, line.repeated_flops, len(line.phases)
        work()
        found = excerpt(line, self.start)
        found.flops, found.repeated_flops = line.flops - flops, line.repeated_flops - repeated
        del line.events[self.start :], line.phases[phases:]  # the next work starts from here too
        return found

    def _fits(self, line: Timeline, events: list[int]) -> bool:
        """Whether it can be done at all, even if the allocator has to empty its cache for it."""
        if self.limits.device == "cpu":  # no cache: what is asked for is what is taken
            return find_peak(line, 1).size <= self.limits.usable
        return self._replay(line, events, True, self.limits.usable).fits

    def _replay(
        self, line: Timeline, events: list[int], expandable: bool, limit: int | None = None
    ) -> Replay:
        always = self.limits.workspaces
        return replay(events, line.sizes, limit=limit, expandable=expandable, standing=always)

    def _cost(self, line: Timeline, events: list[int]) -> Cost:
        on_card = self.limits.device == "cuda"
        peak = find_peak(line, 512 if on_card else 1)
        allocated = reserved = default = peak.size
        if on_card:
            growing = self._replay(line, events, True)
            allocated, reserved = growing.allocated, growing.reserved
            default = self._replay(line, events, False).reserved
        fits = reserved <= (1 - SPARE) * self.limits.usable
        once = line.flops - line.repeated_flops
        return Cost(
            allocated=allocated,
            reserved=reserved,
            reserved_default=default,
            verdict="fits" if fits else "tight" if self._fits(line, events) else "too large",
            phase=peak.phase,
            parts=peak.parts,
            largest=peak.largest,
            flops=line.flops,
            repeated=line.repeated_flops / once if once else 0.0,
        )
