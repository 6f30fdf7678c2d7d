"""Publish an adapter, a merged or an exported model in a repository of the Hub.

python -m peft_whisper.push outputs/demo_cpu --to user/name          # shows what would be sent
python -m peft_whisper.push outputs/demo_cpu --to user/name --yes    # sends it, private
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft_whisper.errors import PublishError, RecipeError, run
from peft_whisper.terminal import Terminal

if TYPE_CHECKING:
    from peft_whisper.publishing.belongs import Outgoing, Package

WEB = re.compile(r"https?://[^\s()<>\[\]]+")
MOST_FOUND = 10  # findings of the scan that are told one by one
NAMES_BASE = (
    "peft_whisper.json",
    "peft_whisper_export.json",
    "adapter_config.json",
    "config.json",
    "README.md",
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.push",
        description="Publish a run's adapter, or a merged or exported model, in a repository of "
        "its own on the Hub. Without --yes nothing is sent: the files and the card are shown.",
        epilog="The token is that of `hf auth login` or of HF_TOKEN. Given again, the command "
        "sends what has changed; after a failure the repository holds the old or the new.",
    )
    made.add_argument(
        "folder",
        type=Path,
        help="a finished run, its adapter/ or model/, or what merge or export wrote",
    )
    made.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository")
    made.add_argument("--yes", action="store_true", help="send it")
    made.add_argument(
        "--public", action="store_true", help="let everybody see it (default: private)"
    )
    made.add_argument(
        "--base",
        metavar="ID",
        help="what the Hub calls the base, where it was a folder in training: stands in the files",
    )
    made.add_argument(
        "--run",
        type=Path,
        help="the run that a merged or exported model came from: its scores go into the card",
    )
    made.add_argument(
        "--table",
        metavar="URL",
        help="where a comparison that it is part of can be read: the card links to it",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from peft_whisper.publishing.belongs import package
    from peft_whisper.publishing.parcel import outgoing, record_of
    from peft_whisper.scoring.card import HUB_ID

    args = parser().parse_args(argv)
    for option, name in (("--to", args.to), ("--base", args.base)):
        if name is not None and not HUB_ID.fullmatch(name):
            raise RecipeError(f"{option}: {name} is no name of the Hub; expected owner/name")
    if args.table is not None and not WEB.fullmatch(args.table):
        raise RecipeError(f"--table: {args.table} is no address; expected https://...")
    held = package(args.folder)
    record = record_of(held, args.run)
    files = outgoing(held, args.to, args.base or held.base, record, args.table)
    refuse(files)
    show(held, files, args)
    if args.yes:
        send(held, files, args)
    return 0


def refuse(files: Sequence[Outgoing]) -> None:
    """Raise PublishError where a file holds a token-shaped string or an absolute path."""
    from peft_whisper.publishing.scan import PATH, findings

    found = [one for file in files for one in findings(file.path, file.source)]
    if not found:
        return
    lines = [f"  {one}" for one in found[:MOST_FOUND]]
    if len(found) > MOST_FOUND:
        lines.append(f"  and {len(found) - MOST_FOUND} more")
    paths = [one for one in found if one.what.startswith(PATH)]
    ways = []
    if len(paths) < len(found):
        ways.append("Take the secret out of the file, and renew it: it has been written down.")
    if any(one.file in NAMES_BASE for one in paths):
        ways.append("A base that was a folder gets its name on the Hub by --base OWNER/NAME.")
    if paths:
        ways.append("Paths of this machine tell others about it, and nothing works there.")
    said = "\n".join([*lines, *ways])
    raise PublishError(f"this must not leave the machine, so nothing was sent:\n{said}")


def show(held: Package, files: Sequence[Outgoing], args: argparse.Namespace) -> None:
    """Print the files, what is left out, and the card."""
    from rich.table import Table

    from peft_whisper.publishing.belongs import CARD

    console = Terminal()
    seen = "public" if args.public else "private"
    console.print(f"{held.folder}: {held.kind.name}, to {args.to} ({seen} where it is new)\n")
    table = Table("file", "bytes", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for file in files:
        table.add_row(file.path, f"{file.size:,}")
    table.add_row(f"{len(files)} files", f"{sum(file.size for file in files):,}")
    console.print(table)
    if left := held.left_out():
        console.print(f"\nnot sent: {', '.join(left)}")
    if args.base is None and held.base_is_local:
        console.print(
            f"\nnote: the base is a folder here ({held.base}), so nobody else can load this; give "
            "--base OWNER/NAME, what the Hub calls the same weights",
            style="yellow",
        )
    if not args.yes:
        source = next(file.source for file in files if file.path == CARD)
        text = (source if isinstance(source, bytes) else source.read_bytes()).decode()
        console.print(f"\n{CARD}:\n\n{text}\nNothing was sent. Add --yes to send it.")


def send(held: Package, files: Sequence[Outgoing], args: argparse.Namespace) -> None:
    """Send the files, and say what was done."""
    from peft_whisper.publishing.hub import Wanted, publish

    console = Terminal()
    message = f"peft_whisper: {held.name}, {held.kind.name}"
    done = publish(Wanted(held.kind, files), args.to, args.public, message)
    for note in done.notes:
        console.print(f"note: {note}", style="yellow")
    at = f"commit {done.commit[:12]}"
    if not done.sent and not done.deleted:
        console.print(f"\n{args.to} holds all of this already ({at}); nothing to do")
        return
    total = sum(file.size for file in done.sent)
    gone = f", {len(done.deleted)} old ones deleted" if done.deleted else ""
    console.print(
        f"\npublished {args.to}, {at}: {len(done.sent)} files sent ({total:,} bytes){gone}; "
        "read back, every hash is that of the file here"
    )


if __name__ == "__main__":
    run(main)
