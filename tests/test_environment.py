"""What a process asks of its computer."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
