"""What the page shows of a recording: its spectrogram, and two transcripts beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.scoring.page import figure
from peft_whisper.scoring.side_by_side import Row, differing, differs
from peft_whisper.scoring.subtitles import clock
from peft_whisper.trying.recording import opened

if TYPE_CHECKING:
    import torch

    from peft_whisper.data.windows import Stream

COLUMNS = 1200  # of a picture, at most
WINDOW_FRAMES = 3000  # 30 s

STYLE = """
.pw-table { width: 100%; border-collapse: collapse; table-layout: fixed; font-size: 1rem;
  line-height: 1.6 }
.pw-table :is(th, td) { text-align: left; vertical-align: top; padding: .55rem .8rem !important;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;
  overflow-wrap: break-word }
.pw-table :is(table, tr), .pw-table { border: 0 !important }
.pw-table th { color: var(--body-text-color-subdued); font-weight: 600 }
.pw-table :is(th, td):first-child { width: 5rem; color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums }
.pw-table mark { background: none; color: inherit; border-radius: 3px; padding: 0 .15em;
  font-weight: 500; text-underline-offset: .2em; text-decoration-thickness: 1px !important }
.pw-table mark.left { background: #f9d8d3; color: #7a1710; text-decoration: underline dotted }
.pw-table mark.right { background: #cdebd5; color: #0d4a26; text-decoration: underline }
.dark .pw-table mark.left { background: #5c2320; color: #ffd9d4 }
.dark .pw-table mark.right { background: #1d4a2e; color: #d2f5de }
.pw-summary { font-size: 1.05rem; margin: .2rem 0 .6rem } .pw-summary b { font-weight: 650 }
.pw-faint { color: var(--body-text-color-subdued) }
.pw-wrong { border-left: 4px solid #c2410c; padding: .5rem .9rem; margin: .4rem 0 }
.pw-picture svg { width: 100%; height: auto }
.pw-report { width: 100%; height: 82vh; border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: #fff }
"""


def side_by_side(shown: Sequence[Row], names: tuple[str, str]) -> str:
    """A table as HTML: words that only one side has are marked, red on the left, green right."""
    odd, words = differing(shown)
    left, right = map(escape, names)
    if not words:
        return '<p class="pw-summary">Nothing was heard, by either.</p>'
    head = f"<tr><th>time</th><th>{left}</th><th>{right}</th></tr>"
    body = "".join(_row(row) for row in shown)
    said = "say the same" if not odd else f"differ in <b>{odd} of {words}</b> words"
    return (
        f'<p class="pw-summary">{left} and {right} {said}.</p>'
        f'<table class="pw-table"><thead>{head}</thead><tbody>{body}</tbody></table>'
    )


def _row(row: Row) -> str:
    cells: list[list[str]] = [[], []]
    for pair in row.pairs:
        for cell, word, side in zip(cells, pair, ("left", "right"), strict=True):
            if word is not None:
                text = escape(word)
                cell.append(f'<mark class="{side}">{text}</mark>' if differs(pair) else text)
    time = clock(round(1000 * row.start_s), ".")[3:8]
    texts = (row.space.join(cell) or '<span class="pw-faint">(nothing)</span>' for cell in cells)
    return f"<tr><td>{time}</td>{''.join(f'<td>{text}</td>' for text in texts)}</tr>"


def wrong(sentence: str) -> str:
    """A sentence on what stands in the way."""
    return f'<div class="pw-wrong" role="alert">{escape(sentence)}</div>'


def spectrogram(sound: Path, n_mels: int) -> str:
    """The log-mel spectrogram that Whisper hears, as SVG; raises DataError as `opened` does."""
    stream = opened(sound, n_mels)
    mel = pooled(stream)
    seconds = stream.seconds

    def draw(axes: Any) -> None:
        box = (0, seconds, 0, n_mels)
        axes.imshow(mel.numpy(), origin="lower", aspect="auto", cmap="magma", extent=box)
        axes.set(xlabel="seconds", ylabel="mel band")
        axes.grid(False)

    said = f"log-mel spectrogram of {seconds:.1f} seconds"
    return f'<div class="pw-picture">{figure(draw, said, width=10, height=2.4)}</div>'


def pooled(stream: Stream) -> torch.Tensor:
    """Log-mel (mels, columns) of a whole recording, neighbouring frames by their loudest."""
    import torch

    every = max(1, -(-stream.frames // COLUMNS))
    parts = []
    for first in range(0, stream.frames, WINDOW_FRAMES):
        frames = min(WINDOW_FRAMES, stream.frames - first)
        mel, _ = stream.window(first, frames)
        pad = -frames % every
        mel = torch.nn.functional.pad(mel, (0, pad), value=float(mel.min()))
        parts.append(mel.unflatten(1, (-1, every)).amax(-1))
    return torch.cat(parts, dim=1)


def report(folder: Path) -> str:
    """The page of the run that `folder` belongs to, shut off from this one; or what is missing."""
    page = folder.resolve().parent / "report.html"
    if not page.is_file():
        return wrong(f"{folder.name} has no report.html beside it: give the folder of a run.")
    held = escape(page.read_text(encoding="utf-8"), quote=True)
    # Without scripts, forms or this page's origin; sound and pictures are inside it.
    return f'<iframe class="pw-report" title="report" sandbox srcdoc="{held}"></iframe>'
