"""P3 beside training: what reads, scores or merges ends by a signal with nothing half-written."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_runs import FULL, Runs

SOUNDS = ("25.wav", "26.wav", "27.wav")
COMMANDS = {  # its words, what it writes, and whether that comes whole or not at all
    "evaluate": (("outputs/whole", "--into", "made"), True),
    "explore": (("tiny.yaml", "--into", "made"), True),
    "merge": (("outputs/whole/adapter", "--into", "made"), True),
    "transcribe": (
        ("outputs/whole/adapter", *SOUNDS, "--to", "made", "--format", "txt", "json"),
        False,
    ),
}


def contents(path: Path) -> dict[str, bytes]:
    """Every file at or below `path`, hidden ones too."""
    if not path.is_dir():
        return {"": path.read_bytes()} if path.exists() else {}
    files = [one for one in path.rglob("*") if one.is_file()]
    return {str(one.relative_to(path)): one.read_bytes() for one in files}


def forget(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_leaves_the_whole_or_nothing(name: str, runs: Runs, whole: dict[str, Any]) -> None:
    words, at_once = COMMANDS[name]
    made = runs.place / "made"
    undisturbed = runs.command(f"peft_whisper.{name}", *words)
    assert undisturbed["code"] == 0, undisturbed["said"]
    expected = contents(made)
    assert expected
    forget(made)
    draw, count, stopped, kept = np.random.default_rng(6), 10 if FULL else 1, 0, 0
    while stopped < count:
        signum = (signal.SIGTERM, signal.SIGINT)[stopped % 2]
        moment = float(draw.uniform(0, undisturbed["seconds"]))
        done = runs.command(f"peft_whisper.{name}", *words, signal=[signum, moment])
        found = contents(made)
        assert found.items() <= expected.items()
        assert found in ({}, expected) or not at_once
        assert not list(runs.place.rglob(".staging-*"))
        if done["code"]:
            stopped, kept = stopped + 1, kept + len(found)
            assert done["code"] == 128 + signum, done["said"]
            assert "nothing is half-written" in done["said"] and "Traceback" not in done["said"]
        elif found:  # it was over before
            assert found == expected
        if not at_once:  # it goes on where it was
            again = runs.command(f"peft_whisper.{name}", *words)
            assert again["code"] in (0, 4) and contents(made) == expected, again["said"]
        forget(made)
    print(
        f"\n{name}: {stopped} signals, exit 143 and 130, {kept} files kept, each as without a "
        "signal, none half-written"
    )


def test_scores_are_replaced_together(runs: Runs, whole: dict[str, Any]) -> None:
    """Evaluated in its own folder, a run has its old scores and pages, or all the new ones."""
    shutil.copytree(runs.folder("whole"), runs.place / "outputs" / "copy")
    copy = runs.folder("copy")
    before = contents(copy)
    done = runs.command("peft_whisper.evaluate", "outputs/copy")
    assert done["code"] == 0, done["said"]
    after = contents(copy)
    assert after != before
    draw, count, stopped = np.random.default_rng(7), 10 if FULL else 1, 0
    while stopped < count:
        runs.forget("copy")
        shutil.copytree(runs.folder("whole"), copy)
        moment = float(draw.uniform(0, done["seconds"]))
        code = runs.command(
            "peft_whisper.evaluate", "outputs/copy", signal=[signal.SIGTERM, moment]
        )["code"]
        assert code in (0, 143)
        assert contents(copy) in (before, after)
        stopped += code == 143
    runs.forget("copy")
    print(f"\n{stopped} SIGTERMs while a run was scored again: all old files or all new ones")
