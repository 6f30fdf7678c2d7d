"""Parts of a self-contained HTML page: one file that opens anywhere and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RATE = 16_000  # Hz, of every wave here
INK = "#7d8590"  # axes and labels: readable on white and on black
BLUE, ORANGE, GREEN = "#3b82c4", "#d9822b", "#2f9e5b"  # told apart by colour-blind eyes too

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dee4, #3d444d);
  --soft: light-dark(#f4f6f8, #1c2128); --faint: light-dark(#5b646e, #9198a1);
  --right: light-dark(#1a7f37, #56d364); --wrong: light-dark(#cf222e, #ff7b72);
  --added: light-dark(#8250df, #d2a8ff); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #e6edf3); }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.faint { color: var(--faint) }
.table { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top } th { font-weight: 600; color: var(--faint) }
td.number, th.number { text-align: right; white-space: nowrap }
th { white-space: nowrap }
code { background: var(--soft); padding: .1em .3em; border-radius: 4px }
pre { background: var(--soft); padding: .8rem; border-radius: 6px; overflow-x: auto }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; margin: .7rem 0 }
audio { height: 2rem; max-width: 100%; vertical-align: middle }
svg, img { max-width: 100%; height: auto }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2rem } .figures > div { min-width: 9rem }
.big { font-size: 2rem; font-weight: 650; line-height: 1.2 }
summary { cursor: pointer; color: var(--faint) }
"""


def document(title: str, *body: str, style: str = "", script: str = "") -> str:
    """A whole page; `style` is added to the common one, `script` runs when all of it is there."""
    # nothing that could call out, and no script but the one given: the page is safe to pass on
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
        policy += f"; script-src 'sha256-{digest}'"
        body = (*body, f"<script>{script}</script>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def section(title: str, *body: str) -> str:
    """A heading and what stands below it."""
    return "\n".join((f"<h2>{escape(title)}</h2>", *body))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are HTML as they are, numbers (int, or text that begins like one) set to the right."""
    body = [[_cell(value) for value in row] for row in rows]
    numeric = [bool(body) and all(row[at][1] for row in body) for at in range(len(head))]
    side = [' class="number"' if right else "" for right in numeric]
    lines = [
        "<tr>" + "".join(f"<th{s}>{h}</th>" for s, h in zip(side, head, strict=True)) + "</tr>"
    ]
    for row in body:
        cells = (f"<td{s}>{text}</td>" for s, (text, _) in zip(side, row, strict=True))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return '<div class="table"><table>' + "\n".join(lines) + "</table></div>"


def _cell(value: Any) -> tuple[str, bool]:
    if isinstance(value, int | float):
        return f"{value:,}", True
    return str(value), re.match(r"[-+\u2212]?\.?\d|\u2013$|$", str(value)) is not None


def player(wave: np.ndarray) -> str:
    """An audio element that carries `wave` (float, 16 kHz) inside it, as FLAC."""
    import soundfile

    sound = io.BytesIO()
    soundfile.write(sound, wave, RATE, "PCM_16", format="FLAC")
    return f'<audio controls preload="none" src="{_data("audio/flac", sound.getvalue())}"></audio>'


def figure(
    draw: Callable[[Any], None], alt: str, width: float = 8.0, height: float = 3.2, columns: int = 1
) -> str:
    """A plot as inline SVG; `draw` gets the axes (an array of them where `columns` > 1).

    The same drawing gives the same bytes. Raises whatever `draw` raises.
    """
    import matplotlib

    style: Any = {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "svg.hashsalt": "peft_whisper",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.titlecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": INK,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        drawing = Figure(figsize=(width, height), layout="constrained")
        drawing.patch.set_alpha(0)
        axes = drawing.subplots(1, columns)
        for one in axes if columns > 1 else [axes]:
            one.patch.set_alpha(0)
        draw(axes)
        out = io.StringIO()
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    label = f'<svg role="img" aria-label="{escape(alt)}" '
    return svg[svg.index("<svg") :].replace("<svg ", label, 1)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
