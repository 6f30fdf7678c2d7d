"""All that goes into a repository: the model's files, the run's records, its card and samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft_whisper.errors import StateError
from peft_whisper.publishing.belongs import (
    CARD,
    CONFIG,
    EXPORTED,
    FACTS,
    RUN,
    Outgoing,
    Package,
    with_base,
)
from peft_whisper.publishing.samples import samples, section
from peft_whisper.run_folder import is_finished
from peft_whisper.scoring.card import bare_card, may_share, run_card, shown_of
from peft_whisper.scoring.card_use import Shown
from peft_whisper.scoring.record import Record, read_record

METHODS = {  # of peft_whisper.json, as a card says them
    "lora": "LoRA",
    "adalora": "AdaLoRA",
    "dora": "DoRA",
    "layernorm": "layer norms",
    "none": "full fine-tune",
    "merged": "an adapter merged into it",
    "base": "as it is",
}


def record_of(held: Package, run: Path | None) -> Record | None:
    """What the run recorded; None where it is not known. Raises StateError for another's."""
    run = run or held.run
    if run is None:
        return None
    if not is_finished(run):
        raise StateError(f"--run: {run} is not a finished run")
    record = read_record(run)
    if record.environment["base"]["fingerprint"] != held.facts["base"]["fingerprint"]:
        raise StateError(f"--run: {run} was trained on another base than {held.folder}")
    return record


def outgoing(
    held: Package, repo: str, base: str, record: Record | None, table: str | None = None
) -> list[Outgoing]:
    """All that goes into the repository, in the order of names.

    `base` is what the files are to call the base; `table` where a comparison of it can be read.
    """
    files = {path.name: Outgoing(path.name, path) for path in held.files()}
    if base != held.base:
        for name in {FACTS, EXPORTED, CONFIG, "config.json"} & files.keys():
            files[name] = Outgoing(name, with_base(name, (held.folder / name).read_bytes(), base))
    if record is not None and held.run is not None:
        files |= {name: Outgoing(name, held.run / name) for name in RUN}
    listened: list[str] = []
    if record is not None and held.run is not None and may_share(record):
        chosen = samples(record, held.run / "report.html")
        files |= {one.sound.path: one.sound for one in chosen}
        listened = section(chosen, address(repo))
    if table is not None:
        listened += ["## Compared\n", f"Beside other methods, on the same speech: <{table}>\n"]
    if record is not None or not has_card(held):
        files[CARD] = Outgoing(CARD, card(held, repo, base, record, listened).encode("utf-8"))
    return [files[name] for name in sorted(files)]


def has_card(held: Package) -> bool:
    """Whether the folder brings a whole card, with scores, as an adapter that is passed on does."""
    path = held.folder / CARD
    return path.is_file() and "\nmodel-index:" in path.read_text(encoding="utf-8")


def card(
    held: Package, repo: str, base: str, record: Record | None, listened: Sequence[str]
) -> str:
    """The card as others read it: with the repository's name, and the base's on the Hub."""
    extra = [*listened, *conversion(held, repo.rpartition("/")[2])]
    if record is not None:
        return run_card(record, shown_of(record, held.kind.name, repo, base, True), extra)
    method = held.facts["method"]
    shown = Shown(held.kind.name, repo, base, None, "transcribe", True)
    return bare_card(held.name, shown, METHODS.get(method, method), extra)


def conversion(held: Package, here: str) -> list[str]:
    """What export wrote into the folder's own README.md: it is part of the card.

    `here` is where the card has it downloaded to.
    """
    path = held.folder / CARD
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2]
    lines = text.strip().replace("FOLDER", here).splitlines()
    if lines and lines[0].startswith("# "):
        lines[0] = "## How it was converted"
    # One level down, so that they stand below the card's own headings.
    return [f"#{line}" if line.startswith("## ") and at else line for at, line in enumerate(lines)]


def address(repo: str) -> str:
    """Where the Hub serves a repository's files, for a browser."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}/resolve/main"
