"""The largest batch that fits: found on paper between two traces, confirmed by two more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from peft_whisper.memory.recorder import Timeline
from peft_whisper.planning.costs import Cost, Tracer, standing
from peft_whisper.planning.tracing import Shape

MOST_CLIPS = 1024  # where the search ends

Traced = tuple[Timeline, Cost]


@dataclass(frozen=True)
class Largest:
    """So many clips at once fit, by a trace; one more does not, by another. 0: not even one."""

    clips: int
    cost: Cost | None  # of as many
    next_cost: Cost | None  # of one more; None where the search ended before


def largest_batch(tracer: Tracer, steps: tuple[Shape, ...], first: Traced) -> Largest:
    """The most clips at once that fit. `steps` are alike micro-batches, `first` their trace."""
    if tracer.least > tracer.limits.usable:
        return Largest(0, None, None)
    known = {steps[0].clips: first}

    def trace(clips: int) -> Traced:
        if clips not in known:
            known[clips] = tracer.training(tuple(replace(one, clips=clips) for one in steps))
        return known[clips]

    def fits(clips: int) -> bool:
        return trace(clips)[1].fits

    low, high = _bracket(_near(tracer, steps[0].clips, trace), fits)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Largest(
        low, trace(low)[1] if low else None, known[high][1] if high <= MOST_CLIPS else None
    )


def _bracket(near: int, fits: Callable[[int], bool]) -> tuple[int, int]:
    """(most that is known to fit, least that is not), in growing steps away from `near`."""
    step = 1
    if fits(near):
        low = near
        while low < MOST_CLIPS and fits(min(MOST_CLIPS, low + step)):
            low, step = min(MOST_CLIPS, low + step), 2 * step
        return low, min(MOST_CLIPS, low + step) if low < MOST_CLIPS else MOST_CLIPS + 1
    high = near
    while high - step > 0 and not fits(high - step):
        high, step = high - step, 2 * step
    return max(0, high - step), high


def _near(tracer: Tracer, clips: int, trace: Callable[[int], Traced]) -> int:
    """A number of clips at the limit: first by proportion, then by the lines between two traces."""
    line, cost = trace(clips)
    always = standing(line, tracer.start)
    per_clip = max(1, (cost.allocated - always) // clips)
    near = int(0.97 * tracer.limits.usable - always) // per_clip
    near = min(MOST_CLIPS, max(1, near if near != clips else clips + 1))
    if near == clips:
        return clips
    other, _ = trace(near)
    low, high, at = 0, MOST_CLIPS + 1, near
    while high - low > 1:  # in growing steps away from what was traced, then by halves
        if tracer.would_fit(_scaled(line, clips, other, near, at)):
            low, at = at, at + max(1, at - near + 1)
        else:
            high, at = at, at - max(1, near - at + 1)
        if not low < at < high:
            at = (low + high) // 2
    return max(1, low)


def _scaled(one: Timeline, at: int, other: Timeline, near: int, clips: int) -> Timeline:
    """`other`, a trace of `near` clips, as it would be with `clips` of them.

    `one` is a trace of `at` clips of the same work. Both do the same operations in the same order,
    but for the loss, whose chunks differ in number; so each size is a line in the clips.
    """
    slope, sizes = (clips - near) / (near - at), list(other.sizes)
    first, second = one.made_by, other.made_by
    count = min(len(first), len(second))
    same = next((n for n in range(count) if first[n] != second[n]), count)
    for number in range(same):
        sizes[number] += round((other.sizes[number] - one.sizes[number]) * slope)
    for back in range(1, count - same + 1):
        if first[-back] != second[-back]:
            break
        sizes[-back] += round((other.sizes[-back] - one.sizes[-back]) * slope)
    return replace(other, sizes=[max(0, size) for size in sizes])
