"""P1, P2, P3: killed at any moment, a run ends as if it never had been."""

from __future__ import annotations

import signal
import time
from typing import Any

import numpy as np
from killed_runs import FULL, Runs


def finish(runs: Runs, name: str, whole: dict[str, Any]) -> bool:
    """Start the run again; whether it ends bit for bit as the undisturbed one."""
    done = runs(name)
    assert done["code"] == 0, done["said"]
    return runs.outcome(name) == whole["outcome"]


def test_a_kill_at_every_change_of_a_file(runs: Runs, whole: dict[str, Any]) -> None:
    """Every one from the first checkpoint's first file to the published adapter."""
    told = whole["operations"]
    first = next(i for i, row in enumerate(told) if "checkpoints" in row)
    last = max(i for i, row in enumerate(told) if "adapter" in row)
    points = range(first + 1, last + 2)
    chosen = points if FULL else points[7::35]
    same = 0
    for point in chosen:
        killed = runs("killed", operation=point)
        assert killed["code"] == 137, killed["said"]
        same += finish(runs, "killed", whole)
        runs.forget("killed")
    print(
        f"\nkilled before each of {len(chosen)} of {len(points)} file operations: "
        f"{same}/{len(chosen)} started and ended bit-identical"
    )
    assert same == len(chosen)


def test_kills_at_random_moments(runs: Runs, whole: dict[str, Any]) -> None:
    draw, count, kills, same, ended = np.random.default_rng(1), 50 if FULL else 2, 0, 0, 0
    while kills < count:
        over = False
        for _ in range(100):
            moment = float(draw.uniform(0, 1.2 * whole["seconds"]))
            done = runs("random", signal=[signal.SIGKILL, moment])
            # Killed on its way out, it is finished, and is not begun again.
            over = done["code"] == 0 or "holds a finished run" in done["said"]
            if over:
                break
            assert done["code"] == -signal.SIGKILL, done["said"]
            kills += 1
        ended += over
        same += runs.outcome("random") == whole["outcome"]
        runs.forget("random")
    print(
        f"\n{kills} random SIGKILLs in {ended} runs: every one started again, "
        f"{same}/{ended} ended bit-identical"
    )
    assert same == ended > 0


def test_sigterm_loses_nothing(runs: Runs, whole: dict[str, Any]) -> None:
    """At random moments, in a third of the cases with the scheduler's second signal."""
    draw, count, same, lost, slowest = np.random.default_rng(2), 50 if FULL else 2, 0, 0, 0.0
    stopped = 0
    while stopped < count:
        moment = float(draw.uniform(0, whole["seconds"]))
        began = time.monotonic()
        done = runs("termed", signal=[signal.SIGTERM, moment])
        took = time.monotonic() - began - moment
        if done["code"] == 0:  # it was over before
            runs.forget("termed")
            continue
        assert done["code"] == 143, (done["code"], done["said"])
        stopped, slowest = stopped + 1, max(slowest, took)
        log = runs.folder("termed") / "log.jsonl"
        made = log.read_text().count('"event": "train"') if log.exists() else 0
        kept = sorted((runs.folder("termed") / "checkpoints").glob("update-*"))
        lost += made - (int(kept[-1].name.split("-")[1]) if kept else 0)
        assert not (runs.folder("termed") / "report.html").exists()
        same += finish(runs, "termed", whole)
        runs.forget("termed")
    print(
        f"\n{stopped} SIGTERMs: exit 143 every time, {lost} updates lost, at most "
        f"{slowest:.1f} s to the end, {same}/{stopped} went on and ended bit-identical"
    )
    assert same == stopped and lost == 0


def test_sigterm_waits_for_one_update_at_most(runs: Runs, whole: dict[str, Any]) -> None:
    """Sent while the checkpoint of update 2 is written, it is heard after update 3."""
    told = whole["operations"]
    at = 1 + next(i for i, row in enumerate(told) if "update-000002" in row)
    done = runs("heard", within=[signal.SIGTERM, at])
    assert done["code"] == 143, done["said"]
    made = (runs.folder("heard") / "log.jsonl").read_text().count('"event": "train"')
    assert made == 3 and "update 3 is saved" in done["said"].replace("\n", " ")
    assert finish(runs, "heard", whole)
    runs.forget("heard")
    print("\nSIGTERM within a save: that save and one update later the run is saved and ended")


def test_a_damaged_checkpoint_is_never_gone_on_from(runs: Runs, whole: dict[str, Any]) -> None:
    from peft_whisper.errors import StateError
    from peft_whisper.files import check_seal

    draw, refused, count = np.random.default_rng(3), 0, 500
    newest = sorted((runs.folder("whole") / "checkpoints").glob("update-*"))[-1]
    files = sorted(path for path in newest.iterdir() if path.name != "MANIFEST.json")
    for number in range(count):
        path = files[number % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[draw.integers(len(good))] ^= 1 << int(draw.integers(8))
        path.write_bytes(bad)
        try:
            check_seal(newest)
        except StateError as error:
            refused += str(path) in str(error)
        path.write_bytes(good)
    cuts = 0
    for path in (*files, newest / "MANIFEST.json"):
        good = path.read_bytes()
        for length in {0, 1, len(good) // 2, len(good) - 2}:  # the last byte ends a line
            path.write_bytes(good[:length])
            try:
                check_seal(newest)
            except StateError:
                cuts += 1
            path.write_bytes(good)
        path.unlink()
        try:
            check_seal(newest)
        except StateError:
            cuts += 1
        path.write_bytes(good)
    check_seal(newest)
    print(
        f"\n{refused}/{count} bit flips refused, each naming its file; "
        f"{cuts}/{5 * (len(files) + 1)} truncated or missing files refused"
    )
    assert refused == count and cuts == 5 * (len(files) + 1)


def test_a_damaged_newest_checkpoint_falls_back_to_the_older(
    runs: Runs, whole: dict[str, Any]
) -> None:
    killed = runs("torn", operation=len(whole["operations"]) - 40)
    assert killed["code"] == 137
    newest = sorted((runs.folder("torn") / "checkpoints").glob("update-*"))[-1]
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    done = runs("torn")
    assert done["code"] == 0 and "not gone on from" in done["said"], done["said"]
    assert weights.name in done["said"].replace("\n", "")
    assert runs.outcome("torn") == whole["outcome"]
    runs.forget("torn")
