"""An export, written whole: each variant, decoded by its program, and a README with the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.exporting.parity import Row, compare, merged_texts
from peft_whisper.exporting.readme import readme
from peft_whisper.exporting.runtimes import RUNTIMES
from peft_whisper.files import staged_folder, write_json, write_text
from peft_whisper.scoring.sample import Speech

if TYPE_CHECKING:
    from rich.console import Console

    from peft_whisper.model.base import Base

FACTS = "peft_whisper_export.json"


def export(
    model: Base,
    name: str,
    kinds: Sequence[str],
    speech: Speech,
    into: Path,
    facts: dict[str, Any],
    console: Console,
) -> list[Row]:
    """Write `model` for the program that `name` stands for, as each of `kinds`; all or nothing.

    One kind goes into `into` itself, several into a folder each. `facts`: what the README says of
    where the model comes from. Raises StateError where the program can't decode what was written,
    or hears other words.
    """
    runtime = RUNTIMES[name]
    console.print(f"decoding {len(speech.clips)} clips with the merged model")
    merged = merged_texts(model, speech)
    facts = facts | {"wer_merged": speech.wer(merged), "speech": speech.what}
    with staged_folder(into) as staging:
        places = {kind: staging / kind if len(kinds) > 1 else staging for kind in kinds}
        rows = []
        for kind, place in places.items():
            place.mkdir(exist_ok=True)
            console.print(f"{kind}: writing, then decoding with {runtime.program}")
            runtime.write(model, place, kind)
            rows.append(compare(name, kind, place, speech, merged))
        for kind, place in places.items():
            record(place, name, facts | {"kind": kind}, rows)
    return rows


def record(place: Path, name: str, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the figures and the README of one variant."""
    found = facts | {"to": name, "rows": [row.as_dict() for row in rows]}
    write_json(place / FACTS, found)
    write_text(place / "README.md", readme(found))
