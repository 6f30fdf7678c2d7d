"""Try adapters by voice beside their base, on a page of this machine.

python -m peft_whisper.studio outputs/demo_cpu
python -m peft_whisper.studio outputs/a outputs/b/adapter --port 8000
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from peft_whisper.errors import RecipeError, Stopped, run
from peft_whisper.signals import Stop
from peft_whisper.terminal import Terminal

if TYPE_CHECKING:
    from peft_whisper.trying.bench import Bench

PORT = 7860


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.studio",
        description="Open a page on this machine, and on no other: record or drop a recording, and "
        "see what the base and what was trained on it make of it, with the words that differ.",
        epilog="Needs `pip install 'peft-whisper[studio]'`. End it with Ctrl-C.",
    )
    made.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a run, its adapter/ or model/, a merged model; several adapters share one base",
    )
    made.add_argument("--base", metavar="MODEL", help="their base, where it has moved")
    made.add_argument("--port", type=int, default=PORT, help=f"(default: {PORT})")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command until it is interrupted; returns its exit code."""
    args = parser().parse_args(argv)
    check(args)
    Stop().listen()  # so that recordings are deleted whatever ends it
    with tempfile.TemporaryDirectory(prefix="peft_whisper-studio-") as kept:
        os.environ["GRADIO_TEMP_DIR"] = kept
        open_page(bench(args), args.port)
    return 0


def open_page(held: Bench, port: int) -> None:
    """Serve the page until a signal ends it."""
    from peft_whisper.trying.page import built, serve

    page = built(held)
    try:
        address = serve(page, port)
        Terminal().print(f"open {address} in a browser here; Ctrl-C ends it")
        page.block_thread()
    except Stopped as stop:
        raise Stopped(stop.signum, "recordings are deleted") from None
    finally:
        page.close(verbose=False)


def check(args: argparse.Namespace) -> None:
    """Raise RecipeError for what can't work, before anything is loaded."""
    from peft_whisper.systems import trained_in
    from peft_whisper.trying import HOST

    if find_spec("gradio") is None:
        raise RecipeError("gradio is not installed; pip install 'peft-whisper[studio]'")
    if trained_in(Path(args.models[0])) is None:
        raise RecipeError(
            f"{args.models[0]} is neither a run nor an adapter nor a merged model: give what was "
            "trained; its base comes with it"
        )
    if not 1 <= args.port <= 65_535:
        raise RecipeError(f"--port: {args.port} is no port; give one from 1024 to 65535")
    try:
        with socket.create_server((HOST, args.port)):
            pass
    except OSError as error:
        raise RecipeError(
            f"--port: {args.port} can't be opened ({error.strerror}); give another one"
        ) from error


def bench(args: argparse.Namespace) -> Bench:
    """The base and what was trained on it, loaded."""
    import torch

    from peft_whisper.environment import cores
    from peft_whisper.systems import find_systems
    from peft_whisper.trying.bench import Bench

    torch.set_num_threads(cores())
    others = [Path(model) for model in args.models[1:]]
    return Bench(find_systems(args.models[0], others, True, args.base))


if __name__ == "__main__":
    run(main)
