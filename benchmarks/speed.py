"""How fast, against the common stack: training and decoding, timed in turns on the same clips.

    python benchmarks/speed.py [recipes/demo_cpu.yaml] [--rounds 3]

The rival is benchmarks/rivals/hf_trainer.py, in the precision and with as many clips at once as are
fastest for it here. Both learn the recipe's whole run, an update each in turn, so that a busy
machine slows both; then both are scored, so that speed bought with quality shows. The figures are
measured; they are printed, and kept in benchmarks/results/<machine>/speed.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from peft_whisper.environment import machine, machine_name, versions
from peft_whisper.errors import run
from peft_whisper.files import write_json
from peft_whisper.model.base import quiet_transformers
from peft_whisper.recipe import with_training
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import Session, open_session
from peft_whisper.terminal import Terminal, progress

if TYPE_CHECKING:
    from rivals.hf_trainer import Example
    from turns import Ours, Rival

RESULTS = Path(__file__).parent / "results"
MICROS = (2, 4, 8)  # clips that pass the rival at once
BARS = {"training": 5.0, "training, 10 s": 2.5, "training, 30 s": 1.2, "evaluation": 4.0}
LENGTHS_S = (10.0, 30.0)
Rows = list[dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """Time and score both sides; print and store the ratios."""
    made = argparse.ArgumentParser(
        prog="benchmarks/speed.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("recipe", nargs="?", default="recipes/demo_cpu.yaml")
    made.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    made.add_argument("--rounds", type=int, default=3, help="of all that is not the training run")
    args = made.parse_intermixed_args(argv)
    if args.rounds < 1:
        made.error(f"--rounds {args.rounds}: write 1 or more")
    console = Terminal()
    session = open_session(load_recipe(args.recipe, args.overrides), console)
    about = {"kind": "measured", "recipe": session.recipe.name, "overrides": args.overrides}
    about |= {"machine": machine(), "versions": versions()}
    target = RESULTS / machine_name() / "speed.json"
    with quiet_transformers():
        for facts in compare(session, args.rounds, console):
            write_json(target, about | facts)  # what is known so far
    show(facts, console)
    console.print(f"kept: {target}")
    return 0


def compare(session: Session, rounds: int, console: Console) -> Iterator[dict[str, Any]]:
    """What is measured so far: `rows` of seconds a clip, `wer` of what was trained, by decoder."""
    from rivals.hf_trainer import make_processor, planned_updates, prepare
    from turns import Ours, Rival

    channel = session.recipe.data.channel
    train = prepare(session.splits.train, make_processor(session), channel)
    precision, micro, tried = fastest(session, train, console)
    updates = planned_updates(session)
    ours, rival = Ours(session, updates), Rival(session, precision, micro, updates, train)
    rows = [train_both(ours, rival, updates, console)]
    evaluation, wer, apart = score_both(ours, rival, rounds, console)
    rows.append(evaluation)
    del ours, rival
    rival_is = {"precision": precision, "micro": micro, "tried": tried}
    facts = {"rival": rival_is, "updates": updates, "rows": rows, "wer": wer, "apart": apart}
    yield facts
    for seconds in LENGTHS_S:
        rows.append(long_clips(session, seconds, precision, micro, rounds))
        yield facts


def fastest(session: Session, train: list[Example], console: Console) -> tuple[str, int, Rows]:
    """The rival's best precision and number of clips at once: one update each, after a first."""
    from rivals.hf_trainer import PRECISIONS
    from turns import Rival

    tried: Rows = []
    for precision in PRECISIONS:
        for micro in MICROS:
            rival = Rival(session, precision, micro, 2, train)
            rival.update()
            began = time.process_time()  # of the cores alone: other work must not choose
            rival.update()
            seconds = time.process_time() - began
            tried.append({"precision": precision, "micro": micro, "core_s": seconds})
    best = min(tried, key=lambda one: one["core_s"])
    shown = ", ".join(f"{one['precision']} x {one['micro']} {one['core_s']:.1f} s" for one in tried)
    console.print(
        f"an update of the rival, seconds of a core: {shown}; it runs in the fastest of these"
    )
    return best["precision"], best["micro"], tried


def train_both(ours: Ours, rival: Rival, updates: int, console: Console) -> dict[str, Any]:
    """The recipe's whole run, an update each in turn."""
    spent: tuple[list[float], list[float]] = ([], [])
    clips = 0
    with progress(console, "training both", updates) as task:
        for _ in range(updates):
            seconds, count = ours.update()
            spent[0].append(seconds)
            spent[1].append(rival.update())
            clips += count
            task.advance(1, f"{sum(spent[1]) / sum(spent[0]):.1f}x")
    # Totals, not medians: updates differ, and an eighth of ours run at the full 30 s.
    return row("training", sum(spent[0]) / clips, sum(spent[1]) / clips)


def score_both(
    ours: Ours, rival: Rival, rounds: int, console: Console
) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """Each with what it trained; then both decoders in turn with what ours trained.

    Returns seconds, WER of each, and of ours minus the rival's, with paired intervals.
    """
    from rivals.hf_trainer import prepare
    from turns import counted, scored

    from peft_whisper.scoring.metrics import difference

    session = ours.session
    test = prepare(session.splits.test, rival.processor, session.recipe.data.channel)
    rivals, full = rival.transcribe(test)[1], ours.transcribe(None)[1]
    wer = {"rival trained, rival decodes": scored(session, rivals).wer}
    wer["ours trained, ours decodes at 30 s"] = scored(session, full).wer
    rival.take(ours.weights())
    spent: tuple[list[float], list[float]] = ([], [])
    with progress(console, "decoding with both", rounds) as task:
        for _ in range(rounds):
            seconds, heard = ours.transcribe(session.context)
            theirs_s, theirs = rival.transcribe(test)
            spent[0].append(seconds)
            spent[1].append(theirs_s)
            task.advance()
    wer["ours trained, ours decodes"] = scored(session, heard).wer
    wer["ours trained, rival decodes"] = scored(session, theirs).wer
    clips, draws = len(session.splits.test), session.recipe.evaluation.bootstrap
    apart = {
        what: difference(
            counted(session, rivals), counted(session, texts), draws, session.recipe.seed
        )
        for what, texts in (("at its own length", heard), ("at 30 s", full))
    }
    return row("evaluation", median(spent[0]) / clips, median(spent[1]) / clips), wer, apart


def long_clips(
    session: Session, seconds: float, precision: str, micro: int, rounds: int
) -> dict[str, Any]:
    """An update of clips of `seconds`, each round: ours at their length and at 30 s, the rival's.

    Ours counts as its run would mix them: `context.full_share` of the updates at 30 s.
    """
    from rivals.hf_trainer import make_processor, prepare
    from rivals.joined import joined
    from turns import Ours, Rival

    clips = session.layout(1).clips_per_update
    recipe = with_training(session.recipe, updates=rounds + 1, epochs=None, warmup=0)
    session = replace(session, recipe=recipe)
    with tempfile.TemporaryDirectory() as folder:
        long = joined(session, seconds, clips * (rounds + 1), Path(folder))
        train = prepare(long.splits.train, make_processor(session), session.recipe.data.channel)
        sides = [Ours(long, rounds + 1, full_share=share) for share in (0.0, 1.0)]
        rival = Rival(long, precision, micro, rounds + 1, train)
        spent = [
            (sides[0].update()[0], sides[1].update()[0], rival.update()) for _ in range(rounds + 1)
        ]
    own, full, theirs = (median(column) / clips for column in zip(*spent[1:], strict=True))
    share = session.context.full_share
    made = row(f"training, {seconds:.0f} s", (1 - share) * own + share * full, theirs)
    return made | {"ours_own_length_s": own, "ours_full_length_s": full}


def row(what: str, ours: float, rival: float) -> dict[str, Any]:
    """Seconds a clip, their ratio, and the bar that is set to it."""
    return {
        "what": what,
        "ours_s": ours,
        "rival_s": rival,
        "ratio": rival / ours,
        "bar": BARS[what],
    }


def show(facts: dict[str, Any], console: Console) -> None:
    """Print what was measured."""
    table = Table("clips a second, measured", "ours", "rival", "ratio", "bar")
    for one in facts["rows"]:
        speeds = (f"{1 / one[side]:.2f}" for side in ("ours_s", "rival_s"))
        table.add_row(one["what"], *speeds, f"{one['ratio']:.2f}x", f"{one['bar']:g}x")
    console.print(table)
    scores = ", ".join(f"{who} {100 * rate:.1f} %" for who, rate in facts["wer"].items())
    console.print(f"WER after {facts['updates']} updates each: {scores}")
    for what, found in facts["apart"].items():
        low, high = found["interval"]
        console.print(
            f"ours {what} minus the rival: {100 * found['wer']:+.1f} points of WER "
            f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f}, paired)"
        )


if __name__ == "__main__":
    run(main)
