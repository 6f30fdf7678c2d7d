"""What the margin costs and gives: the demo trained once with each, and scored.

    python benchmarks/margins.py [--recipe recipes/demo_cpu.yaml] [--seeds 1 2 3]

So many positions of the silence behind a clip are run one by one (`context.margin_positions`), and
one in 16 of the rest. Each is a whole run of the recipe, from the same start; what it learned last
is scored on the test split as it is trained, and at the full 30 s. The figures are measured; they
are printed, and kept in benchmarks/results/<machine>/margins.json. Runs kept there are not made
again.
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
MARGINS = (8, 32, 64, 128)
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Train and score with every margin and seed that is not kept yet; print all."""
    made = argparse.ArgumentParser(
        prog="benchmarks/margins.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--recipe", default="recipes/demo_cpu.yaml")
    made.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="SEED")
    args = made.parse_args(argv)
    console, target = Terminal(), RESULTS / machine_name() / "margins.json"
    kept = json.loads(target.read_text())["rows"] if target.exists() else []
    about = {"kind": "measured", "machine": machine(), "versions": versions()}
    for seed in args.seeds:
        for margin in MARGINS:
            row = {"recipe": args.recipe, "seed": seed, "margin": margin}
            if not any(row.items() <= known.items() for known in kept):
                kept.append(row | train_and_score(args.recipe, overrides(margin, seed), console))
                write_json(target, about | {"rows": kept})
    show(kept, console)
    return 0


def overrides(margin: int, seed: int) -> tuple[str, ...]:
    return (f"context.margin_positions={margin}", f"seed={seed}")


def train_and_score(recipe: str, changes: tuple[str, ...], console: Console) -> Row:
    """One run; its seconds an update, and error rates as trained and at 30 s."""
    from turns import Ours

    from peft_whisper.training.loop import updates_of

    session = open_session(load_recipe(recipe, list(changes)), Console(quiet=True))
    updates = updates_of(session.recipe.training, session.layout(1), len(session.splits.train))
    spent = 0.0
    with quiet_transformers(), progress(console, " ".join(changes), updates) as task:
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
    table = Table("margin", "seed", "s an update", "WER %", "at 30 s", "MER %", "at 30 s", "loops")
    for row in rows:
        rates = (
            f"{100 * row[side][name]:.1f}" for name in ("wer", "mer") for side in ("own", "full")
        )
        loops = row["own"]["loops"] + row["full"]["loops"]
        about = (f"{row[name]}" for name in ("margin", "seed"))
        table.add_row(*about, f"{row['update_s']:.2f}", *rates, f"{loops:g}")
    console.print(table)


if __name__ == "__main__":
    run(main)
