"""What every test shares: no network, and the demo's real weights and speech, built once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sitecustomize  # of tests/offline: blocks the network in this process
from filelock import FileLock
from rich.console import Console

from peft_whisper.demo import FOLDER, build, is_whole
from peft_whisper.errors import DataError

REPOSITORY = Path(__file__).resolve().parent.parent
OFFLINE = str(Path(sitecustomize.__file__).parent)


def hook(event: str, given: tuple[Any, ...]) -> None:
    """Block it in every process that a test starts too, whatever environment it is given."""
    if event == "subprocess.Popen" and given[3] is not None:
        given[3]["PYTHONPATH"] = os.pathsep.join([OFFLINE, given[3].get("PYTHONPATH", "")])


os.environ["PYTHONPATH"] = os.pathsep.join([OFFLINE, os.environ.get("PYTHONPATH", "")])
sys.addaudithook(hook)


@pytest.fixture(scope="session", autouse=True)
def _answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for the next time is these tests' own, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command that is run in this process takes over its signals; they are given back."""
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo's assets: Whisper tiny.en and spoken prompts, fetched where they are missing.

    A machine without Debian's package tools can't have them, and skips; CI must not.
    """
    folder = REPOSITORY / FOLDER
    with FileLock(REPOSITORY / ".demo.lock"):  # several test processes need it at once
        if not is_whole(folder):
            os.environ[sitecustomize.ONLINE] = "1"
            try:
                build(folder, Console(quiet=True))
            except DataError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(str(error))
            finally:
                del os.environ[sitecustomize.ONLINE]
    return folder
