"""A process that has imported everything and forks a run for each line of JSON on stdin.

    {"command": "peft_whisper.train", "argv": [...], "faults": {...}}
    -> {"code": ..., "said": ..., "operations": [...]}

So a run starts in no time, and hundreds can be killed. Nothing is computed before: torch's threads
do not survive a fork. Faults:
  operation: K    die, as by SIGKILL, before the K-th change of a file below outputs/ (from 1)
  signal: [N, S]  send signal N after S seconds
  within: [N, K]  send itself signal N at the K-th change
  bytes: B        no file may grow beyond B bytes (RLIMIT_FSIZE)
  nan: [U, WHERE] at update U, make the loss or a gradient NaN
  environ: {...}  set in the environment
  fault: K        a fault of ours: RuntimeError at the K-th change of a file below outputs/
  reads: [F, ...] no fault: `operations` are then the files opened that lie in none of these
                  folders, Python's own or this repository's
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft_whisper
from peft_whisper import errors
from peft_whisper.scoring import listen
from peft_whisper.training.updater import Updater

OTHERS = (  # what a run imports late
    "accelerate",
    "jiwer",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "peft.tuners.lora.bnb",
    "peft.utils.transformers_weight_conversion",
    "transformers.models.whisper.modeling_whisper",
    "whisper_normalizer.english",
)
EXTRA = "peft_whisper.trying."  # the studio's, which needs gradio and is no run
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate"}


def watch(faults: dict[str, Any], told: Path) -> None:
    """Write down each change of a file below outputs/; before the chosen one, what was ordered."""
    count = 0
    signum, signal_at = faults.get("within", (0, None))
    here = str(Path("outputs").resolve())

    def hook(event: str, given: tuple) -> None:
        nonlocal count
        if event == "open":
            changes = isinstance(given[1], str) and set(given[1]) & set("wax+")
            changes = changes or (given[1] is None and given[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = event in WRITES
        path = str(given[0]) if given else ""
        if not changes or not os.path.abspath(path).startswith(here):
            return
        count += 1
        if count == faults.get("operation"):
            os._exit(137)
        if count == signal_at:
            os.kill(os.getpid(), signum)
        if count == faults.get("fault"):
            raise RuntimeError(f"injected, with {dict(os.environ)}")
        with open(told, "a", encoding="utf-8") as file:
            file.write(f"{event} {os.path.relpath(path, here)}\n")

    sys.addaudithook(hook)


def watch_reads(folders: list[str], told: Path) -> None:
    """Write down each file opened outside of `folders`."""
    own = [sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2]), "/proc", "/sys"]
    inside = tuple(os.path.realpath(one) for one in (*folders, *own))

    def hook(event: str, given: tuple) -> None:
        if event == "open" and isinstance(given[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(given[0]))
            if not path.startswith(inside) and path != str(told):
                with open(told, "a", encoding="utf-8") as file:
                    file.write(path + "\n")

    sys.addaudithook(hook)


def poison(update: int, where: str) -> None:
    """Make the loss or one gradient of `update` NaN."""
    stepped, count = Updater.step, 0

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == update:
            if where == "loss":
                micro = self._micro_step
                self._micro_step = lambda *given: micro(*given) * float("nan")
            else:
                clip = self.masters.clip

                def clipped(longest: float) -> Any:
                    self.masters.fp32[where].grad.view(-1)[0] = float("nan")
                    return clip(longest)

                self.masters.clip = clipped
        return stepped(self, *args, **kwargs)

    Updater.step = step  # type: ignore[method-assign]


def begin(order: dict[str, Any], said: int, told: Path) -> None:
    """In the forked process: run, and leave with its code."""
    faults = order["faults"]
    os.dup2(said, 1)
    os.dup2(said, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "bytes" in faults:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults["bytes"], resource.RLIM_INFINITY))
    os.environ.update(faults.get("environ", {}))
    if "nan" in faults:
        poison(*faults["nan"])
    if "reads" in faults:
        watch_reads(faults["reads"], told)
    else:
        watch(faults, told)
    sys.path.insert(0, "")  # as `python -m` has it
    command = importlib.import_module(order["command"])
    errors.run(lambda _argv: command.main(order["argv"]))


def serve(order: dict[str, Any]) -> dict[str, Any]:
    """Run one order to its end."""
    faults = order["faults"]
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "operations"
        with open(Path(folder) / "said", "w+b") as said:
            began = time.monotonic()
            child = os.fork()
            if not child:
                try:
                    begin(order, said.fileno(), told)
                finally:
                    sys.stdout.flush()
                    os._exit(_code())
            if "signal" in faults:
                time.sleep(faults["signal"][1])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, faults["signal"][0])
            _, status, used = os.wait4(child, 0)
            said.seek(0)
            words = said.read().decode()
        operations = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - began,
        "processor_s": used.ru_utime + used.ru_stime,
        "said": words,
        "operations": operations,
    }


def _code() -> int:
    """The exit code of the SystemExit that is passing through, as the interpreter would take it."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    import traceback

    traceback.print_exc()
    return 1


if __name__ == "__main__":
    own = (one.name for one in pkgutil.walk_packages(peft_whisper.__path__, "peft_whisper."))
    for module in (*own, *OTHERS):
        if not module.startswith(EXTRA):
            importlib.import_module(module)
    # A model that knows nothing is not let talk for long when it transcribes.
    listen.WINDOW_TOKENS, listen.LEAST_LOGPROB = 12, -1e9
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
