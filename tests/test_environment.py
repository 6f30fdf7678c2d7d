"""What a process asks of its computer."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import nullcontext

import pytest

from peft_whisper.environment import one_machine
from peft_whisper.errors import RecipeError

FAULTS = """
import resource, torch
from peft_whisper.environment import keep_freed_memory
def cast():
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        embedding.bfloat16()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began
embedding = torch.ones(51864, 384)
before = cast()
keep_freed_memory()
cast()
print(before, cast())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_are_not_asked_of_the_system_again() -> None:
    """Ten casts of tiny.en's embedding, 40 MB each."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    print(f"pages asked of the system: {before}, then {after}")
    assert before > 10 * 4000 and after < 1000


@pytest.mark.parametrize(("here", "is_told"), [("2", False), ("1", True)])
def test_several_machines_are_refused(monkeypatch, here: str, is_told: bool) -> None:
    """Two processes are well, on one machine; their files are not elsewhere."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    told = pytest.raises(RecipeError, match="2 processes, 1 of them here")
    with told if is_told else nullcontext():
        one_machine()
