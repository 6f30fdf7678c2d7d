"""R18: the whole test suite runs without a network, this process and those that it starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

ELSEWHERE = "192.0.2.1"  # of no machine (RFC 5737)
TRIES = f"""
import socket
for reach in (
    lambda: socket.create_connection(("{ELSEWHERE}", 443), 1),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("{ELSEWHERE}", 53)),
    lambda: socket.create_connection(("huggingface.co", 443), 1),
):
    try:
        reach()
        print("reached")
    except OSError as error:
        print(error)
"""


def reached(code: str, environment: dict[str, str] | None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("environment", [None, {"PATH": "/usr/bin"}, {"PYTHONPATH": "/somewhere"}])
def test_no_process_of_a_test_reaches_another_machine(environment: dict | None) -> None:
    said = reached(TRIES, environment)
    assert said.count("tests use no network") == 3 and "reached" not in said


def test_this_process_reaches_itself_alone() -> None:
    with pytest.raises(OSError, match="tests use no network"):
        socket.create_connection((ELSEWHERE, 443), 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), 1).close()
    print("\nsockets to other machines are refused in tests and in every process they start")


def test_processes_below_processes_are_without_it_too() -> None:
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TRIES!r}], check=True)"
    said = reached(inner, dict(os.environ))
    assert said.count("tests use no network") == 3 and "reached" not in said
