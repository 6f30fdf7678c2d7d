"""What a choice in a recipe costs and gives: the demo trained once with each, and scored.

    python benchmarks/choices.py [margin layers] [--recipe recipes/demo_cpu.yaml]

Each choice is a whole run of the recipe, from the same start; what it learned last is scored on the
test split as it is trained, and at the full 30 s. The figures are measured; they are printed, and
kept in benchmarks/results/<machine>/choices.json. Runs that are kept there are not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from peft_whisper.environment import machine, machine_name, versions
from peft_whisper.errors import run
from peft_whisper.files import write_json
from peft_whisper.model.base import quiet_transformers
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import Session, open_session
from peft_whisper.terminal import Terminal, progress

RESULTS = Path(__file__).parent / "results"
CHOICES = {
    "margin": [(f"context.margin_positions={margin}",) for margin in (8, 32, 64, 128, 1500)],
    "layers": [(f"adapter.encoder_layers={layers}",) for layers in ("all", "top 2", "none")],
}
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Train and score every choice that is not kept yet; print all."""
    made = argparse.ArgumentParser(
        prog="benchmarks/choices.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("groups", nargs="*", metavar="group", help=f"out of {', '.join(CHOICES)}")
    made.add_argument("--recipe", default="recipes/demo_cpu.yaml")
    made.add_argument("--fresh", action="store_true", help="make kept runs again")
    args = made.parse_args(argv)
    if unknown := set(args.groups) - CHOICES.keys():
        made.error(f"{', '.join(unknown)}: choose from {', '.join(CHOICES)}")
    console, target = Terminal(), RESULTS / machine_name() / "choices.json"
    kept = [] if args.fresh or not target.exists() else json.loads(target.read_text())["rows"]
    about = {"kind": "measured", "machine": machine(), "versions": versions()}
    for group in args.groups or CHOICES:
        for overrides in CHOICES[group]:
            row = {"recipe": args.recipe, "group": group, "overrides": list(overrides)}
            if any(row.items() <= known.items() for known in kept):
                continue
            kept.append(row | train_and_score(args.recipe, overrides, console))
            write_json(target, about | {"rows": kept})
    show(kept, console)
    return 0


def train_and_score(recipe: str, overrides: tuple[str, ...], console: Console) -> Row:
    """One run; its seconds an update, and error rates as trained and at 30 s."""
    from turns import Ours

    from peft_whisper.training.loop import updates_of

    session = open_session(load_recipe(recipe, list(overrides)), Console(quiet=True))
    updates = updates_of(session.recipe.training, session.layout(1), len(session.splits.train))
    spent = 0.0
    with quiet_transformers(), progress(console, " ".join(overrides), updates) as task:
        ours = Ours(session, updates)
        for _ in range(updates):
            spent += ours.update()[0]
            task.advance()
        own, full = (ours.transcribe(context)[1] for context in (session.context, None))
    return {"update_s": spent / updates, "own": scores(session, own), "full": scores(session, full)}


def scores(session: Session, texts: dict[str, str]) -> dict[str, float]:
    """Error rates, loops and empties of the test split."""
    from turns import scored

    found = scored(session, texts)
    return {name: getattr(found, name) for name in ("wer", "mer", "loops", "empties")}


def show(rows: list[Row], console: Console) -> None:
    """Print what was measured."""
    table = Table("choice", "s an update", "WER %", "at 30 s", "MER %", "at 30 s", "loops")
    for row in rows:
        rates = (
            f"{100 * row[side][name]:.1f}" for name in ("wer", "mer") for side in ("own", "full")
        )
        loops = row["own"]["loops"] + row["full"]["loops"]
        table.add_row(" ".join(row["overrides"]), f"{row['update_s']:.2f}", *rates, f"{loops:g}")
    console.print(table)


if __name__ == "__main__":
    run(main)
