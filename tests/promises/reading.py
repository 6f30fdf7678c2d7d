"""What the data layer makes of manifests of one row; run where every open is watched."""

from __future__ import annotations

import json
import sys

from peft_whisper.data.audit import audit
from peft_whisper.data.corpus import read_rows
from peft_whisper.errors import DataError
from peft_whisper.recipe_speech import Source


def main(manifests: list[str]) -> None:
    """Print, as JSON, what was said of each manifest's row; "kept" where it would be trained on."""
    said = []
    for manifest in manifests:
        try:
            found = audit(read_rows(Source(manifest=manifest)), lambda _text, _language: 5)
            said.append(found.rejected[0].cause if found.rejected else "kept")
        except DataError as error:
            said.append(f"refused: {error}")
    sys.stdout.write(json.dumps(said) + "\n")
