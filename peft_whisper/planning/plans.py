"""Plans: what a recipe takes of a named card, for clips and transcripts of a stated length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft_whisper.data.epochs import Context
from peft_whisper.data.mel import SAMPLE_RATE, SAMPLES_PER_POSITION
from peft_whisper.memory.cards import Card
from peft_whisper.planning.jobs import Job, Shape, ask
from peft_whisper.positions import FULL_POSITIONS
from peft_whisper.recipe import Recipe, on_card
from peft_whisper.recipe_sections import MAX_TOKENS

SECONDS = SAMPLES_PER_POSITION / SAMPLE_RATE  # of one encoder position
PREFIX = 4  # tokens before the first word: start, language, task, no timestamps
VERDICTS = ("fits", "tight", "too large")  # from the best to the worst
UNCOMPILED = "Traced without training.compile, whose graphs keep other things"


@dataclass(frozen=True)
class Plan:
    """A recipe on a card; `found` is the worker's answer (see planning/worker.py)."""

    recipe: Recipe
    card: Card
    seconds: float
    labels: int
    ways: tuple[tuple[Shape, ...], ...]
    found: dict[str, Any]

    @property
    def training(self) -> dict[str, Any]:
        """The cost (planning.costs.Cost) of the update that takes most."""
        return self.found["training"]

    @property
    def decoding(self) -> dict[str, Any]:
        return self.found["decoding"]

    @property
    def larger(self) -> dict[str, Any]:
        """Of training and decoding, the one that takes more."""
        return max(self.training, self.decoding, key=lambda cost: cost["reserved"])

    @property
    def verdict(self) -> str:
        return max(self.training["verdict"], self.decoding["verdict"], key=VERDICTS.index)

    @property
    def margin(self) -> int:
        """Bytes of the card that nothing reserves; negative where it is too small."""
        return self.card.usable - self.larger["reserved"]

    @property
    def shape(self) -> Shape:
        """The micro-batch that takes most."""
        return self.ways[self.found["way"]][0]

    @property
    def lacks_bf16(self) -> bool:
        """Whether the recipe computes in a type that the card does not."""
        return self.recipe.training.precision == "bf16" and not self.card.bf16

    @property
    def largest_batch(self) -> int | None:
        """Most clips of that length at once; None where it was not asked for."""
        return self.found["largest"]["clips"] if "largest" in self.found else None

    def as_dict(self) -> dict[str, Any]:
        """What `plan --json` writes of it."""
        return {
            "recipe": self.recipe.name,
            "card": self.card.name,
            "seconds": self.seconds,
            "labels": self.labels,
            "usable_bytes": self.card.usable,
            "peak_bytes": self.larger["allocated"],
            "reserved_bytes": self.larger["reserved"],
            "verdict": self.verdict,
            "fits": self.verdict != "too large",
            "lacks_bf16": self.lacks_bf16,
            "largest_batch": self.largest_batch,
            "parts": self.larger["parts"],
            "repeated_flops": self.training["repeated"],
            "recompute": self.found["recompute"],
            "micro_batch": dict(zip(("clips", "positions", "labels"), self.shape, strict=True)),
            "training": self.training,
            "decoding": self.decoding,
            "largest": self.found.get("largest"),
            "changes": self.found.get("changes", []),
            "model": self.found["model"],
            "kind": "traced",
        }


def make_plans(
    recipes: Sequence[Recipe],
    card: Card,
    seconds: float,
    labels: int,
    done: Callable[[int], None] = lambda _number: None,
) -> list[Plan]:
    """Trace each recipe for clips of `seconds` and transcripts of `labels` tokens.

    `done(number)` is called as each is there. Raises the UserError of the first that failed.
    """
    recipes = [on_card(recipe, card.device, card.bf16) for recipe in recipes]
    jobs = [job_of(recipe, card, ways_of(recipe, seconds, labels), True) for recipe in recipes]
    answers = ask(jobs, done)
    return [
        Plan(recipe, card, seconds, labels, job.ways, found)
        for recipe, job, found in zip(recipes, jobs, answers, strict=True)
    ]


def job_of(recipe: Recipe, card: Card, ways: tuple, search: bool) -> Job:
    """What is to be traced of a recipe that makes updates of these `ways`."""
    longest = recipe.evaluation.max_tokens
    tokens = MAX_TOKENS if longest is None else min(MAX_TOKENS, PREFIX + longest)
    limits = {"usable": card.usable, "device": card.device, "flash": card.flash}
    limits |= {"workspaces": card.workspaces, "bf16": card.bf16}
    # The test is decoded at the full 30 s too.
    decoding = (recipe.evaluation.batch, FULL_POSITIONS, tokens)
    return Job(recipe, ways, decoding, limits, search)


def ways_of(recipe: Recipe, seconds: float, labels: int) -> tuple[tuple[Shape, ...], ...]:
    """The update that takes most of memory, as the only way that one may go."""
    positions = Context(recipe.context.margin_positions).positions(seconds)
    return (_micro_steps(recipe, positions, labels),)


def _micro_steps(recipe: Recipe, positions: int, labels: int) -> tuple[Shape, ...]:
    """An update's micro-batches: of several the first two, as later ones find what they leave."""
    training, count = recipe.training, 1
    most = training.micro_audio_s
    while most is not None and count < training.batch:
        if -(-training.batch // count) * positions * SECONDS <= most:
            break
        count += 1
    shape = (-(-training.batch // count), positions, labels)
    return (shape,) * min(2, count * training.accumulation)
