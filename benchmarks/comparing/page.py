"""The comparison as one page that fetches nothing: pictures, table, sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from comparing.methods import Method, against_best, changes, compared, on_front
from comparing.pictures import (
    Link,
    color,
    cost_of,
    cost_picture,
    curves_picture,
    rates_picture,
    shape,
)
from comparing.table import (
    Made,
    about_runs,
    about_speech,
    base_line,
    failures,
    reading,
    rows_of,
)

from peft_whisper.files import write_text
from peft_whisper.scoring.page import document, section, table

STYLE = """
.narrow { display: none }
@media (max-width: 700px) { .wide { display: none } .narrow { display: block } }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none }
.key b { display: inline-block; min-width: 2.2rem; margin-right: .3rem; color: var(--own) }
.filter { font: inherit; padding: .3rem .6rem; width: 100%; max-width: 24rem;
  box-sizing: border-box;
  border: 1px solid var(--line); border-radius: 6px; background: var(--soft); color: inherit }
#methods th { cursor: pointer } #methods th[aria-sort=ascending]::after { content: " \\2191" }
#methods th[aria-sort=descending]::after { content: " \\2193" }
#methods td { white-space: nowrap }
#methods td:nth-child(2) { white-space: normal; min-width: 9rem }
pre { white-space: pre-wrap }
"""
# Sorts by the number that a cell begins with, else by its text; what has none stands below.
SCRIPT = """
const body = document.querySelector("#methods tbody");
const rows = () => [...body.rows];
document.querySelector(".filter").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\\s+/);
  for (const row of rows()) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  }
});
document.querySelectorAll("#methods th").forEach((head, at) => {
  head.tabIndex = 0;
  const sort = () => {
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    document.querySelectorAll("#methods th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
    const value = row => {
      const text = row.cells[at].textContent.replaceAll(",", "").replace("\\u2212", "-");
      const found = parseFloat(text);
      return text === "\\u2013" ? null : isNaN(found) ? text : found;
    };
    rows().sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return down * (typeof x === "number" && typeof y === "number" ? x - y
        : String(x).localeCompare(String(y)));
    }).forEach(row => body.append(row));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
});
"""


def write_page(into: Path, methods: Sequence[Method], made: Made) -> Path:
    """Write index.html into a folder of results; returns it."""
    target = into / "index.html"
    done = [one for one in methods if one.done]
    parts = [_headline(methods, made)]
    if done:
        link = _linker(into, methods)
        parts += [
            section("WER by method", rates_picture(done, link), _key(done)),
            section("What was found", _sentences(done)),
            section("Table", _table(methods, made, link)),
            *_costs(done, link),
            section("Training curves", curves_picture(done), _key(done)),
            section("Every pair", _pairs(done)),
        ]
    parts.append(_failed(methods, made))
    write_text(
        target, document("recipes compared", *parts, style=STYLE, script=SCRIPT if done else "")
    )
    return target


def _headline(methods: Sequence[Method], made: Made) -> str:
    runs = sum(len(one.runs) for one in methods)
    facts = [f"{len(methods)} recipes, {runs} runs.", *about_runs(methods), *about_speech(made)]
    return f'<h1>Recipes compared</h1><p class="faint">{escape(" ".join(facts))}</p>'


def _sentences(done: Sequence[Method]) -> str:
    lines = [base_line(done) or "", *against_best(done)]
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _linker(into: Path, methods: Sequence[Method]) -> Link:
    """From a result to its run's report, relative to the page; where it isn't here, to its row."""
    rows = {run["key"]: f"#m{one.number}" for one in methods for run in one.runs}

    def link(result: dict[str, Any]) -> str:
        report = Path(result["run"]) / "report.html"
        if report.is_file():
            return Path(os.path.relpath(report, into)).as_posix()
        return rows[result["key"]]

    return link


def _table(methods: Sequence[Method], made: Made, link: Link) -> str:
    """The base, then one row per method; every seed's report can be opened from it."""
    rows = rows_of(methods, made)
    head = ("#", *map(escape, rows[0]), "reports")
    body = [["0", *map(escape, row.values()), ""] for row in rows[: len(rows) - len(methods)]]
    body += [
        [
            f'<span id="m{one.number}">{one.number}</span>',
            *map(escape, row.values()),
            _reports(one, link),
        ]
        for one, row in zip(methods, rows[-len(methods) :], strict=True)
    ]
    drawn = table(head, body).replace("<table>", '<table id="methods"><thead>')
    drawn = drawn.replace("</tr>", "</tr></thead><tbody>", 1).replace(
        "</table>", "</tbody></table>"
    )
    drawn = re.sub(r"<th([ >])", r'<th scope="col"\1', drawn)
    field = '<input class="filter" type="search" aria-label="filter the table" '
    field += 'placeholder="filter: words of a row">'
    said = "".join(
        f"<li><b>{escape(one.label)}</b>: {escape(change or 'nothing else')}</li>"
        for one, change in zip(methods, changes(methods), strict=True)
    )
    title = "<summary>what each says that most others do not</summary>"
    how = f'<p class="faint">{escape(reading(methods, made))}</p>'
    return f"<p>{field}</p>{drawn}<details>{title}<ul>{said}</ul></details>{how}"


def _reports(method: Method, link: Link) -> str:
    """A link for each seed whose report is on this machine."""
    found = {one["seed"]: link(one) for one in method.done}
    links = [
        f'<a href="{escape(to)}">{seed}</a>' for seed, to in found.items() if not to.startswith("#")
    ]
    return " ".join(("seed", *links)) if links else "elsewhere"


def _costs(done: Sequence[Method], link: Link) -> list[str]:
    """Memory and speed, each with its key and its front by name."""
    parts = []
    timed = [one for one in done if one.speeds("audio_s_per_s")]
    speeds = [one.speeds("audio_s_per_s") for one in timed]
    for title, shown, costs, axis, better in (
        ("peak memory", done, [one.peaks_gib for one in done], "peak memory, GiB", "left"),
        ("throughput", timed, speeds, "training, s of audio per second", "right"),
    ):
        if shown:
            picture = cost_picture(shown, costs, axis, better, link)
            sign = 1 if better == "left" else -1
            front = _front(shown, [sign * cost_of(found, better) for found in costs])
            parts.append(section(f"WER against {title}", picture, _key(shown), front))
    return parts


def _key(done: Sequence[Method]) -> str:
    signs = {"o": "●", "s": "■", "^": "▲", "D": "◆"}
    items = (
        f'<li style="--own: {color(one)}"><b>{signs[shape(one)]} {one.number}</b>'
        f"{escape(one.label)}</li>"
        for one in done
    )
    return f'<ol class="key">{"".join(items)}</ol>'


def _front(done: Sequence[Method], costs: Sequence[float]) -> str:
    named = ", ".join(f"{one.number} {one.label}" for one in on_front(done, costs))
    return (
        f'<p class="front">On the Pareto front (nothing beats them in both, filled): '
        f"{escape(named)}.</p>"
    )


def _pairs(done: Sequence[Method]) -> str:
    lines = [compared(a, b)[1] for a, b in combinations(done, 2)]
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details><summary>{len(lines)} pairs</summary><ul>{listed}</ul></details>"


def _failed(methods: Sequence[Method], made: Made) -> str:
    """What did not finish, and the last that each such run said."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in failures(methods, made))
    if not lines:
        return ""
    words = (
        f"<details><summary>the last words of {escape(one['label'])}, seed {one['seed']}</summary>"
        f"<pre>{escape(chr(10).join(one['said']))}</pre></details>"
        for method in methods
        for one in method.failed
    )
    return section("What did not finish, and what to know", f"<ul>{lines}</ul>", *words)
