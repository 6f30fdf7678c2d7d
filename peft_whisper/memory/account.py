"""What a timeline's peak is made of."""

from __future__ import annotations

from dataclasses import dataclass

from peft_whisper.memory.recorder import PARTS, Timeline

ROUND = 512  # bytes; CUDA's allocator hands out multiples of it


@dataclass(frozen=True)
class Peak:
    """The moment when most is allocated, in bytes by part."""

    size: int
    phase: str  # loading, forward, backward or optimizer
    parts: dict[str, int]
    largest: list[tuple[str, int]]  # of activations and temporaries, by the operation they come of


def find_peak(line: Timeline, round_to: int = ROUND) -> Peak:
    """Add up the timeline; `round_to` 1 for the bytes that were asked for."""
    sizes = [-(-size // round_to) * round_to for size in line.sizes]
    now = most = at = 0
    for place, event in enumerate(line.events):
        if event >= 0:
            now += sizes[event]
            if now > most:
                most, at = now, place
        else:
            now -= sizes[~event]
    live: set[int] = set()
    for event in line.events[: at + 1]:
        if event >= 0:
            live.add(event)
        else:
            live.discard(~event)
    phase = [name for first, name in line.phases if first <= at][-1]
    kept = _kept(line)
    parts = dict.fromkeys(PARTS, 0)
    by_operation: dict[str, int] = {}
    for number in live:
        part = line.parts.get(number)
        if part is None:
            part = "activations" if number in kept else "temporaries"
            name = line.made_by[number]
            by_operation[name] = by_operation.get(name, 0) + sizes[number]
        parts[part] += sizes[number]
    largest = sorted(by_operation.items(), key=lambda one: -one[1])[:8]
    return Peak(most, phase, parts, largest)


def _kept(line: Timeline) -> set[int]:
    """Storages of forward that outlive it: what backward was left."""
    kept: set[int] = set()
    bounds = [place for place, _ in line.phases] + [len(line.events)]
    for (first, name), end in zip(line.phases, bounds[1:], strict=True):
        if name != "forward":
            continue
        born = {event for event in line.events[first:end] if event >= 0}
        born -= {~event for event in line.events[first:end] if event < 0}
        kept |= born
    return kept


def excerpt(line: Timeline, start: int) -> Timeline:
    """The same up to event `start`, and what was born since, numbered on from there.

    Deaths of storages whose birth is not among these events are left out.
    """
    events = line.events[:start]
    new = {event: event for event in events if event >= 0}  # number there -> number here
    count = len(new)
    found = Timeline(events, line.sizes[:count], line.made_by[:count])
    places = []  # where the events since `start` have gone
    for event in line.events[start:]:
        places.append(len(events))
        if event >= 0:
            new[event] = len(found.sizes)
            found.sizes.append(line.sizes[event])
            found.made_by.append(line.made_by[event])
            events.append(new[event])
        elif ~event in new:
            events.append(~new[~event])
    places.append(len(events))
    found.parts = {new[number]: part for number, part in line.parts.items() if number in new}
    found.phases = [
        (first if first < start else places[first - start], name) for first, name in line.phases
    ]
    return found


def twice(line: Timeline, start: int) -> list[int]:
    """Events with those from `start` on, one whole step, happening once more.

    What the allocator keeps for itself settles in the first step; only what a step both makes and
    frees can happen again.
    """
    step = line.events[start:]
    born = {event for event in step if event >= 0}
    again = born & {~event for event in step if event < 0}
    return line.events + [event for event in step if (event if event >= 0 else ~event) in again]
