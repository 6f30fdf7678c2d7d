"""What each recipe would take of a named card: traced, beside what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comparing.planned import Run
from comparing.results import Facts, write_result
from rich.console import Console

from peft_whisper.errors import UserError
from peft_whisper.memory.cards import Card
from peft_whisper.plan import LABELS, LONGEST_S
from peft_whisper.planning.plans import make_plans
from peft_whisper.terminal import progress


def trace(
    runs: Sequence[Run], results: dict[str, Facts], into: Path, card: Card, console: Console
) -> None:
    """Add to every result of `runs` that lacks it what `card` would need, seeds being alike."""
    lacking = [one for one in runs if card.name not in results[one.key]["traced"]]
    first = {one.method: one for one in lacking if not one.rival}
    with progress(console, f"tracing on {card.name}", len(first)) as task:
        for method, run in first.items():
            found = _traced(run, card)
            for one in lacking:
                if one.method == method:
                    results[one.key]["traced"][card.name] = found
                    write_result(into, results[one.key])
            task.advance(1, run.label)


def _traced(run: Run, card: Card) -> Facts:
    """Peak and verdict for the longest clips that Whisper takes, as `plan` says them."""
    try:
        plan = make_plans([run.recipe], card, LONGEST_S, LABELS)[0].as_dict()
    except UserError as error:
        return {"failed": str(error)}
    names = ("peak_bytes", "reserved_bytes", "usable_bytes", "verdict", "fits", "recompute", "kind")
    return {name: plan[name] for name in names}
