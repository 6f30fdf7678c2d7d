"""How long an update of a recipe takes on this machine, evaluation left out: measured.

python benchmarks/pace.py recipes/demo_cpu.yaml [key.sub=value ...] --seconds 60 --into pace.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from peft_whisper.errors import run
from peft_whisper.files import write_json
from peft_whisper.model.base import quiet_transformers
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import Session, open_session
from peft_whisper.terminal import Terminal, progress

FEWEST = 3  # updates that are timed, after a first that is warm-up
MOST = 10_000


def main(argv: list[str] | None = None) -> int:
    """Train for a while, keep nothing of it but its speed."""
    made = argparse.ArgumentParser(prog="benchmarks/pace.py", description=__doc__)
    made.add_argument("recipe")
    made.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    made.add_argument("--seconds", type=float, default=60.0, help="to train (default: %(default)g)")
    made.add_argument("--into", type=Path, required=True, help="JSON file for the figure")
    args = made.parse_intermixed_args(argv)
    console = Terminal()
    # More updates than there is time for: the clips come in the order of a long run.
    overrides = [*args.overrides, f"training.updates={MOST}"]
    session = open_session(load_recipe(args.recipe, overrides), console)
    with quiet_transformers(), progress(console, "timing updates") as task:
        found = timed(session, args.seconds, lambda one: task.advance(1, f"{one:.2f} s"))
    write_json(args.into, found)
    console.print(f"{found['update_s']:.3f} s an update, over {found['updates']}, measured")
    return 0


def timed(session: Session, seconds: float, progress: Callable[[float], None]) -> dict[str, float]:
    """Seconds of an update, and those that frozen layers take once, before the first."""
    from turns import Ours

    cached = session.recipe.training.frozen_cache != "none"
    # What a cache holds grows with the updates: an epoch has every clip in it.
    planned = 1 + max(FEWEST, session.layout(1).updates_per_epoch) if cached else MOST
    with TemporaryDirectory() as folder:
        ours, spent = Ours(session, planned, Path(folder)), []
        ours.update()
        began = time.monotonic()
        while len(spent) < planned - 1:
            spent.append(ours.update()[0])
            progress(spent[-1])
            if len(spent) >= FEWEST and time.monotonic() - began >= seconds:
                break
        frozen = ours.course.frozen
        return {
            "update_s": sum(spent) / len(spent),
            "updates": len(spent),
            "frozen_s": frozen.seconds if frozen else 0.0,
        }


if __name__ == "__main__":
    run(main)
