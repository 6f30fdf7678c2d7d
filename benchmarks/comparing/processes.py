"""A run in a process of its own: how it ended, told truly, and the last it said."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from peft_whisper.errors import DataError, NoRoomError, RecipeError, StateError

FINISHED, NO_ROOM, STOPPED, CRASHED = "finished", "no room", "stopped", "crashed"
ENDED = "ended"  # by a signal that somebody sent: the next call goes on with it
SIGNALLED = ("130", "143", "SIGINT", "SIGTERM", "SIGHUP")
KILLED = "SIGKILL"
SAID = 12  # last lines that are kept of a run that did not finish
LAUNCH = (
    *("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "-m"),
)
REFUSED = (RecipeError.exit_code, DataError.exit_code, StateError.exit_code)
# `accelerate launch` itself ends with 1 whatever happened; not told --quiet, it says what did.
_LAUNCHED = re.compile(r"returned non-zero exit status (\d+)\.|died with <Signals\.(\w+): \d+>")
_TRACEBACK = "Traceback (most recent call last):"
_UNSEEN = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FOLDERS = re.compile(r"(?<![\w.~])/(?:[^\s/\"':]+/)+(?=[^\s/\"':]+)")


@dataclass(frozen=True)
class Ending:
    """How a process ended; `said` is empty where it finished."""

    outcome: str  # finished, no room, stopped (by the program, which says why), ended or crashed
    exit: str  # "0", "75", "SIGKILL"
    said: tuple[str, ...]
    wall_s: float | None  # None: nobody timed it


def launched(module: str, arguments: Sequence[str], log: Path) -> Ending:
    """Run a command of the package through `accelerate launch`, its output kept in `log`."""
    return ran((*LAUNCH, module, *arguments), log)


def ran(command: Sequence[str], log: Path) -> Ending:
    """Run `python` with a command's arguments; if this process is ended, so is that one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("ab") as out:
        _hold(out)
        out.truncate(0)
        # A session of its own, so that all that it starts can be ended together.
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    text = log.read_text(encoding="utf-8", errors="replace")
    return ending(code, text, time.monotonic() - began)


def ending(code: int, text: str, wall_s: float) -> Ending:
    """What an exit code and the output together say."""
    if code == 0:
        return Ending(FINISHED, "0", (), wall_s)
    exit_ = signal.Signals(-code).name if code < 0 else str(code)
    inner = list(_LAUNCHED.finditer(text))
    if inner:
        exit_ = inner[-1][1] or inner[-1][2]
        text = text[: text.rfind(_TRACEBACK)]  # of the launcher, which adds nothing
    said = tuple(_plain(line) for line in text.splitlines() if line.strip())[-SAID:]
    if exit_ == KILLED:
        said = (*said, "killed from outside; the system does that where memory runs out")
    return Ending(_outcome(exit_), exit_, said, wall_s)


def _outcome(exit_: str) -> str:
    """Of a process that did not finish."""
    if exit_ == str(NoRoomError.exit_code):
        return NO_ROOM
    if exit_ in SIGNALLED:
        return ENDED
    return STOPPED if exit_ in map(str, REFUSED) else CRASHED


def _plain(line: str) -> str:
    """A line of output without colours, and without the folders of this machine."""
    return _FOLDERS.sub("", _UNSEEN.sub("", line.rpartition("\r")[2])).rstrip()


def wait_for(log: Path, console: Console) -> None:
    """Wait for a process that still writes to `log`: a comparison killed outright leaves it behind.

    Whatever it starts has the file as its output, and with it the lock.
    """
    if not log.exists():
        return
    with log.open("rb") as held:
        if not _hold(held, wait=False):
            console.print(f"a run that was left behind is still writing to {log}: waiting for it")
            _hold(held)


def _hold(file: IO[bytes], wait: bool = True) -> bool:
    """Lock an open file for every process that inherits it; False where another has it."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing tells who is left
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
