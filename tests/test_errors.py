"""How a command ends: its exit code, and what a person reads, in real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peft_whisper import errors

REPOSITORY = Path(__file__).resolve().parent.parent
MAIN = """if True:
    import sys, time
    from peft_whisper.errors import *
    def main(argv):
        {body}
    run(main)
"""


def _hears_ctrl_c() -> None:
    """Else the child of a shell's background job, as CI may be, ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def command(body: str, **options) -> subprocess.Popen[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    options["preexec_fn"] = _hears_ctrl_c
    return subprocess.Popen(
        [sys.executable, "-c", MAIN.format(body=body)], cwd=REPOSITORY, **options
    )


def ended(body: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    process = command(body)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def ended_without_a_reader(body: str, unbuffered: str) -> tuple[int, str]:
    """(exit code, stderr) where the reader of stdout has gone before anything was written."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    process = command(body, stdout=writing, env=environment)
    os.close(writing)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("UserError", 1),
        ("RecipeError", 2),
        ("DataError", 3),
        ("StateError", 4),
        ("PublishError", 5),
        ("NoRoomError", 75),
    ],
)
def test_a_users_error_is_its_text_alone_and_its_exit_code(kind, code):
    assert ended(f"raise {kind}('what is wrong\\nand where')") == (
        code,
        "",
        "what is wrong\nand where\n",
    )


def test_every_users_error_has_an_exit_code_of_its_own():
    kinds = [errors.UserError, *errors.UserError.__subclasses__()]
    assert len({kind.exit_code for kind in kinds}) == len(kinds) == 6


@pytest.mark.parametrize(("value", "code"), [("None", 0), ("0", 0), ("7", 7)])
def test_what_main_returns_is_the_exit_code(value, code):
    assert ended(f"print('done'); return {value}") == (code, "done\n", "")


def test_a_fault_of_ours_keeps_its_traceback():
    code, _, err = ended("print(1 / 0)")
    assert code == 1
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


def test_ctrl_c_is_one_line_and_130():
    process = command("print('ready', flush=True); time.sleep(30)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    said = "what was finished is kept, nothing is half-written"
    assert (process.returncode, err) == (130, f"\ninterrupted; {said}\n")


@pytest.mark.parametrize(
    ("end", "code"), [("return 3", 3), ("raise DataError('bad')", 3), ("raise Stopped(15)", 143)]
)
def test_a_signal_on_the_way_out_changes_nothing(end: str, code: int):
    """The scheduler's second SIGTERM, for instance, or one that comes as all is done."""
    late = "lambda: os.kill(os.getpid(), signal.SIGTERM)"
    found = ended(f"import atexit, os, signal; atexit.register({late}); {end}")
    assert found[0] == code
    assert "Traceback" not in found[2]


@pytest.mark.parametrize("after", ["raise StateError('no shape')", "raise OSError(5)", "pass"])
def test_a_signal_that_a_library_made_an_error_of_its_own_of_is_still_the_signal(after: str):
    """As torch does ("could not determine the shape") where it asks a tensor for its storage."""
    body = f"""import os, signal
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        except BaseException:
            {after}"""
    code, _, err = ended(body)
    said = "what was finished is kept, nothing is half-written"
    assert (code, err) == (143, f"\nstopped by SIGTERM; {said}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_head_takes_its_line_and_nobody_complains(unbuffered):
    body = "[print('line', number) for number in range(100_000)]"
    shell = f'"{sys.executable}" -c "$BODY" | head -n 1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=REPOSITORY,
        env=os.environ | {"BODY": MAIN.format(body=body), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("line 0\n141\n", "")


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("print('short')", 141, ""),  # shorter than the buffer: noticed at the end only
        ("[print(n) for n in range(100_000)]", 141, ""),
        ("print('a'); return 3", 3, ""),
        ("print('a'); raise DataError('bad clip')", 3, "bad clip\n"),
        ("print('help'); sys.exit(0)", 141, ""),  # as argparse does after --help
    ],
)
def test_a_reader_that_has_gone_is_met_quietly(body, code, said):
    assert ended_without_a_reader(body, unbuffered="") == (code, said)


def test_a_reader_that_has_gone_is_met_quietly_in_a_container_too():
    """Containers set PYTHONUNBUFFERED, and then the first print fails."""
    assert ended_without_a_reader("print('a'); raise DataError('b')", unbuffered="1") == (141, "")


def test_argparse_keeps_its_own_exit_codes():
    assert ended("sys.exit(2)")[0] == 2
    assert ended("sys.exit('said')") == (1, "", "said\n")
    assert ended("sys.exit()")[0] == 0


def test_another_broken_pipe_is_no_readers_fault():
    code, _, err = ended("raise BrokenPipeError('a loader process died')")
    assert code == 1
    assert re.search("Traceback.*a loader process died", err, re.DOTALL)
