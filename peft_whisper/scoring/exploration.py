"""The page of `explore`: a recipe's speech before training, to read, look at and listen to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_whisper.data.survey import Spread, Survey, by_cause
from peft_whisper.data.transcripts import Habit, Placed
from peft_whisper.scoring.findings import (
    Exploration,
    context_rows,
    length,
    odd_clips,
    share,
    speakers,
)
from peft_whisper.scoring.lessons import (
    LESSON_STYLE,
    STEPS,
    clip_name,
    lesson_card,
    safe,
    transcript,
)
from peft_whisper.scoring.page import BLUE, GREEN, ORANGE, document, figure, player, section, table

if TYPE_CHECKING:
    from peft_whisper.data.audit import Clip
    from peft_whisper.data.splits import Splits

LISTED = 200  # rejected clips and leaks named on the page; the rest is counted
WORDS, CHARACTERS = 20, 30  # costly words and rare characters shown
TEXT, EXAMPLE = 300, 60  # characters of a transcript in lists; chosen rows have all of theirs
COLORS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
STYLE = """
.stop { border-color: var(--wrong) } .go { border-color: var(--right) }
.stop b { color: var(--wrong) } .go b { color: var(--right) }
.said { white-space: pre-line; overflow-wrap: anywhere }
.plots { display: flex; flex-wrap: wrap; gap: 1rem } .plots svg { flex: 1 1 17rem; min-width: 0 }
.differs { color: var(--wrong) } .text { overflow-wrap: anywhere }
.wide td:first-child { min-width: 11rem } .wide td:last-child { min-width: 24rem }
"""
RATES = (
    "Characters of transcript per second of sound. A clip far from the others often has the "
    "transcript of another one, or one that goes on after the sound ends: listen to them."
)


def page(found: Exploration, wave_of: Callable[[Clip], np.ndarray]) -> str:
    """The whole page as HTML; `wave_of` gives a clip's sound, float32 (samples,), 16 kHz."""
    parts = [
        _headline(found),
        section("Splits", _splits(found.survey)),
        _bad_clips(found.splits),
        _leaks(found.splits),
        section("How the clips are spread", _plots(found.survey.spreads)),
        section("Clips to listen to", f'<p class="faint">{RATES}</p>', _odd(found.survey, wave_of)),
        section("How the transcripts are written", *_transcripts(found.survey)),
        section("What training will look like", _ahead(found)),
        section("What the model is taught", STEPS, *map(lesson_card, found.lessons)),
    ]
    return document(f"{found.name}: the speech", *parts, style=STYLE + LESSON_STYLE)


def _headline(found: Exploration) -> str:
    outlook = found.outlook
    boxes = [(s.name, f"{s.clips:,}", f"clips, {length(s.hours)}") for s in found.survey.splits]
    if outlook:
        boxes += [("training", f"{outlook.updates:,}", "updates")]
        boxes += [("encoder work", f"{outlook.saved:.0%}", "less than at 30 s")]
    shown = "".join(
        f'<div><div class="faint">{name}</div><div class="big">{value}</div>'
        f'<div class="faint">{unit}</div></div>'
        for name, value, unit in boxes
    )
    notes = "".join(f'<p class="said">Note: {safe(note)}.</p>' for note in found.splits.notes())
    return (
        f"<h1>{escape(found.name)}: the speech</h1>"
        f'<p class="faint">{safe(" · ".join(found.about))}</p>{_verdict(found.problem)}'
        f'<div class="figures">{shown}</div>{notes}'
    )


def _verdict(problem: str | None) -> str:
    if problem is None:
        return '<div class="card go"><b>Nothing in this speech would stop training.</b></div>'
    said = f'<div class="said">{_lines(problem)}</div>'
    return f'<div class="card stop"><b>Training would stop:</b>{said}</div>'


def _lines(text: str) -> str:
    return "\n".join(map(safe, text.splitlines()))


def _splits(survey: Survey) -> str:
    head = (
        "split",
        "clips",
        "length",
        "different transcripts",
        "speakers",
        "languages",
        "rejected",
    )
    rows = [
        (
            one.name,
            one.clips,
            length(one.hours),
            one.transcripts,
            speakers(one),
            escape(", ".join(f"{language} {count:,}" for language, count in one.languages)),
            one.rejected,
        )
        for one in survey.splits
    ]
    return table(head, rows)


def _bad_clips(splits: Splits) -> str:
    rejected = [one for listed in splits.rejected.values() for one in listed]
    if not rejected:
        return section("Rejected clips", "<p>None.</p>")
    causes = ", ".join(f"{count:,} {cause}" for cause, count in by_cause(rejected))
    rows = (
        (clip_name(one.id), safe(one.where), escape(one.cause), safe(one.detail))
        for one in rejected[:LISTED]
    )
    listed = table(("clip", "where", "cause", "what was found"), rows)
    return section(
        "Rejected clips", f"<p>{len(rejected):,}: {causes}.</p>", listed, _more(rejected)
    )


def _more(rows: Sequence[Any], shown: int = LISTED) -> str:
    return f'<p class="faint">and {len(rows) - shown:,} more</p>' if len(rows) > shown else ""


def _leaks(splits: Splits) -> str:
    leaks = splits.shared_audio
    if not leaks:
        return ""
    names = [name for name, _ in splits.items()]
    rows = [
        (escape(leak.what), *(_ids(leak.ids.get(name, ())) for name in names))
        for leak in leaks[:LISTED]
    ]
    listed = table(("what is shared", *names), rows)
    return section("Leaks: sound in more than one split", listed, _more(leaks))


def _ids(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - 3:,} more" if len(ids) > 3 else ""
    return ", ".join(map(clip_name, ids[:3])) + more


def _plots(spreads: Iterable[Spread]) -> str:
    return (
        '<div class="plots">' + "".join(_histogram(one) for one in spreads if one.values) + "</div>"
    )


def _histogram(spread: Spread) -> str:
    """Shares of clips per bin, so that splits of different sizes lie over each other."""
    largest = max(float(values.max()) for values in spread.values.values())
    limit = f"; limit {spread.limit}" if spread.limit else ""

    def draw(axes: Any) -> None:
        bins = np.linspace(0, largest, 31)
        for split, values in spread.values.items():
            weights = np.full(len(values), 100 / len(values))
            style = {"histtype": "step", "lw": 1.4, "color": COLORS[split], "label": split}
            axes.hist(np.asarray(values), bins, weights=weights, **style)
        axes.set(
            title=f"{spread.name} ({spread.unit})",
            xlabel=f"largest {largest:,.4g}{limit}",
            ylabel="% of the split's clips",
        )
        axes.legend()

    return figure(draw, f"histogram of {spread.name} per split", width=4.2, height=3.0)


def _odd(survey: Survey, wave_of: Callable[[Clip], np.ndarray]) -> str:
    rows = [
        (why, f"{one.rate:.1f}", _heard(one, wave_of(one.clip))) for why, one in odd_clips(survey)
    ]
    return table(("", "characters/s", "clip and transcript"), rows)


def _heard(one: Placed, wave: np.ndarray) -> str:
    clip = one.clip
    about = f"{one.split}, {clip.duration_s:.1f} s, {clip.tokens} tokens"
    return (
        f'{clip_name(clip.id)} <span class="faint">{about}</span><br>'
        f"{transcript(clip.text, TEXT)}<br>{player(wave)}"
    )


def _transcripts(survey: Survey) -> Iterable[str]:
    seen = [habit for habit in survey.habits if any(habit.counts.values())]
    absent = ", ".join(habit.name for habit in survey.habits if habit not in seen)
    sizes = {one.name: one.clips for one in survey.splits}
    head = ("clips that have", *sizes, "for instance")
    habits = table(head, (_habit(habit, sizes) for habit in seen))
    yield f'<div class="wide">{habits}</div>'
    if absent:
        yield f'<p class="faint">In no transcript: {absent}.</p>'
    yield "<h3>Characters that few clips have</h3>"
    shown = survey.characters[:CHARACTERS]
    rows = (
        (
            f"<code>{safe(c.character)}</code>",
            escape(c.name),
            c.clips,
            f"{clip_name(c.example.clip.id)} {transcript(c.around(EXAMPLE))}",
        )
        for c in shown
    )
    yield table(("character", "name", "clips", "for instance"), rows) if shown else "<p>None.</p>"
    yield _more(survey.characters, CHARACTERS)
    yield "<h3>Words that Whisper has few tokens for</h3>"
    costly = (
        (f"<code>{safe(w.word)}</code>", w.times, len(w.pieces), safe(" | ".join(w.pieces)))
        for w in survey.words[:WORDS]
    )
    head = ("word", "times", "tokens", "the tokens, ␣ is a space")
    yield table(head, costly) if survey.words else "<p>None.</p>"
    yield _more(survey.words, WORDS)


def _habit(habit: Habit, sizes: dict[str, int]) -> Sequence[str]:
    mark = ' <b class="differs">differs between splits</b>' if habit.differs else ""
    without = '<span class="faint">without it:</span><br>' if habit.usual and habit.examples else ""
    return (
        f'{escape(habit.name)}{mark}<br><span class="faint">{escape(habit.why)}</span>',
        *(share(habit.counts.get(split, 0), size) for split, size in sizes.items()),
        without + "<br>".join(_example(one) for one in habit.examples),
    )


def _ahead(found: Exploration) -> str:
    if found.outlook is None:
        return "<p>There is nothing to train on.</p>"
    facts = table(
        ("", ""),
        ((escape(name), f"<span>{escape(value)}</span>") for name, value in found.training),
    )
    head = ("encoder positions", "seconds", "micro-batches", "share")
    planned = f"encoder input of the first {found.outlook.planned:,} updates' micro-batches"
    lengths = table(head, context_rows(found.outlook))
    return f"{facts}<details><summary>{planned}</summary>{lengths}</details>"


def _example(one: Placed) -> str:
    return f"{clip_name(one.clip.id)} {transcript(one.clip.text, EXAMPLE)}"
