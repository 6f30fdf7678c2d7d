"""What each recipe would take of a named card: traced, beside what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comparing.planned import Run
from comparing.results import Facts, write_result
from rich.console import Console

from peft_whisper.errors import UserError
from peft_whisper.memory.cards import Card
from peft_whisper.plan import LABELS, LONGEST_S
from peft_whisper.planning.plans import make_plans
from peft_whisper.terminal import progress


@dataclass(frozen=True)
class Place:
    """A card that recipes are traced on, with their own base or with another."""

    card: Card
    base: str | None = None

    @property
    def name(self) -> str:
        size = (self.base or "").rpartition("/")[2].removeprefix("whisper-")
        return f"{size} on {self.card.name}" if size else self.card.name


def trace(
    runs: Sequence[Run], results: dict[str, Facts], into: Path, place: Place, console: Console
) -> None:
    """Add to every result of `runs` that lacks it what `place` would need, seeds being alike."""
    lacking = [one for one in runs if place.name not in results[one.key]["traced"]]
    first = {one.method: one for one in lacking if not one.rival}
    with progress(console, f"tracing {place.name}", len(first)) as task:
        for method, run in first.items():
            try:
                found = _traced(run, place)
            except UserError as error:  # asked again next time: the network may have been away
                console.print(f"note: {run.label} on {place.name}: {error}", style="yellow")
                continue
            for one in lacking:
                if one.method == method:
                    results[one.key]["traced"][place.name] = found
                    write_result(into, results[one.key])
            task.advance(1, run.label)


def _traced(run: Run, place: Place) -> Facts:
    """GPU memory reserved for the longest clips that Whisper takes, as `plan` says it."""
    recipe = run.recipe
    if place.base is not None:
        base = recipe.base.model_copy(update={"model": place.base, "revision": None})
        recipe = recipe.model_copy(update={"base": base})
    plan = make_plans([recipe], place.card, LONGEST_S, LABELS)[0].as_dict()
    return {name: plan[name] for name in ("reserved_bytes", "fits")}
