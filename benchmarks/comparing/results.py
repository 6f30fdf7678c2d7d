"""Results, one JSON file per run: written whole, read with doubt, set beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from comparing.planned import Run, differences
from comparing.processes import CRASHED, ENDED, FINISHED, NO_ROOM, STOPPED, Ending

from peft_whisper.files import write_text

FORMAT = "peft_whisper comparison, 3"
HELD: dict[str, type | tuple[type, ...]] = {  # by every result
    "key": str,
    "method": str,
    "label": str,
    "rival": bool,
    "seed": int,
    "held_equal": dict,
    "recipe": dict,
    "run": str,
    "ended": str,
    "outcome": str,
    "exit": str,
    "said": list,
    "wall_s": (float, int, type(None)),
    "traced": dict,
    "general": dict,  # by the speech's fingerprint
}
MEASURED = (
    *("data", "base", "training", "trainable_parameters"),
    *("best", "curve", "decoding", "scores", "clips"),
)
LACKING = object()  # of no kind
Facts = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """What a folder of results holds: by key, and sentences about what can't be read."""

    results: dict[str, Facts]
    problems: tuple[str, ...]


def read_kept(folder: Path) -> Kept:
    """Every result in `folder`; what is half-written or foreign is named, and left as it is."""
    results: dict[str, Facts] = {}
    problems = []
    for path in sorted(folder.glob("[!.]*.json")):  # what a killed write leaves begins with a dot
        found, problem = _read(path)
        if problem:
            problems.append(f"{path}: {problem}; it is not counted, delete it or put it right")
        elif found is not None:
            results[found["key"]] = found
    return Kept(results, tuple(problems))


def _read(path: Path) -> tuple[Facts | None, str | None]:
    """A result, or what is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, f"not JSON ({error})"
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None, f"no result of a comparison (expected format {FORMAT!r})"
    wrong = [name for name, kind in HELD.items() if not isinstance(found.get(name, LACKING), kind)]
    if found.get("outcome") not in (FINISHED, NO_ROOM, STOPPED, ENDED, CRASHED):
        wrong.append("outcome")
    if found.get("outcome") == FINISHED:
        held = found.get("measured")
        wrong += [
            f"measured.{name}"
            for name in MEASURED
            if not isinstance(held, dict) or name not in held
        ]
    if path.stem != found.get("key"):
        wrong.append("key")
    return (None, f"damaged ({', '.join(wrong)})") if wrong else (found, None)


def make_result(run: Run, end: Ending, measured: Facts | None) -> Facts:
    """A run's result; `measured` is None where it did not finish."""
    return {
        "format": FORMAT,
        "key": run.key,
        "method": run.method,
        "label": run.label,
        "rival": run.rival,
        "seed": run.recipe.seed,
        "recipe": run.settings,
        "held_equal": run.held_equal,
        "run": run.folder.as_posix(),
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "outcome": end.outcome,
        "exit": end.exit,
        "said": list(end.said),
        "wall_s": end.wall_s,
        "traced": {},
        "measured": measured,
        "general": {},
    }


def write_result(folder: Path, result: Facts) -> None:
    # Without line breaks: counts of every clip would take thousands of them.
    write_text(folder / f"{result['key']}.json", json.dumps(result, ensure_ascii=False) + "\n")


def comparable(results: Sequence[Facts], runs: Sequence[Run]) -> tuple[list[Facts], list[str]]:
    """Results that may stand in one table with `runs`, and sentences about those left out.

    What a recipe says can stay the same while the speech or the weights behind it change, so the
    fingerprints of both count too: those of the newest finished run of `runs`.
    """
    rules, keys = runs[0].held_equal, {run.key for run in runs}
    equal = [one for one in results if one["held_equal"] == rules]
    said = []
    if len(equal) < len(results):
        count = len(results) - len(equal)
        said.append(f"{count} kept results of other speech, evaluation or budget are not shown")
    done = [one for one in equal if one["outcome"] == FINISHED]
    own = [one for one in done if one["key"] in keys]
    if not done:
        return equal, said
    newest = max(own or done, key=lambda one: one["ended"])
    shown = []
    for one in equal:
        differing = differences(fingerprints(newest), fingerprints(one))
        if one["outcome"] == FINISHED and differing:
            said.append(
                f"{one['label']}, seed {one['seed']} ({one['key']}.json) is not comparable with "
                f"{newest['label']}: {'; '.join(differing)}. To make it anew, delete this file "
                f"and {one['run']}"
            )
        else:
            shown.append(one)
    return shown, said


def fingerprints(result: Facts) -> dict[str, str]:
    """Of the base and of each split that a finished run heard."""
    if result["outcome"] != FINISHED:
        return {}
    measured = result["measured"]
    found = {f"data.{name}": split["fingerprint"] for name, split in measured["data"].items()}
    return found | {"base": measured["base"]["fingerprint"]}
