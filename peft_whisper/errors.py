"""What is said to a user when something stops, and the exit code that goes with it."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from typing import ClassVar, NoReturn

from peft_whisper.masking import masked


class UserError(Exception):
    """Something the user can put right: its text is the whole message, without a traceback."""

    exit_code: ClassVar[int] = 1


class RecipeError(UserError):
    """The recipe or the arguments are wrong."""

    exit_code = 2


class DataError(UserError):
    """The speech or its transcripts are wrong."""

    exit_code = 3


class StateError(UserError):
    """The state is wrong: a checkpoint, a non-finite loss, a merge."""

    exit_code = 4


class PublishError(UserError):
    """Publishing did not work."""

    exit_code = 5


class NoRoomError(UserError):
    """Disk or memory is too small."""

    exit_code = 75


class Stopped(BaseException):
    """A signal asked the process to end, and what it holds is safe."""

    def __init__(self, signum: int, saved: str = ""):
        super().__init__(signum)
        self.signum, self.saved = signum, saved


_raised: list[Stopped] = []  # by signals: C++ or Rust may have made an error of its own of one


def stopped(signum: int, saved: str) -> Stopped:
    """What a signal's handler raises; `run` knows of it, whatever becomes of it on its way."""
    _raised.append(Stopped(signum, saved))
    return _raised[-1]


def is_disk_full(error: BaseException) -> bool:
    """Whether no more could be written: the disk, a quota or a limit on a file's size."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in full:
        return True
    # safetensors writes in Rust, and has the number in its sentence alone.
    found = re.search(r"os error (\d+)", str(error))
    return found is not None and int(found[1]) in full


def first_line(error: BaseException) -> str:
    """What `error` says, without the C++ stack that torch may put below."""
    return next(iter(str(error).splitlines()), type(error).__name__)


# What is quoted from a file must not move the terminal's cursor or change its colours.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
WHOLE = "what was finished is kept, nothing is half-written"
READER_GONE = 141  # 128 + SIGPIPE


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Run a command and leave the process with its exit code.

    A `UserError` is printed to stderr without a traceback; Ctrl-C is one line and 130, SIGTERM
    likewise and 143, as shells report it; a reader
    that closed our stdout (`| head`) is quiet; a file that can't be read or written is one line
    with its name. Any other exception keeps its traceback. Tokens and passwords are masked.
    """
    _prepare()
    try:
        try:
            code: str | int | None = main(None)
        finally:
            _settle()
        if _raised:  # and something swallowed it
            raise _raised[-1]
    except BaseException as error:
        code = _told(_raised[-1] if _raised and isinstance(error, Exception) else error)
    if _flush_failed():
        code = code or READER_GONE
    sys.exit(code)


def _told(found: BaseException) -> str | int | None:
    """Say why a command ended; returns its exit code. What is not ours to explain is raised."""
    try:
        raise found
    except SystemExit as end:  # of argparse, after --help
        return end.code
    except UserError as error:
        print(masked(_CONTROLS.sub("?", str(error))), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not (_flush_failed() or _reader_is_gone()):
            raise  # some other pipe broke, for instance a loader process: that is news
        return READER_GONE
    except shutil.Error as error:  # of copytree: (source, target, reason) for each file
        reasons = [str(reason) for *_, reason in error.args[0]]
        print(f"{len(reasons)} files could not be copied: {reasons[0]}", file=sys.stderr)
        full = "No space left" in reasons[0]
        return NoRoomError.exit_code if full else RecipeError.exit_code
    except OSError as error:
        full = is_disk_full(error)
        if error.filename is None and not full:
            raise
        print(masked(f"{error.filename or 'a file'}: {error.strerror}"), file=sys.stderr)
        return NoRoomError.exit_code if full else RecipeError.exit_code
    except Stopped as stop:
        name = signal.Signals(stop.signum).name
        print(f"\nstopped by {name}; {stop.saved or 'nothing to save yet'}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print(f"\ninterrupted; {WHOLE}", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        print(masked(traceback.format_exc()), end="", file=sys.stderr)
        return 1


def _prepare() -> None:
    """Hear SIGTERM, where it is not ignored; a terminal without Unicode shows ? and lives."""
    _raised.clear()
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _settle() -> None:
    """What the command came to is decided: a signal on the way out no longer changes it.

    The scheduler's second SIGTERM is ignored, a second Ctrl-C ends the process as it stands.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end(signum: int, _frame: object) -> NoReturn:
    """Leave through every `finally`, where half made files are deleted."""
    raise stopped(signum, WHOLE)


def _flush_failed() -> bool:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes again on its way out and would complain: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _reader_is_gone() -> bool:
    """Ask the pipe itself: with PYTHONUNBUFFERED there is nothing left to flush."""
    if not hasattr(select, "poll"):  # Windows
        return False
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # errors are reported without being asked for
    return any(event & select.POLLERR for _, event in pipe.poll(0))
