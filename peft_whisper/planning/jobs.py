"""Asking for traces: jobs, the processes that answer them, and answers remembered on disk."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, Any

from peft_whisper.environment import cores
from peft_whisper.errors import DataError, PublishError, RecipeError, StateError, UserError
from peft_whisper.kept import code_fingerprint, recalled, remember
from peft_whisper.recipe import Recipe, settings

# What decides a trace: another report or another reader of sound leaves remembered answers right.
TRACED = (
    "assembly.py",
    "session.py",
    "data/batches.py",
    "memory",
    "model",
    "planning",
    "scoring/decode.py",
    "training",
)
# (clips, encoder positions, label tokens) of a micro-batch
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Job:
    """What is to be traced.

    `ways`: updates that the recipe may make, each a tuple of micro-batches; the largest counts.
    `limits`: usable bytes, device ("cuda" or "cpu") and whether it has flash attention.
    `search`: also look for the largest batch.
    """

    recipe: Recipe
    ways: tuple[tuple[Shape, ...], ...]
    decoding: Shape
    limits: dict[str, Any]
    search: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "recipe": settings(self.recipe),
            "ways": self.ways,
            "decoding": self.decoding,
            "limits": self.limits,
            "search": self.search,
        }

    def key(self) -> str:
        """Digest of all that the answer depends on."""
        tree, said = settings(self.recipe), self.as_dict()
        # Neither data, nor schedules, nor what is kept on disk, take memory of a card.
        memory = {name: tree[name] for name in ("base", "adapter")}
        deciding = ("precision", "optimizer", "recompute", "frozen_cache")
        training = {name: tree["training"][name] for name in deciding}
        sizes = Path(self.recipe.base.model) / "config.json"
        local = sizes.read_text(encoding="utf-8") if sizes.is_file() else None
        parts = [code_fingerprint(TRACED), memory, training, local]
        parts += [said[name] for name in ("ways", "decoding", "limits", "search")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def ask(
    jobs: Sequence[Job], done: Callable[[int], None] = lambda _number: None
) -> list[dict[str, Any]]:
    """Answers in the order of `jobs`, from the cache or from as many processes as there are cores.

    `done(number)` is called as each is there. Raises the UserError of the first that failed; then,
    or when interrupted, the other processes are ended.
    """
    workers = _Workers()

    def one(number: int) -> dict[str, Any]:
        job = jobs[number]
        try:
            found = _answer(job, workers)
        except UserError as error:
            name = f"{job.recipe.name}: " if len(jobs) > 1 else ""
            raise type(error)(f"{name}{error}") from error
        done(number)
        return found

    pool = ThreadPoolExecutor(max(1, cores()))
    try:
        asked = [pool.submit(one, number) for number in range(len(jobs))]
        ready, _ = wait(asked, return_when=FIRST_EXCEPTION)
        for failed in ready:
            failed.result()
        return [future.result() for future in asked]
    finally:
        workers.end()
        pool.shutdown(cancel_futures=True)


class _Workers:
    """The processes at work, each for one job after the other, so that none is left behind."""

    def __init__(self) -> None:
        self._lock, self._ended = Lock(), False
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []

    def run(self, job: Job) -> str:
        """What a process says of `job`; raises StateError where it ends without a word."""
        with self._lock:
            if self._ended:
                raise StateError("interrupted")
            if self._idle:
                worker = self._idle.pop()
            else:
                worker = _Worker()
                self._all.append(worker)
        said = worker.ask(json.dumps(job.as_dict()))
        if said is None:
            raise StateError(f"tracing {job.recipe.name} failed: {worker.complaint()}")
        with self._lock:
            self._idle.append(worker)
        return said

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for worker in self._all:
                worker.end()


class _Worker:
    """A process of `planning.worker`: it changes torch's insides, hence one of its own."""

    def __init__(self) -> None:
        self._complaints: IO[str] = TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "peft_whisper.planning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"},
        )

    def ask(self, line: str) -> str | None:
        """The line that answers `line`; None where the process ended before its end."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        said = self._process.stdout.readline()
        return said if said.endswith("\n") else None

    def complaint(self) -> str:
        """The last line it wrote on stderr, or else its exit code."""
        code = self._process.wait()
        self._complaints.seek(0)
        return (self._complaints.read().strip() or f"exit code {code}").splitlines()[-1]

    def end(self) -> None:
        """End it, whatever it does; what it was asked stays without an answer."""
        self._process.kill()
        self._process.wait()
        self._complaints.close()


def _answer(job: Job, workers: _Workers) -> dict[str, Any]:
    name = f"plan-{job.key()}"
    found: dict[str, Any] | None = recalled(name)
    if found is None:
        found = _traced(job, workers)
        remember(name, found)
    return found


def _traced(job: Job, workers: _Workers) -> dict[str, Any]:
    said = json.loads(workers.run(job))
    if "error" in said:
        raise _of_code(said["code"])(said["error"])
    return said["answer"]


def _of_code(code: int) -> type[UserError]:
    kinds = (RecipeError, DataError, StateError, PublishError)
    return next((kind for kind in kinds if kind.exit_code == code), StateError)
