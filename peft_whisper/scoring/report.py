"""A run's report: the table a terminal shows, and a page to read, look at and listen to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.files import write_text
from peft_whisper.scoring.metrics import Aligned, align_words
from peft_whisper.scoring.normalize import normalizer as normalizer_named
from peft_whisper.scoring.page import BLUE, GREEN, ORANGE, document, figure, player, section, table
from peft_whisper.scoring.record import (
    CONTEXTS,
    SYSTEMS,
    Record,
    interval,
    percent,
    read_record,
    verdict,
)

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

SHOWN = 8  # clips with a player in each list: a page of about a megabyte
COLUMNS = (
    "WER",
    "95 % interval",
    "MER",
    "CER",
    "WIL",
    "S",
    "D",
    "I",
    "loops",
    "empty",
    ">100 %",
)
IN_TERMINAL = ("WER", "95 % interval", "MER", "CER", "I", "loops", "empty")  # 80 columns
MEANING = (
    "WER: errors per reference word; it passes 100 % where words are made up. MER and WIL are "
    "bounded by 100 %. S, D, I: words substituted, deleted, inserted. loops: clips whose text "
    "repeats itself; empty: clips answered with nothing; >100 %: share of clips with more errors "
    "than words."
)
STYLE = """
.diff { margin: .25rem 0 } .diff b { font-weight: 500; color: var(--faint); display: inline-block;
  min-width: 3.6rem }
.diff .sub { color: var(--wrong); border-bottom: 2px solid var(--wrong) }
.diff .ins { color: var(--added); border-bottom: 2px dotted var(--added) }
.scores td { white-space: nowrap } .scores :is(td, th) { padding: .3rem .5rem }
.diff del { color: var(--faint) }
"""


def print_scores(metrics: dict[str, Any], console: Console) -> None:
    """Show every system's rates in the terminal, and what they say."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("test split", no_wrap=True)
    for name in IN_TERMINAL:
        shown.add_column(name, justify="right", no_wrap=True)
    for system, title in SYSTEMS.items():
        cells = dict(zip(COLUMNS, _cells(metrics[system]), strict=True))
        shown.add_row(title, *(cells[name] for name in IN_TERMINAL))
    console.print()
    console.print(shown)
    console.print()
    console.print(verdict(metrics))


def _cells(score: dict[str, Any]) -> list[str]:
    rates = [percent(score[name]) for name in ("mer", "cer", "wil")]
    names = ("substitutions", "deletions", "insertions", "loops", "empties")
    return [
        percent(score["wer"]),
        interval(score["wer_interval"]),
        *rates,
        *(str(score[name]) for name in names),
        percent(score["over_100"]),
    ]


def write_report(run: Path, wave_of: Callable[[str], np.ndarray], normalizer: str) -> None:
    """Write report.html into a scored run's folder.

    `wave_of(clip id)` gives a test clip's sound, float32 (samples,), 16 kHz; `normalizer` is the
    one that the words were counted with.
    """
    record = read_record(run)
    aligned = Differences(normalizer)
    worst, improved = chosen_clips(record.predictions)
    parts = [
        _headline(record),
        section("Scores", _scores(record)),
        section("Learning curves", _curves(record)),
        _clips("What it still gets wrong", worst, wave_of, aligned),
        _clips("What it learned", improved, wave_of, aligned),
        section("Every test clip", _all_clips(record, aligned)),
        section("How it was made", _made(record)),
    ]
    write_text(run / "report.html", document(f"{record.name}: report", *parts, style=STYLE))


def _headline(record: Record) -> str:
    metrics = record.metrics
    about = [record.trained, record.environment["base"]["model"], record.note]
    figures = [
        ("base", percent(metrics["base"]["wer"]), interval(metrics["base"]["wer_interval"])),
        ("tuned", percent(metrics["tuned"]["wer"]), interval(metrics["tuned"]["wer_interval"])),
    ]
    boxes = "".join(
        f'<div><div class="faint">WER, {name}</div><div class="big">{rate}</div>'
        f'<div class="faint">{ends}</div></div>'
        for name, rate, ends in figures
    )
    alone = " All test clips are of one speaker." if record.one_speaker else ""
    return (
        f"<h1>{escape(record.name)}</h1>"
        f'<p class="faint">{escape(" · ".join(part for part in about if part))}</p>'
        f'<div class="figures">{boxes}</div><p>{escape(verdict(metrics))}{alone}</p>'
    )


def _scores(record: Record) -> str:
    rows = [
        [escape(title), *map(escape, _cells(record.metrics[system]))]
        for system, title in SYSTEMS.items()
    ]
    rule = escape(f"Normaliser: {record.metrics['tuned']['normalizer']}.")
    scores = f'<div class="scores">{table(["", *map(escape, COLUMNS)], rows)}</div>'
    return f'{scores}<p class="faint">{rule} {CONTEXTS} {escape(MEANING)}</p>'


def _curves(record: Record) -> str:
    """Loss per update, and validation rates per evaluated update with the kept one marked."""
    steps, checks = record.events_of("train"), record.events_of("validation")
    best = record.environment.get("best")

    def draw(axes: Any) -> None:
        loss, rates = axes
        loss.plot(
            [s["update"] for s in steps],
            [s["loss"] for s in steps],
            color=BLUE,
            label="training",
            lw=1.2,
        )
        at = [check["update"] for check in checks]
        loss.plot(at, [c["loss"] for c in checks], "o-", color=ORANGE, label="validation", ms=4)
        loss.legend()
        loss.set(title="loss per token", xlabel="update", ylim=(0, None))
        for name, color in (("wer", ORANGE), ("mer", GREEN)):
            values = [100 * check[name] for check in checks]
            rates.plot(at, values, "o-", color=color, label=name.upper(), ms=4)
        if best:
            rates.axvline(best["update"], color=GREEN, ls=":", label="kept")
        rates.set(title="validation, decoded (%)", xlabel="update", ylim=(0, None))
        rates.legend()

    return figure(draw, "training loss and validation error rates over updates", columns=2)


class Differences:
    """Aligns rows of predictions.jsonl word by word, in colour."""

    def __init__(self, normalizer: str):
        self.clean = normalizer_named(normalizer)

    def html(self, reference: str, hypothesis: str) -> str:
        """The hypothesis, normalised, with what differs from the reference marked."""
        words = align_words(reference, hypothesis, self.clean)
        return " ".join(map(_word, words)) or '<span class="faint">(nothing)</span>'


def _word(aligned: Aligned) -> str:
    operation, said, heard = aligned
    if operation == "equal":
        return escape(heard or "")
    if operation == "delete":
        return f"<del>{escape(said or '')}</del>"
    if operation == "insert":
        return f'<span class="ins">{escape(heard or "")}</span>'
    return f'<span class="sub" title="said: {escape(said or "")}">{escape(heard or "")}</span>'


def errors_of(row: dict[str, Any], system: str) -> int:
    """Word errors of one clip: substitutions, deletions and insertions."""
    counts = row["counts"][system]
    return counts["substitutions"] + counts["deletions"] + counts["insertions"]


def chosen_clips(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The worst clips of the tuned model, and of the others the most improved; no clip in both."""
    worst = sorted(rows, key=lambda row: -errors_of(row, "tuned"))[:SHOWN]
    worst = [row for row in worst if errors_of(row, "tuned")]
    rest = [row for row in rows if row not in worst and _gain(row) > 0]
    return worst, sorted(rest, key=lambda row: -_gain(row))[:SHOWN]


def _gain(row: dict[str, Any]) -> int:
    return errors_of(row, "base") - errors_of(row, "tuned")


def _clips(
    title: str,
    rows: Sequence[dict[str, Any]],
    wave_of: Callable[[str], np.ndarray],
    aligned: Differences,
) -> str:
    if not rows:
        return ""
    key = (
        '<p class="faint diff"><span class="sub">another word</span> · '
        '<span class="ins">a word too many</span> · <del>a word left out</del></p>'
    )
    return section(title, key, *(_clip(row, wave_of(row["id"]), aligned) for row in rows))


def _clip(row: dict[str, Any], wave: np.ndarray, aligned: Differences) -> str:
    lines = [f'<p class="diff"><b>said</b> {escape(row["reference"])}</p>']
    for system in ("base", "tuned"):
        marked = aligned.html(row["reference"], row[system])
        flags = ", ".join(row["flags"][system])
        said = f' <span class="faint">({flags})</span>' if flags else ""
        lines.append(f'<p class="diff"><b>{system}</b> {marked}{said}</p>')
    head = f'<code>{escape(row["id"])}</code> <span class="faint">{row["duration_s"]:.1f} s</span>'
    return f'<div class="card">{player(wave)} {head}{"".join(lines)}</div>'


def _all_clips(record: Record, aligned: Differences) -> str:
    rows = [
        [
            f"<code>{escape(row['id'])}</code>",
            escape(row["reference"]),
            f'<span class="diff">{aligned.html(row["reference"], row["tuned"])}</span>',
            errors_of(row, "base"),
            errors_of(row, "tuned"),
        ]
        for row in record.predictions
    ]
    head = ("clip", "said", "tuned", "errors, base", "errors, tuned")
    return f"<details><summary>{len(rows)} clips</summary>{table(head, rows)}</details>"


def _made(record: Record) -> str:
    facts = [[escape(name), escape(value)] for name, value in record.training_facts()]
    recipe = f"<details><summary>recipe</summary><pre>{escape(record.recipe_text)}</pre></details>"
    return table(("", ""), facts) + recipe
