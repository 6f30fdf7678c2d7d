"""Runs of one recipe, over its seeds, as a row of the table: what it costs and what it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import numpy as np
from comparing.processes import FINISHED
from comparing.results import Facts
from comparing.statistics import Counts, Estimate, difference, estimate, front, sentence

from peft_whisper.recipe import leaves


@dataclass(frozen=True)
class Method:
    """A recipe's results, by seed; `number` is its place in tables and pictures, from 1.

    `reference` is the run whose base model, neither trained nor quantised, is what others are
    measured by; None: each run's own.
    """

    number: int
    label: str
    rival: bool
    runs: tuple[Facts, ...]
    reference: Facts | None = None

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
        return _match_errors(self.counts("errors"), self.counts("insertions"))

    @cached_property
    def padded(self) -> Estimate | None:
        """WER with each clip padded to 30 s, as other programs do, minus that at its own length.

        None for a rival, which always pads.
        """
        if self.rival:
            return None
        return difference(self.counts("errors"), self.counts("errors", "tuned_full_context"))

    def forgotten(self, fingerprint: str) -> Estimate | None:
        """WER of the tuned minus that of the base model on general speech; None: not measured."""
        heard = [one["general"].get(fingerprint, {}).get("clips") for one in self.done]
        if not heard or None in heard:
            return None
        base = heard
        if self.reference is not None:
            base = [self.reference["general"].get(fingerprint, {}).get("clips")] * len(heard)
        if None in base or len({tuple(one["words"]) for one in (*heard, *base)}) > 1:
            return None
        return difference(_counts(base, "base", "errors"), _counts(heard, "tuned", "errors"))

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
    def peaks_gib(self) -> list[float]:
        """Of each finished run, as measured."""
        return [one["measured"]["training"]["peak_bytes"] / 2**30 for one in self.done]

    def speeds(self, name: str) -> list[float]:
        """clips_per_s or audio_s_per_s of each finished run that was timed.

        What it took to run frozen layers once, before training, is training too.
        """
        found = []
        for training, frozen_s in (
            (one["measured"]["training"], one["measured"]["frozen_s"]) for one in self.done
        ):
            if training[name] is not None:
                spent = training["seconds"]
                found.append(training[name] * spent / (spent + frozen_s))
        return found

    @property
    def best_s(self) -> float:
        """Seconds of training up to the checkpoint that was kept, on average."""
        found = (one["measured"] for one in self.done)
        return mean(one["best"]["training_s"] + one["frozen_s"] for one in found)


def _counts(clips: Sequence[Facts], system: str, kind: str) -> Counts:
    wrong = np.array([one[system][kind] for one in clips], dtype=np.float64)
    unit = "chars" if kind == "char_errors" else "words"
    return Counts(wrong, np.array([one[unit] for one in clips], dtype=np.float64))


def _match_errors(errors: Counts, insertions: Counts) -> Estimate:
    return estimate(Counts(errors.wrong, errors.total + insertions.wrong))


def make_methods(results: Sequence[Facts], first: Mapping[str, str]) -> list[Method]:
    """Results by method: in the order and by the names of `first`, then what else was kept."""
    grouped: dict[str, list[Facts]] = {method: [] for method in first}
    for one in results:
        grouped.setdefault(one["method"], []).append(one)
    runs = [sorted(group, key=lambda one: one["seed"]) for group in grouped.values() if group]
    plain = next((one for group in runs for one in group if _has_plain_base(one)), None)
    return [
        Method(
            number,
            first.get(group[0]["method"], group[0]["label"]),
            group[0]["rival"],
            tuple(group),
            None if group[0]["rival"] else plain,
        )
        for number, group in enumerate(runs, start=1)
    ]


def _has_plain_base(result: Facts) -> bool:
    """Whether its base is decoded as it is: not quantised, nor by a rival's own rules."""
    quantised = result["recipe"]["base"].get("quantize")
    return result["outcome"] == FINISHED and not result["rival"] and not quantised


def base_rates(methods: Sequence[Method]) -> dict[str, Estimate] | None:
    """WER, MER and CER of the base before any training; None while no run has finished."""
    run = next((one.reference for one in methods if one.reference), None)
    run = run or next((one.done[0] for one in methods if one.done), None)
    if run is None:
        return None
    clips = [run["measured"]["clips"]]
    errors, insertions = (_counts(clips, "base", kind) for kind in ("errors", "insertions"))
    return {
        "WER": estimate(errors),
        "MER": _match_errors(errors, insertions),
        "CER": estimate(_counts(clips, "base", "char_errors")),
    }


def changes(methods: Sequence[Method]) -> list[str]:
    """What each method's recipe says that most others' do not, as `key: value`."""
    trees = [dict(leaves(one.runs[0]["recipe"])) for one in methods]
    keys = sorted({key for tree in trees for key in tree})
    usual = {
        key: Counter(str(tree.get(key)) for tree in trees).most_common(1)[0][0] for key in keys
    }
    return [
        ", ".join(
            f"{key}: {tree[key]}" for key in keys if key in tree and str(tree[key]) != usual[key]
        )
        for tree in trees
    ]


def compared(a: Method, b: Method) -> tuple[Estimate, str]:
    """WER of `b` minus that of `a` on the seeds that both have, and the sentence that follows."""
    common = sorted(set(a.seeds) & set(b.seeds))
    if common:
        sides = [one.counts("errors", seeds=common) for one in (a, b)]
    else:  # no seed on both sides: nothing to pair but the clips
        sides = [_over_seeds(one.counts("errors")) for one in (a, b)]
    found = difference(*sides)
    return found, sentence(a.label, b.label, found, common)


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
