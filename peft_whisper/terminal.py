"""Progress for people: a live bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from peft_whisper.masking import masked

LINE_EVERY_S = 15.0


class Terminal(Console):
    """Plain lines, as wide as they are and without secrets.

    When its reader goes (`| head`), work goes on unseen.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False):
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, markup=False, soft_wrap=True)

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich prints, tokens and passwords masked."""
        super().print(*(masked(one) if isinstance(one, str) else one for one in objects), **how)

    def on_broken_pipe(self) -> None:
        """Rich would end the process here, in the middle of a training."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Task:
    """A running piece of work; `advance` moves it on and may change the note behind it."""

    def __init__(self, console: Console, title: str, total: int | None, bar: Progress | None):
        self.console, self.title, self.total, self.bar = console, title, total, bar
        self.done, self.earlier = 0, 0
        self.began = self.said = time.monotonic()
        self.row = bar.add_task(title, total=total, note="") if bar else None

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.bar is not None and self.row is not None:
            self.bar.update(self.row, advance=count, note=note)
        elif time.monotonic() - self.said >= LINE_EVERY_S:
            self.said = time.monotonic()
            self.console.print(f"{self.title} {self._state()}  {note}".rstrip(), highlight=False)

    def resume(self, count: int) -> None:
        """Begin where an earlier process ended; its pace is not known."""
        self.done = self.earlier = count
        if self.bar is not None and self.row is not None:
            self.bar.update(self.row, completed=count)

    def _state(self) -> str:
        here = self.done - self.earlier
        if not self.total or not here:
            return f"{self.done}/{self.total}" if self.earlier else str(self.done)
        left = (time.monotonic() - self.began) / here * (self.total - self.done)
        return f"{self.done}/{self.total}, {int(left // 60)}:{int(left % 60):02d} left"


@contextmanager
def progress(console: Console, title: str, total: int | None = None) -> Iterator[Task]:
    """Show work of `total` pieces (None: unknown) with its elapsed time and time left."""
    if not console.is_terminal:
        yield Task(console, title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Task(console, title, total, bar)
