"""The comparison as one page that fetches nothing: pictures, table, sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from comparing.methods import Method, against_best, compared, on_front
from comparing.pictures import Link, color, cost_picture, curves_picture
from comparing.table import READING, about, base_line, cells, failures
from comparing.tracing import Place

from peft_whisper.files import write_text
from peft_whisper.scoring.page import document, section, table

STYLE = """
.narrow { display: none }
@media (max-width: 700px) { .wide { display: none } .narrow { display: block } }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none }
.key b { display: inline-block; min-width: 1.5rem; color: var(--own) }
.filter { font: inherit; padding: .3rem .6rem; width: 100%; max-width: 24rem;
  box-sizing: border-box;
  border: 1px solid var(--line); border-radius: 6px; background: var(--soft); color: inherit }
#methods th { cursor: pointer } #methods th[aria-sort=ascending]::after { content: " \\2191" }
#methods th[aria-sort=descending]::after { content: " \\2193" }
#methods td { white-space: nowrap } #methods td:nth-child(2) { white-space: normal }
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


def write_page(
    into: Path, methods: Sequence[Method], places: Sequence[Place], notes: Sequence[str]
) -> Path:
    """Write index.html into a folder of results; returns it."""
    target = into / "index.html"
    done = [one for one in methods if one.done]
    parts = [_headline(done, methods, notes)]
    if done:
        link = _linker(into)
        parts += [
            section("What was found", _sentences(done)),
            section("Table", _table(done, places, link)),
            *_pictures(done, link),
            section("Every pair", _pairs(done)),
        ]
    parts.append(_failed(methods))
    write_text(
        target, document("recipes compared", *parts, style=STYLE, script=SCRIPT if done else "")
    )
    return target


def _headline(done: Sequence[Method], methods: Sequence[Method], notes: Sequence[str]) -> str:
    runs = sum(len(one.runs) for one in methods)
    facts = [f"{len(methods)} recipes, {runs} runs.", *(about(done) if done else [])]
    said = "".join(f"<p>{escape(note)}.</p>" for note in notes)
    return f'<h1>Recipes compared</h1><p class="faint">{escape(" ".join(facts))}</p>{said}'


def _sentences(done: Sequence[Method]) -> str:
    lines = [base_line(done) or "", *against_best(done)]
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _linker(into: Path) -> Link:
    """From a result to its run's report, relative to the page; None where it is not here."""

    def link(result: dict[str, Any]) -> str | None:
        report = Path(result["run"]) / "report.html"
        return Path(os.path.relpath(report, into)).as_posix() if report.is_file() else None

    return link


def _table(done: Sequence[Method], places: Sequence[Place], link: Link) -> str:
    """One row per method; every seed's report can be opened from it."""
    rows = [cells(one, places) for one in done]
    head = ("#", *map(escape, rows[0]), "reports")
    body = [
        [f"{one.number}", *map(escape, row.values()), _reports(one, link)]
        for one, row in zip(done, rows, strict=True)
    ]
    made = table(head, body).replace("<table>", '<table id="methods"><thead>')
    made = made.replace("</tr>", "</tr></thead><tbody>", 1).replace("</table>", "</tbody></table>")
    made = re.sub(r"<th([ >])", r'<th scope="col"\1', made)
    field = '<input class="filter" type="search" aria-label="filter the table" '
    field += 'placeholder="filter: words of a row">'
    return f'<p>{field}</p>{made}<p class="faint">{escape(READING)}</p>'


def _reports(method: Method, link: Link) -> str:
    """A link for each seed whose report is on this machine."""
    links = [
        f'<a href="{escape(target)}">{one["seed"]}</a>'
        for one in method.done
        if (target := link(one))
    ]
    return " ".join(("seed", *links)) if links else "elsewhere"


def _pictures(done: Sequence[Method], link: Link) -> list[str]:
    """Memory, speed, curves; each with its key, and the first two with their front by name."""
    key = _key(done)
    peaks = [one.peak_gib for one in done]
    memory = cost_picture(done, peaks, "peak memory, GiB", "left", link)
    parts = [section("WER against peak memory", memory, key, _front(done, peaks))]
    timed = [one for one in done if one.mean_of("training", "audio_s_per_s")]
    if timed:
        speeds = [one.mean_of("training", "audio_s_per_s") or 0.0 for one in timed]
        speed = cost_picture(timed, speeds, "training, s of audio per second", "right", link)
        front = _front(timed, [-one for one in speeds])
        parts.append(section("WER against throughput", speed, key, front))
    return [*parts, section("Training curves", curves_picture(done), key)]


def _key(done: Sequence[Method]) -> str:
    items = (
        f'<li style="--own: {color(one)}"><b>{one.number}</b>{escape(one.label)}</li>'
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


def _failed(methods: Sequence[Method]) -> str:
    """What did not finish, and the last that each such run said."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in failures(methods))
    if not lines:
        return ""
    words = (
        f"<details><summary>the last words of {escape(one['label'])}, seed {one['seed']}</summary>"
        f"<pre>{escape(chr(10).join(one['said']))}</pre></details>"
        for method in methods
        for one in method.failed
    )
    return section("What did not finish", f"<ul>{lines}</ul>", *words)
