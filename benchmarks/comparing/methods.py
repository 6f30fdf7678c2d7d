"""Runs of one recipe, over its seeds, as a row of the table: what it costs and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import numpy as np
from comparing.processes import FINISHED
from comparing.results import Facts
from comparing.statistics import Counts, Estimate, difference, estimate, front, sentence


@dataclass(frozen=True)
class Method:
    """A recipe's results, by seed; `number` is its place in tables and pictures, from 1."""

    number: int
    label: str
    rival: bool
    runs: tuple[Facts, ...]

    @cached_property
    def done(self) -> tuple[Facts, ...]:
        """The runs that finished."""
        return tuple(one for one in self.runs if one["outcome"] == FINISHED)

    @property
    def failed(self) -> tuple[Facts, ...]:
        return tuple(one for one in self.runs if one["outcome"] != FINISHED)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(one["seed"] for one in self.done)

    @cached_property
    def wer(self) -> Estimate:
        return estimate(self.counts("errors"))

    @cached_property
    def cer(self) -> Estimate:
        return estimate(self.counts("char_errors"))

    @cached_property
    def mer(self) -> Estimate:
        """Of errors to hits and errors: to the words of both texts, aligned."""
        errors = self.counts("errors")
        aligned = errors.total + self.counts("insertions").wrong
        return estimate(Counts(errors.wrong, aligned))

    @cached_property
    def padded(self) -> Estimate:
        """WER with each clip padded to 30 s, as other programs do, minus that at its own length."""
        return difference(self.counts("errors"), self.counts("errors", "tuned_full_context"))

    @cached_property
    def forgotten(self) -> Estimate | None:
        """WER of the tuned minus that of the base model on general speech; None: not measured."""
        heard = [one["general"] for one in self.done]
        if not heard or any(one is None or "failed" in one for one in heard):
            return None
        sides = [
            _counts([one["clips"] for one in heard], system, "errors")
            for system in ("base", "tuned")
        ]
        return difference(*sides)

    def counts(self, kind: str, system: str = "tuned", seeds: Sequence[int] = ()) -> Counts:
        """Errors, insertions or char_errors of each finished run (of `seeds`) and clip."""
        chosen = [one for one in self.done if not seeds or one["seed"] in seeds]
        return _counts([one["measured"]["clips"] for one in chosen], system, kind)

    def mean_of(self, *path: str) -> float | None:
        """Mean over the finished runs of a measured number; None where a run lacks it."""
        found = []
        for one in self.done:
            value = one["measured"]
            for name in path:
                value = value.get(name)
            if value is None:
                return None
            found.append(value)
        return mean(found) if found else None

    @property
    def peak_gib(self) -> float:
        """The largest of the runs' peaks, as measured."""
        return max(one["measured"]["training"]["peak_bytes"] for one in self.done) / 2**30


def _counts(clips: Sequence[Facts], system: str, kind: str) -> Counts:
    wrong = np.array([one[system][kind] for one in clips], dtype=np.float64)
    unit = "chars" if kind == "char_errors" else "words"
    return Counts(wrong, np.array([one[unit] for one in clips], dtype=np.float64))


def make_methods(results: Sequence[Facts], first: Sequence[str]) -> list[Method]:
    """Results by method: in the order of the ids in `first`, then what else was kept."""
    grouped: dict[str, list[Facts]] = {method: [] for method in first}
    for one in results:
        grouped.setdefault(one["method"], []).append(one)
    runs = [sorted(group, key=lambda one: one["seed"]) for group in grouped.values() if group]
    return [
        Method(number, group[0]["label"], group[0]["rival"], tuple(group))
        for number, group in enumerate(runs, start=1)
    ]


def compared(a: Method, b: Method) -> tuple[Estimate, str]:
    """WER of `b` minus that of `a` on the seeds that both have, and the sentence that follows."""
    common = sorted(set(a.seeds) & set(b.seeds))
    if common:
        sides = [one.counts("errors", seeds=common) for one in (a, b)]
    else:  # other seeds on each side: nothing to pair but the clips
        sides = [_over_seeds(one.counts("errors")) for one in (a, b)]
    found = difference(*sides)
    return found, sentence(a.label, b.label, found, max(1, len(common)))


def _over_seeds(counts: Counts) -> Counts:
    return Counts(*(one.mean(axis=0, keepdims=True) for one in (counts.wrong, counts.total)))


def against_best(methods: Sequence[Method]) -> list[str]:
    """A sentence for each other method, against the one with the fewest word errors."""
    done = [one for one in methods if one.done]
    if len(done) < 2:
        return []
    best = min(done, key=lambda one: one.wer.value)
    return [compared(best, one)[1] for one in done if one is not best]


def on_front(methods: Sequence[Method], costs: Sequence[float]) -> list[Method]:
    """Those that nothing else beats in cost and WER together; `costs` as many as `methods`."""
    return [methods[at] for at in front(costs, [one.wer.value for one in methods])]
