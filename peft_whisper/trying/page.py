"""The page: a recording in, both transcripts, a spectrogram and the run's report out."""

from __future__ import annotations

import os
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before gradio is imported: no word of this to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peft_whisper.errors import UserError
from peft_whisper.scoring.side_by_side import rows
from peft_whisper.systems import BASE
from peft_whisper.trying import HOST
from peft_whisper.trying.shown import STYLE, report, side_by_side, spectrogram, wrong

if TYPE_CHECKING:
    from peft_whisper.trying.bench import Bench

MOST_BYTES = 120 * 2**20  # 10 minutes of 48 kHz stereo WAV
HEARD_FIRST = "as heard"
# A browser then asks nobody else, whatever the libraries' pages would like.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    f"connect-src 'self' ws://{HOST}:* ws://localhost:* data: blob:; "
    "frame-ancestors 'none'; form-action 'self'"
)
CSS = """
.gradio-container { width: 100% !important; max-width: 78rem !important; margin: 0 auto !important;
  --body-text-color-subdued: #57606a; --block-info-text-color: #57606a }
.dark .gradio-container, .gradio-container.dark { --body-text-color-subdued: #9198a1;
  --block-info-text-color: #9198a1 }
footer { display: none !important }
.pw-head h1 { font-size: 1.6rem; margin: 0 } .pw-head p { margin: .2rem 0 0 }
"""


class Policy:
    """Adds the policy to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        await self.app(scope, receive, with_policy)


def built(bench: Bench) -> gr.Blocks:
    """The page over a bench; to be given to `serve`."""
    languages = bench.languages
    with gr.Blocks(analytics_enabled=False, title="peft_whisper studio") as page:
        gr.HTML(_head(bench), elem_classes="pw-head")
        with gr.Tab("Listen"), gr.Row():
            with gr.Column(scale=2, min_width=320):
                sound = gr.Audio(
                    sources=["upload", "microphone"],
                    type="filepath",
                    label="Record or drop a recording",
                    elem_id="sound",
                    buttons=[],
                )
                chosen = gr.Radio(bench.names, value=bench.names[0], label="Tuned", elem_id="tuned")
                strength = gr.Slider(
                    *(0, 1),
                    value=1,
                    step=0.05,
                    label="Strength",
                    info="0 is the base, 1 the adapter as it was trained",
                    elem_id="strength",
                    interactive=bench.has_strength(bench.names[0]),
                )
                language = gr.Dropdown(
                    [HEARD_FIRST, *languages],
                    value=HEARD_FIRST,
                    label="Language",
                    visible=bool(languages),
                )
                go = gr.Button("Transcribe", variant="primary", elem_id="go")
            with gr.Column(scale=5):
                texts = gr.HTML(_empty(), elem_id="texts")
                picture = gr.HTML("", elem_id="picture")
        with gr.Tab("Report"):
            shown = gr.HTML(report(_folder(bench, bench.names[0])), elem_id="report")

        def transcribe(
            path: str | None, name: str, share: float, spoken: str, bar: gr.Progress = BAR
        ) -> str:
            return compared(bench, path, name, share, spoken, bar)

        def chose(name: str) -> tuple[Any, str]:
            return gr.update(interactive=bench.has_strength(name)), report(_folder(bench, name))

        asked: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1}
        go.click(transcribe, [sound, chosen, strength, language], texts, **asked)
        sound.change(lambda path: pictured(bench, path), sound, picture, **asked)
        chosen.change(chose, chosen, [strength, shown], **asked)
    return page


BAR = gr.Progress()


def compared(
    bench: Bench, path: str | None, name: str, strength: float, spoken: str, bar: Any
) -> str:
    """Both transcripts of a recording beside each other; or what is in the way, as HTML."""
    if path is None:
        return wrong("Record something or drop a recording first.")
    sound, language = Path(path), None if spoken == HEARD_FIRST else spoken
    strength = strength if bench.has_strength(name) else 1.0
    title = name if strength == 1 else f"{name} at {strength:g}"
    try:
        left, right = (
            bench.hear(one, strength, sound, language, partial(bar, desc=one))
            for one in (BASE, name)
        )
    except UserError as error:
        return wrong(str(error))
    return side_by_side(rows(left, right, language), (BASE, title))


def pictured(bench: Bench, path: str | None) -> str:
    """The spectrogram of a recording; or why it can't be used, as HTML."""
    if path is None:
        return ""
    try:
        return spectrogram(Path(path), bench.base.config().num_mel_bins)
    except UserError as error:
        return wrong(str(error))


def serve(page: gr.Blocks, port: int | None) -> str:
    """Answer on loopback, and nowhere else; returns the page's address.

    `port` None takes a free one. Raises OSError where the port is taken.
    """
    hosts = [HOST, "localhost"]
    page.queue(max_size=8, default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MOST_BYTES,
        max_threads=4,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(
            primary_hue="blue",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=STYLE + CSS,
        app_kwargs={
            "docs_url": None,
            "redoc_url": None,
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
                Middleware(Policy),
            ],
        },
    )
    return str(address)


def _folder(bench: Bench, name: str) -> Path:
    if name in bench.folders:
        return bench.folders[name]
    assert bench.whole is not None
    return bench.whole[1].folder


def _head(bench: Bench) -> str:
    return (
        "<h1>Try it by voice</h1>"
        f'<p class="pw-faint">{escape(bench.base.public_name)}, and what was trained on it. '
        "What you record stays on this machine and is deleted when the page's program ends.</p>"
    )


def _empty() -> str:
    return (
        '<p class="pw-summary pw-faint">Record or drop something, then press Transcribe: the base '
        "stands on the left, the tuned model on the right, and what differs is marked.</p>"
    )
