"""Runs of a tiny recipe in forked processes, to be killed, starved or left alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from test_train import REPOSITORY

ARGUMENTS = ("tiny.yaml", "training.updates=6", "evaluation.every=2", "checkpoints.keep_last=2")
ARGUMENTS += ("adapter.dropout=0.1",)  # drawn anew in each update, and after a kill the same
ARGUMENTS += ("data.validation.limit=3", "data.test.limit=2", "training.batch=2")  # for many runs
ARGUMENTS += ("evaluation.max_tokens=4", "evaluation.bootstrap=10")
FULL = "PROMISES" in os.environ  # `make promises`: every count as promised


class Runs:
    """Starts runs in `place`, each killed, starved or left alone as it is told.

    Each on one core: two threads for so small a model wait for each other most of the time, and
    take the core of the test process beside them (12 seconds of processors a run instead of 2).
    """

    def __init__(self, place: Path):
        self.place = place
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(place / "hub"),
        }
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py"))],
            cwd=place,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
            os.sched_setaffinity(self.server.pid, {cores[worker % len(cores)]})

    def __call__(self, name: str, *overrides: str, **faults: Any) -> dict[str, Any]:
        """Start or go on with the run of this name; returns its code, words and operations."""
        return self.command("peft_whisper.train", *ARGUMENTS, f"name={name}", *overrides, **faults)

    def command(self, name: str, *argv: str, **faults: Any) -> dict[str, Any]:
        """Run a command; returns its code, words and operations."""
        order = {"command": name, "argv": argv, "faults": faults}
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def folder(self, name: str) -> Path:
        return self.place / "outputs" / name

    def forget(self, name: str) -> None:
        shutil.rmtree(self.folder(name))

    def outcome(self, name: str) -> dict[str, bytes]:
        """What a finished run comes to, bit for bit: weights, optimizer, losses, errors."""
        folder = self.folder(name)
        last = sorted((folder / "checkpoints").glob("update-*"))[-1]
        rows = [json.loads(row) for row in (folder / "log.jsonl").read_text().splitlines()]
        timed = ("seconds", "clips_per_s", "audio_s_per_s")
        told = [
            {key: value for key, value in row.items() if key not in timed}
            for row in rows
            if row["event"] != "resume"
        ]
        metrics = json.loads((folder / "metrics.json").read_text())
        del metrics["training"]  # speed and memory
        return {
            "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
            "last": (last / "adapter_model.safetensors").read_bytes(),
            "optimizer": (last / "optimizer.safetensors").read_bytes(),
            "log": json.dumps(told).encode(),
            "scores": json.dumps(metrics).encode(),
        }
