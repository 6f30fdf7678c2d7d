"""SIGTERM and SIGINT: a run that trains ends where nothing is lost, anything else at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from peft_whisper.errors import Stopped, stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ALL_SAVED = "every update is saved, the same command scores the run"


@contextmanager
def held() -> Iterator[None]:
    """While open, a signal waits: for the few steps of which all are done or none."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return

    def hear(signum: int, _frame: FrameType | None) -> None:
        heard.append(signum)

    taken = [one for one in SIGNALS if signal.getsignal(one) is not None]
    before = [(one, signal.signal(one, hear)) for one in taken]
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)
    for signum in heard:
        signal.raise_signal(signum)


class Stop:
    """Whether a signal has asked the process to end.

    The scheduler's second SIGTERM changes nothing; a second Ctrl-C ends at once what could not be
    waited for (the last checkpoint is whole then too).
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.saved = ""  # what is safe, where the process ends at once
        self.waits = False
        self.over = False  # all is written: a signal changes nothing any more
        self.say: Callable[[str], None] = lambda _text: None

    def listen(self) -> None:
        """Take over the process's signals."""
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup, or a shell's background
                signal.signal(signum, self._hear)

    @contextmanager
    def waiting(self, say: Callable[[str], None]) -> Iterator[None]:
        """While open, a signal is only noted, for `check` to raise; `say` tells of it."""
        self.waits, self.say = True, say
        try:
            yield
        finally:
            self.waits, self.saved = False, ALL_SAVED
        self.check(ALL_SAVED)  # one that came after the last update was saved

    def check(self, saved: str = "") -> None:
        """Raise Stopped where a signal came; `saved` says what is safe."""
        if self.signum is not None:
            raise Stopped(self.signum, saved)

    def _hear(self, signum: int, _frame: FrameType | None) -> None:
        if self.waits and self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.over:
            return
        if not self.waits:
            raise stopped(signum, self.saved)
        if self.signum is None:
            self.signum = signum
            self.say(f"{signal.Signals(signum).name}: the update is finished and saved first")
