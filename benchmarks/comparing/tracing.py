"""What each recipe would take of a named card: traced, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comparing.planned import Budget, Run, read_runs
from comparing.results import Facts, write_result
from rich.console import Console

from peft_whisper.errors import RecipeError, UserError
from peft_whisper.memory.cards import Card
from peft_whisper.plan import LABELS, LONGEST_S
from peft_whisper.planning.plans import make_plans
from peft_whisper.recipe import Recipe
from peft_whisper.terminal import progress


@dataclass(frozen=True)
class Place:
    """A card to trace on: the recipes that were run, or `recipes`, by the names of those."""

    card: Card
    recipes: Mapping[str, Run] = field(default_factory=dict)

    @property
    def name(self) -> str:
        bases = {one.recipe.base.model.rpartition("/")[2] for one in self.recipes.values()}
        sizes = " and ".join(sorted(one.removeprefix("whisper-") for one in bases))
        return f"{sizes} on {self.card.name}" if sizes else self.card.name

    @property
    def what(self) -> str:
        """What is traced, in words."""
        files = " and ".join(dict.fromkeys(one.source for one in self.recipes.values()))
        whose = f"the recipe of that name in {files}" if files else "the recipe"
        return f"what {whose} reserves for clips of 30 s, found as peft_whisper.plan does"

    def key(self, label: str, method: str) -> str | None:
        """What the trace for a recipe that was run is found by: the card, and what is traced.

        None where nothing of its name is.
        """
        if self.recipes:
            namesake = self.recipes.get(label)
            return namesake and f"{self.card.name}: {namesake.method}"
        return f"{self.card.name}: {method}"


def read_places(cards: Sequence[Card], files: Sequence[str], runs: Sequence[Run]) -> list[Place]:
    """The cards, with the recipes of `files` where there are any.

    Raises RecipeError for files without cards, and where a run's recipe has no namesake in them.
    """
    if not files:
        return [Place(card) for card in cards]
    if not cards:
        raise RecipeError("--card-recipes is what to trace on a card: name it too, --card a10")
    named = {one.label: one for one in read_runs(files, 1, Budget())}
    lacking = {one.label: None for one in runs if not one.rival and one.label not in named}
    if lacking:
        raise RecipeError(
            f"--card-recipes: nothing in {', '.join(files)} is called {', '.join(lacking)}; "
            f"found {', '.join(named)}"
        )
    return [Place(card, named) for card in cards]


def trace(
    runs: Sequence[Run], results: dict[str, Facts], into: Path, place: Place, console: Console
) -> None:
    """Add to every result of `runs` that lacks it what `place` would need, seeds being alike."""
    keys = {one.key: place.key(one.label, one.method) for one in runs if not one.rival}
    lacking = [
        one for one in runs if not one.rival and keys[one.key] not in results[one.key]["traced"]
    ]
    first = {keys[one.key]: one for one in lacking}
    with progress(console, f"tracing {place.name}", len(first)) as task:
        for key, run in first.items():
            try:
                found = _traced(place.recipes.get(run.label, run).recipe, place.card)
            except UserError as error:  # asked again next time: the network may have been away
                console.print(f"note: {run.label} on {place.name}: {error}", style="yellow")
                continue
            for one in lacking:
                if keys[one.key] == key:
                    results[one.key]["traced"][key] = found
                    write_result(into, results[one.key])
            task.advance(1, run.label)


def _traced(recipe: Recipe, card: Card) -> Facts:
    """GPU memory reserved for the longest clips that Whisper takes, as `plan` says it."""
    plan = make_plans([recipe], card, LONGEST_S, LABELS)[0].as_dict()
    return {name: plan[name] for name in ("reserved_bytes", "fits")}
