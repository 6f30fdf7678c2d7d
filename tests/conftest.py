"""What every test shares: the demo's real weights and speech, built once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from peft_whisper.demo import FOLDER, build, is_whole
from peft_whisper.errors import DataError

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo's assets: Whisper tiny.en and spoken prompts, fetched where they are missing.

    A machine without Debian's package tools can't have them, and skips; CI must not.
    """
    folder = REPOSITORY / FOLDER
    with FileLock(REPOSITORY / ".demo.lock"):  # several test processes need it at once
        if not is_whole(folder):
            try:
                build(folder, Console(quiet=True))
            except DataError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(str(error))
    return folder
