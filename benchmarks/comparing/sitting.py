"""A sitting: makes what is missing of a comparison, run by run, and says how long it will take."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from comparing.general import General
from comparing.measures import measured, scores
from comparing.planned import Run
from comparing.processes import CRASHED, ENDED, FINISHED, Ending, launched, ran, wait_for
from comparing.results import Facts, make_result, write_result
from rich.console import Console

from peft_whisper.errors import RecipeError
from peft_whisper.scoring.record import read_record

PACE = Path(__file__).parent.parent / "pace.py"
RIVAL = Path(__file__).parent.parent / "rivals" / "compared.py"
TIMED_SHARE = 0.1  # of the budget's minutes, to learn how long an update takes
LAST = "README.md"  # the last file that a command writes of a run
LEFT_BEHIND = Ending(FINISHED, "0", (), None)  # by a comparison that was killed


def missing(
    runs: Sequence[Run], results: Mapping[str, Facts], speeches: Sequence[General]
) -> list[Run]:
    """Runs without a result, and finished ones that have not heard all general speech yet.

    Every recipe's first seed comes before any second one: what is ended early compares all.
    """
    todo = [run for run in runs if unmade(run, results) or unheard(results[run.key], speeches)]
    return sorted(todo, key=lambda run: run.recipe.seed)


def unmade(run: Run, results: Mapping[str, Facts]) -> bool:
    """Whether it was never begun, or somebody ended it: then it goes on."""
    return run.key not in results or results[run.key]["outcome"] == ENDED


def unheard(result: Facts, speeches: Sequence[General]) -> list[General]:
    """Speech that a finished run was not asked about, or that it failed to decode."""
    if result["outcome"] != FINISHED:
        return []
    heard = result["general"]
    return [
        one for one in speeches if "failed" in heard.get(one.fingerprint, {"failed": ["not asked"]})
    ]


def left_s(runs: Sequence[Run], results: Mapping[str, Facts]) -> float | None:
    """Seconds that `runs` will take by what kept ones of their recipe took, or else by most."""
    took: dict[str, list[float]] = {}
    for one in results.values():
        if one["outcome"] == FINISHED and one["wall_s"] is not None:
            took.setdefault(one["method"], []).append(one["wall_s"])
    if not took:
        return None
    usual = median(mean(times) for times in took.values())
    return sum(mean(took.get(run.method, [usual])) for run in runs if unmade(run, results))


def clock(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown until a run is done"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left"


def sit(
    runs: Sequence[Run],
    results: dict[str, Facts],
    into: Path,
    speeches: Sequence[General],
    console: Console,
) -> None:
    """Make what is missing of `runs`; each result is added to `results` and written to `into`."""
    todo = missing(runs, results, speeches)
    for number, run in enumerate(todo, start=1):
        left = clock(left_s(todo[number - 1 :], results))
        console.print(f"[{number}/{len(todo)}] {run.title}; {left}; output: {log_of(run)}")
        if unmade(run, results):
            results[run.key] = train(run, console)
            write_result(into, results[run.key])
        result = results[run.key]
        for speech in unheard(result, speeches):
            began = time.monotonic()
            result["general"][speech.fingerprint] = hear(run, speech, console)
            if result["wall_s"] is not None:
                result["wall_s"] += time.monotonic() - began
            write_result(into, result)
        console.print(f"    {said(result)}")


def log_of(run: Run) -> Path:
    return run.folder.with_name(f"{run.name}.log")


def train(run: Run, console: Console) -> Facts:
    """Train and score in a process of its own; one that is there already is read instead."""
    wait_for(log_of(run), console)
    end = LEFT_BEHIND if (run.folder / LAST).exists() else started(run, console)
    if end.outcome != FINISHED:
        return make_result(run, end, None)
    try:
        return make_result(run, end, measured(run.folder))
    except (OSError, ValueError, KeyError) as error:
        said = f"{run.folder.as_posix()} can't be read ({error}): delete it to make the run again"
        return make_result(run, Ending(CRASHED, "0", (said,), end.wall_s), None)


def started(run: Run, console: Console) -> Ending:
    """Make a run with the updates that its budget allows, and wait until it ends.

    One that was ended goes on from its last checkpoint; a rival's begins anew.
    """
    timed = time_updates(run, console)
    if timed.outcome != FINISHED:
        return timed
    own = (f"name={run.name}", f"output={run.folder.parent.as_posix()}", "track=")
    arguments = (str(run.file), *run.overrides, *budgeted(run), *own)
    if run.rival:
        shutil.rmtree(run.folder, ignore_errors=True)
        return ran((str(RIVAL), *arguments), log_of(run))
    return launched("peft_whisper.train", arguments, log_of(run))


def pace_of(run: Run) -> Path:
    """Where the time of an update is kept, for every seed."""
    return run.folder.with_name(f"pace-{run.method}.json")


def time_updates(run: Run, console: Console) -> Ending:
    """Where the budget is minutes: measure an update, unless an earlier run of the recipe did."""
    minutes, kept = run.budget.minutes, pace_of(run)
    log = kept.with_suffix(".log")
    wait_for(log, console)
    if minutes is None or kept.exists():
        return LEFT_BEHIND
    seconds = f"{60 * TIMED_SHARE * minutes:g}"
    arguments = (str(run.file), *run.overrides, "--seconds", seconds, "--into", str(kept))
    return ran((str(PACE), *arguments), log)


def budgeted(run: Run) -> tuple[str, ...]:
    """As many updates as the minutes of the budget allow; nothing to change without.

    Raises RecipeError where that is no more than the recipe's warm-up.
    """
    if run.budget.minutes is None:
        return ()
    pace = json.loads(pace_of(run).read_text(encoding="utf-8"))
    left_s = 60 * run.budget.minutes - pace["frozen_s"]
    updates, warmup = max(1, int(left_s / pace["update_s"])), run.recipe.training.warmup
    if updates <= warmup:
        raise RecipeError(
            f"--minutes {run.budget.minutes:g}: {run.label} makes {updates} updates in that, "
            f"and has a warm-up of {warmup}: give more minutes, or training.warmup={updates // 4}"
        )
    return (f"training.updates={updates}",)


def hear(run: Run, speech: General, console: Console) -> Facts:
    """Decode general speech with base and tuned model; what failed is kept with its last words."""
    about = {"speech": speech.name}
    if not run.folder.is_dir():
        return about | {"failed": [f"{run.folder.as_posix()} is gone"]}
    into = run.folder / f"general-{speech.fingerprint[:8]}"
    log = run.folder.with_name(f"{run.name}-general.log")
    wait_for(log, console)
    if not into.exists():  # it appears whole
        changes = (*speech.overrides, "--into", str(into))
        if run.rival:
            end = ran((str(RIVAL), str(run.folder / "recipe.yaml"), *changes), log)
        else:
            end = ran(("-m", "peft_whisper.evaluate", str(run.folder), *changes), log)
        if end.outcome != FINISHED:
            return about | {"failed": list(end.said)}
    return about | scores(read_record(into))


def said(result: Facts) -> str:
    """How a run went, in a line."""
    if result["outcome"] != FINISHED:
        last: Any = result["said"][-1] if result["said"] else "it said nothing"
        return f"{result['outcome']} (exit {result['exit']}): {last}"
    tuned = result["measured"]["scores"]["tuned"]
    line = f"finished: WER {100 * tuned['wer']:.1f} %"
    if result["wall_s"] is not None:
        line += f" after {result['wall_s'] / 60:.1f} min"
    for heard in result["general"].values():
        if "failed" in heard:
            line += f"; {heard['speech']} failed: {heard['failed'][-1]}"
    return line
