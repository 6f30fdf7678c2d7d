"""What checkpoints cost: the seconds of a save beside those of the updates between two.

    python benchmarks/saves.py [recipes/demo_cpu.yaml]

The recipe's own model, optimizer and speech; a few real updates, then a few real saves, synced to
the disk that holds outputs/. Validation and the final test are left out of the run's time, so the
share is somewhat too large.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

from peft_whisper.assembly import make_updater
from peft_whisper.errors import run
from peft_whisper.opening import choose_fastest
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import open_session
from peft_whisper.terminal import Terminal
from peft_whisper.train import make_course, start_accelerator

UPDATES, SAVES = 4, 7  # the first update is warm-up
BAR = 0.01


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 where saves take more than a hundredth of the time."""
    from peft_whisper.training import checkpoint
    from peft_whisper.training.standing import Standing
    from peft_whisper.training.stream import stream_updates
    from peft_whisper.training.tally import Meter, Selection

    made = argparse.ArgumentParser(prog="benchmarks/saves.py", description=__doc__)
    made.add_argument("recipe", nargs="?", default="recipes/demo_cpu.yaml")
    recipe, console = load_recipe(made.parse_args(argv).recipe), Terminal()
    accelerator = start_accelerator()
    session, _ = choose_fastest(open_session(recipe, console), accelerator.device.type, console)
    course = make_course(session, 1)
    updater, _ = make_updater(session, accelerator)
    updates, saves = [], []
    for batches in islice(stream_updates(course, 0), UPDATES):
        began = time.perf_counter()
        updater.step(batches, 1.0)
        updates.append(time.perf_counter() - began)
    Path(recipe.output).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=recipe.output) as scratch:
        for number in range(SAVES):
            at = Standing(number, False, Selection("mer"), Meter(1))
            began = time.perf_counter()
            folder = checkpoint.save_run(Path(scratch), at, updater, {})
            saves.append(time.perf_counter() - began)
            size = sum(path.stat().st_size for path in folder.iterdir())
            shutil.rmtree(folder)
    each, update = statistics.median(saves), statistics.mean(updates[1:])
    count = -(-course.updates // recipe.evaluation.every)
    share = count * each / (count * each + course.updates * update)
    console.print(
        f"{recipe.name}: a save of {size / 1e6:.1f} MB takes {1000 * each:.0f} ms (median of "
        f"{SAVES}), an update {update:.2f} s; {count} saves in {course.updates} updates are "
        f"{100 * share:.2f} % of training's time"
    )
    return int(share > BAR)


if __name__ == "__main__":
    run(main)
