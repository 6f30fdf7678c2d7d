"""What `explore` says in a terminal: the page in short, for a look over ssh."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from peft_whisper.data.scripts import visible
from peft_whisper.data.survey import Lesson, Spread, Survey, by_cause
from peft_whisper.data.transcripts import Placed
from peft_whisper.scoring.findings import (
    Exploration,
    context_rows,
    length,
    odd_clips,
    share,
    speakers,
)

if TYPE_CHECKING:
    from rich.console import Console

NAMED = 10  # rejected clips, leaks, characters, words; the page has more
TEXT = 48  # characters of a transcript
BARS = "▁▂▃▄▅▆▇█"
BINS = 18


def show(found: Exploration, console: Console) -> None:
    """Print every fact of the page that needs no picture and no sound."""
    console.print(Text(visible(f"{found.name}: {' · '.join(found.about)}"), style="bold"))
    for table in _tables(found):
        if table.row_count:
            console.print()
            console.print(table)
    if found.lessons:
        lesson = found.lessons[len(found.lessons) // 2]  # neither the shortest nor the longest
        console.print()
        clip = lesson.placed.clip
        console.print(Text(f"what the model is taught, for instance by {visible(clip.id)}"))
        console.print(_steps(lesson))
        console.print(Text(_layout(lesson)))
    console.print()
    for note in found.splits.notes():
        console.print(Text(f"note: {visible(note)}", style="yellow"), soft_wrap=True)


def verdict(problem: str | None) -> Text:
    """The last word: whether training would start on this speech."""
    if problem is None:
        return Text("Nothing in this speech would stop training.", style="green")
    said = "\n".join(visible(line) for line in problem.splitlines())
    return Text(f"Training would stop: {said}", style="bold red")


def _tables(found: Exploration) -> Iterable[Table]:
    """In the order of the page."""
    yield _splits(found.survey)
    yield _rejected(found)
    yield _leaks(found)
    yield _spreads(found.survey.spreads)
    yield _odd(found.survey)
    yield _habits(found.survey)
    yield _characters(found.survey)
    yield _words(found.survey)
    yield _table(("what training will look like", ""), found.training)
    if found.outlook:
        head = ("encoder positions", "s", "micro-batches", "share")
        yield _table(head, context_rows(found.outlook), right=(0, 1, 2, 3))


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = (), more: int = 0
) -> Table:
    """Cells are texts as they are, never markup; `more` rows are only counted."""
    made = Table(*head, box=None, pad_edge=False, header_style="bold cyan")
    for at in right:
        made.columns[at].justify, made.columns[at].no_wrap = "right", True
    for row in rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    if more > 0:
        made.add_row(Text(f"and {more:,} more", style="dim"))
    return made


def _splits(survey: Survey) -> Table:
    head = ("split", "clips", "length", "transcripts", "rejected", "speakers", "languages")
    rows = [
        (
            one.name,
            f"{one.clips:,}",
            length(one.hours),
            f"{one.transcripts:,}",
            f"{one.rejected:,}",
            speakers(one),
            ", ".join(f"{language} {count:,}" for language, count in one.languages),
        )
        for one in survey.splits
    ]
    return _table(head, rows, right=(1, 2, 3, 4))


def _rejected(found: Exploration) -> Table:
    listed = [one for split in found.splits.rejected.values() for one in split]
    causes = ", ".join(f"{count} {cause}" for cause, count in by_cause(listed))
    rows = [(one.id, one.where, f"{one.cause}: {one.detail}") for one in listed[:NAMED]]
    head = ("rejected clip", "where", f"cause ({causes})")
    return _table(head, rows, more=len(listed) - NAMED)


def _leaks(found: Exploration) -> Table:
    leaks = found.splits.shared_audio
    rows = [(str(leak),) for leak in leaks[:NAMED]]
    head = f"leaks: sound in more than one split ({len(leaks)})"
    return _table((head,), rows, more=len(leaks) - NAMED)


def _spreads(spreads: Iterable[Spread]) -> Table:
    rows = []
    for spread in spreads:
        largest = max((float(v.max()) for v in spread.values.values()), default=0.0)
        name = spread.unit + (f" of {spread.limit}" if spread.limit else "")
        for split, values in spread.values.items():
            ends = (values.min(), *np.quantile(values, (0.5, 0.95)), values.max())
            figures = (f"{value:.{spread.decimals}f}" for value in ends)
            rows.append((name, split, *figures, _bars(values, largest)))
            name = ""  # once is enough
    head = ("per clip", "split", "least", "half", "95 %", "most", "0 to the most")
    made = _table(head, rows, right=(2, 3, 4, 5))
    made.columns[6].no_wrap = True
    return made


def _bars(values: np.ndarray, largest: float) -> str:
    """A histogram of one line; a bin that holds anything has a bar."""
    counts, _ = np.histogram(values, BINS, (0, largest))
    top = len(BARS) - 1
    return "".join(BARS[-(-int(c) * top // int(counts.max()))] if c else " " for c in counts)


def _odd(survey: Survey) -> Table:
    rows = [
        (
            why,
            f"{one.rate:.1f}",
            f"{one.clip.duration_s:.1f}",
            f"{one.clip.tokens}",
            f"{one.clip.id} ({one.split})",
            _cut(one.clip.text),
        )
        for why, one in odd_clips(survey)
    ]
    head = ("listen to", "characters/s", "s", "tokens", "clip", "transcript")
    return _table(head, rows, right=(1, 2, 3))


def _habits(survey: Survey) -> Table:
    sizes = {one.name: one.clips for one in survey.splits}
    rows = [
        (
            habit.name + (" (differs)" if habit.differs else ""),
            *(share(habit.counts.get(split, 0), size) for split, size in sizes.items()),
            ("without it: " if habit.usual else "") + _example(habit.examples[0])
            if habit.examples
            else "",
        )
        for habit in survey.habits
        if any(habit.counts.values())
    ]
    return _table(("transcripts that have", *sizes, "for instance"), rows, right=(1, 2, 3))


def _characters(survey: Survey) -> Table:
    rows = [
        (one.character, one.name, f"{one.clips}", f"{one.example.clip.id}: {one.around(TEXT)}")
        for one in survey.characters[:NAMED]
    ]
    head = ("rare", "character", "clips", "for instance")
    return _table(head, rows, right=(2,), more=len(survey.characters) - NAMED)


def _words(survey: Survey) -> Table:
    rows = [
        (one.word, f"{one.times}", f"{len(one.pieces)}", " | ".join(one.pieces))
        for one in survey.words[:NAMED]
    ]
    head = ("costly word", "times", "tokens", "the tokens (␣ is a space)")
    return _table(head, rows, right=(1, 2), more=len(survey.words) - NAMED)


def _steps(lesson: Lesson) -> Table:
    head = ("position", "token id", "token fed to decoder", "token id", "must predict", "in loss")
    rows = [
        (
            f"{step.position}",
            f"{step.fed_id}",
            step.fed,
            f"{step.target_id}",
            step.target,
            "yes" if step.in_loss else "no",
        )
        for step in lesson.steps
    ]
    return _table(head, rows, right=(0, 1, 3))


def _layout(lesson: Lesson) -> str:
    """What to see in the table of tokens, said in a line."""
    learned = sum(step.in_loss for step in lesson.steps)
    end = "is learned" if lesson.learns_to_stop else "IS NOT LEARNED"
    return (
        f"<|startoftranscript|> is fed {lesson.starts} x, <|endoftext|> {end}; "
        f"{learned} of {len(lesson.steps)} positions are in the loss"
    )


def _example(one: Placed) -> str:
    return f"{one.clip.id}: {_cut(one.clip.text)}"


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"
