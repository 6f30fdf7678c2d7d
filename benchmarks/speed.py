"""How fast, against the common stack: training and decoding, timed in turns on the same clips.

    python benchmarks/speed.py [recipes/demo_cpu.yaml] [--seeds 1 2 3] [--rounds 3] [--add]

The rival is benchmarks/rivals/hf_trainer.py, in the precision and with as many clips at once as are
fastest for it here. Both learn the recipe's whole run, once with each seed, an update each in turn,
so that a busy machine slows both; then both are scored, so that speed bought with quality shows.
The figures are measured; they are printed, and kept in benchmarks/results/<machine>/speed.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from peft_whisper.environment import machine, machine_name, versions
from peft_whisper.errors import RecipeError, run
from peft_whisper.files import write_json
from peft_whisper.model.base import quiet_transformers
from peft_whisper.recipe import with_training
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import Session, open_session
from peft_whisper.terminal import Terminal, progress

if TYPE_CHECKING:
    from comparing.statistics import Counts
    from rivals.hf_trainer import Example
    from turns import Ours, Rival

RESULTS = Path(__file__).parent / "results"
MICROS = (2, 4, 8)  # clips that pass the rival at once
BARS = {"training": 5.0, "training, 10 s": 2.5, "training, 30 s": 1.2, "evaluation": 4.0}
LENGTHS_S = (10.0, 30.0)
RIVAL, OWN, FULL, LENT = (  # who trained, and what decoded it
    "the rival",
    "ours",
    "ours, decoded at 30 s",
    "ours, decoded by the rival",
)
PAIRS = ((RIVAL, OWN), (RIVAL, FULL), (OWN, FULL))
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
    made.add_argument("--seeds", type=int, nargs="+", default=[1], help="one whole run for each")
    made.add_argument("--rounds", type=int, default=3, help="of all that is not the training run")
    made.add_argument("--add", action="store_true", help="seeds to those that are kept already")
    args = made.parse_intermixed_args(argv)
    if args.rounds < 1:
        made.error(f"--rounds {args.rounds}: write 1 or more")
    console, target = Terminal(), RESULTS / machine_name() / "speed.json"
    recipes = [load_recipe(args.recipe, [*args.overrides, f"seed={seed}"]) for seed in args.seeds]
    about = {"kind": "measured", "recipe": recipes[0].name, "overrides": args.overrides}
    about |= {"machine": machine(), "versions": versions()}
    facts = known = kept(target, about) if args.add else {"runs": [], "rows": []}
    sessions = [open_session(recipe, console) for recipe in recipes]
    with quiet_transformers():
        for facts in compare(sessions, known, args.rounds, console):
            write_json(target, about | facts)  # what is known so far
    show(facts, console)
    console.print(f"kept: {target}")
    return 0


def kept(target: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call measured of the same."""
    found = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    if other := [name for name, value in about.items() if found.get(name) != value]:
        raise RecipeError(
            f"{target}: {', '.join(other)} {'is' if len(other) == 1 else 'are'} not what this call "
            "would measure: leave out --add to begin anew"
        )
    return {name: value for name, value in found.items() if name not in about}


def compare(
    sessions: Sequence[Session], facts: dict[str, Any], rounds: int, console: Console
) -> Iterator[dict[str, Any]]:
    """What is measured so far: `runs`, one for each seed, and `rows` of seconds a clip."""
    from rivals.hf_trainer import make_processor, prepare

    session = sessions[0]
    train = prepare(session.splits.train, make_processor(session), session.recipe.data.channel)
    if "rival" not in facts:
        precision, micro, tried = fastest(session, train, console)
        facts["rival"] = {"precision": precision, "micro": micro, "tried": tried}
    way = facts["rival"]["precision"], facts["rival"]["micro"]
    known = [one["seed"] for one in facts["runs"]]
    for one in sessions:
        if one.recipe.seed not in known:
            facts["runs"].append(train_and_score(one, train, *way, rounds, console))
            yield facts | summary(facts["runs"], facts["rows"])
    for seconds in LENGTHS_S:
        if f"training, {seconds:.0f} s" not in [row["what"] for row in facts["rows"]]:
            facts["rows"].append(long_clips(session, seconds, *way, rounds))
            yield facts | summary(facts["runs"], facts["rows"])


def train_and_score(
    session: Session,
    train: list[Example],
    precision: str,
    micro: int,
    rounds: int,
    console: Console,
) -> dict[str, Any]:
    """The whole run of one seed on both sides: seconds, and the errors of each test clip."""
    from rivals.hf_trainer import planned_updates
    from turns import Ours, Rival

    updates = planned_updates(session)
    ours, rival = Ours(session, updates), Rival(session, precision, micro, updates, train)
    said = {"seed": session.recipe.seed, "updates": updates}
    said["training"] = train_both(ours, rival, updates, console)
    return said | score_both(ours, rival, rounds, console)


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
            del rival
            gc.collect()  # a trainer and its callbacks hold each other, and its model with them
    best = min(tried, key=lambda one: one["core_s"])
    shown = ", ".join(f"{one['precision']} x {one['micro']} {one['core_s']:.1f} s" for one in tried)
    console.print(
        f"an update of the rival, seconds of a core: {shown}; it runs in the fastest of these"
    )
    return best["precision"], best["micro"], tried


def train_both(ours: Ours, rival: Rival, updates: int, console: Console) -> dict[str, float]:
    """The recipe's whole run, an update each in turn: seconds of each side, clips of one."""
    ours_s = rival_s = 0.0
    clips = 0
    with progress(console, f"training both, seed {ours.session.recipe.seed}", updates) as task:
        for _ in range(updates):
            seconds, count = ours.update()
            ours_s, rival_s, clips = ours_s + seconds, rival_s + rival.update(), clips + count
            task.advance(1, f"{rival_s / ours_s:.1f}x")
    return {"ours_s": ours_s, "rival_s": rival_s, "clips": clips}


def score_both(ours: Ours, rival: Rival, rounds: int, console: Console) -> dict[str, Any]:
    """Each decodes what it trained; then both decoders in turn what ours trained.

    Returns `evaluation`, seconds a clip, and `errors` and `words` of each test clip.
    """
    from rivals.hf_trainer import prepare
    from turns import counted

    session = ours.session
    test = prepare(session.splits.test, rival.processor, session.recipe.data.channel)
    texts = {RIVAL: rival.transcribe(test)[1], FULL: ours.transcribe(None)[1]}
    rival.take(ours.weights())
    spent: tuple[list[float], list[float]] = ([], [])
    with progress(console, "decoding with both", rounds) as task:
        for _ in range(rounds):
            seconds, texts[OWN] = ours.transcribe(session.context)
            theirs_s, texts[LENT] = rival.transcribe(test)
            spent[0].append(seconds / len(test))
            spent[1].append(theirs_s / len(test))
            task.advance()
    found = {who: counted(session, heard) for who, heard in texts.items()}
    return {
        "evaluation": {"ours_s": median(spent[0]), "rival_s": median(spent[1])},
        "words": [one.words for one in found[OWN]],
        "errors": {who: [one.errors for one in clips] for who, clips in found.items()},
    }


def summary(runs: Rows, rows: Rows) -> dict[str, Any]:
    """Of all seeds: rows of seconds a clip, WER of each system, and what lies between two."""
    from comparing.statistics import difference, estimate

    # Totals, not medians: updates differ.
    clips = sum(one["training"]["clips"] for one in runs)
    spent = [sum(one["training"][side] for one in runs) / clips for side in ("ours_s", "rival_s")]
    heard = [median(one["evaluation"][side] for one in runs) for side in ("ours_s", "rival_s")]
    measured = [row("training", *spent), row("evaluation", *heard)]
    counts = {who: errors_of(runs, who) for who in (RIVAL, OWN, FULL, LENT)}
    apart = [{"a": a, "b": b} | vars(difference(counts[a], counts[b])) for a, b in PAIRS]
    return {
        "rows": measured + [one for one in rows if one["what"] not in ("training", "evaluation")],
        "wer": {who: vars(estimate(one)) for who, one in counts.items()},
        "apart": apart,
    }


def errors_of(runs: Rows, who: str) -> Counts:
    """What `who` got wrong, of each seed and test clip."""
    import numpy as np
    from comparing.statistics import Counts

    wrong, words = ([one["errors"][who] for one in runs], [one["words"] for one in runs])
    return Counts(np.array(wrong, dtype=np.float64), np.array(words, dtype=np.float64))


def long_clips(
    session: Session, seconds: float, precision: str, micro: int, rounds: int
) -> dict[str, Any]:
    """An update of clips of `seconds`, each round: ours and the rival's."""
    from rivals.hf_trainer import make_processor, prepare
    from rivals.joined import joined
    from turns import Ours, Rival

    clips = session.layout(1).clips_per_update
    recipe = with_training(session.recipe, updates=rounds + 1, epochs=None, warmup=0)
    session = replace(session, recipe=recipe)
    with tempfile.TemporaryDirectory() as folder:
        long = joined(session, seconds, clips * (rounds + 1), Path(folder))
        train = prepare(long.splits.train, make_processor(session), session.recipe.data.channel)
        ours, rival = Ours(long, rounds + 1), Rival(long, precision, micro, rounds + 1, train)
        spent = [(ours.update()[0], rival.update()) for _ in range(rounds + 1)]
    own, theirs = (median(column) / clips for column in zip(*spent[1:], strict=True))
    return row(f"training, {seconds:.0f} s", own, theirs)


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
    from comparing.statistics import Estimate, sentence

    table = Table("clips a second, measured", "ours", "rival", "ratio", "bar")
    for one in facts["rows"]:
        speeds = (f"{1 / one[side]:.2f}" for side in ("ours_s", "rival_s"))
        table.add_row(one["what"], *speeds, f"{one['ratio']:.2f}x", f"{one['bar']:g}x")
    console.print(table)
    runs = facts["runs"]
    seeds = [str(one["seed"]) for one in runs]
    wer = Table(
        f"WER % after {runs[0]['updates']} updates", "all", "95 %", *map("seed {}".format, seeds)
    )
    for who, rate in facts["wer"].items():
        each = (f"{100 * sum(one['errors'][who]) / sum(one['words']):.1f}" for one in runs)
        ends = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"
        wer.add_row(who, f"{100 * rate['value']:.1f}", ends, *each)
    console.print(wer)
    for one in facts["apart"]:
        found = Estimate(one["value"], one["low"], one["high"])
        console.print(sentence(one["a"], one["b"], found, [run["seed"] for run in runs]))


if __name__ == "__main__":
    run(main)
