"""A clip as the model is taught it, for a page: sound, log-mel spectrogram, and every token."""

from __future__ import annotations

from html import escape
from typing import Any

from peft_whisper.data.mel import HOP, SAMPLE_RATE
from peft_whisper.data.scripts import visible
from peft_whisper.data.survey import FULL_S, Lesson
from peft_whisper.scoring.page import figure, player, table

LESSON_STYLE = """
.steps .table { max-height: 26rem; overflow: auto; margin-top: .8rem }
.steps th { position: sticky; top: 0; background: light-dark(#fff, #0d1117) }
.special { color: var(--added) } .end { color: var(--right); font-weight: 650 }
"""
STEPS = (
    '<p class="faint">At each position the decoder is fed one token and must predict the next. '
    "&lt;|startoftranscript|&gt; stands at position 0 alone; the last answer is "
    "&lt;|endoftext|&gt;, and it is in the loss, or the model would not learn to stop.</p>"
)


def lesson_card(one: Lesson) -> str:
    """Its sound, spectrogram and the table of its tokens."""
    clip = one.placed.clip
    about = f"{one.placed.split}, {clip.duration_s:.2f} s"
    if clip.language:
        about += f", {clip.language}"
    return (
        f'<div class="card steps"><p>{clip_name(clip.id)} <span class="faint">{about}</span> '
        f"{player(one.wave)}</p><p>{transcript(clip.text)}</p>{_spectrogram(one)}{_steps(one)}</div>"
    )


def _spectrogram(one: Lesson) -> str:
    bands, frames = one.mel.shape
    seconds = frames * HOP / SAMPLE_RATE
    spoken = one.placed.clip.duration_s

    def draw(axes: Any) -> None:
        extent = (0, seconds, 0, bands)
        axes.imshow(one.mel, origin="lower", aspect="auto", extent=extent, cmap="magma")
        axes.grid(False)
        if spoken < seconds:
            axes.axvline(spoken, color="white", lw=1, ls="--")
        axes.set(xlabel="s (dashed: the clip ends, silence follows)", ylabel="mel band")

    what = f"log-mel spectrogram, {bands} bands, {seconds:.2f} of at most {FULL_S:g} s"
    return figure(draw, what, width=8.0, height=2.4)


def _steps(one: Lesson) -> str:
    head = ("position", "token id", "token fed to decoder", "token id", "must predict", "in loss")
    rows = (
        (
            step.position,
            str(step.fed_id),
            _token(step.fed),
            str(step.target_id),
            _token(step.target),
            "yes" if step.in_loss else "no",
        )
        for step in one.steps
    )
    return table(head, rows)


def _token(token: str) -> str:
    special = "special" if token.startswith("<|") and token.endswith("|>") else ""
    kind = "end" if token == "<|endoftext|>" else special
    return f'<code class="{kind}">{safe(token)}</code>'


def transcript(text: str, most: int | None = None) -> str:
    """Set apart by `dir`: a transcript may run from right to left."""
    cut = text if most is None or len(text) <= most else text[: most - 1] + "…"
    return f'<span class="text" dir="auto">{safe(cut)}</span>'


def clip_name(clip_id: str) -> str:
    return f"<code>{safe(clip_id)}</code>"


def safe(text: str) -> str:
    return escape(visible(text))
