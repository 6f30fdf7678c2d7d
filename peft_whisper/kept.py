"""Answers that took long and will be asked for again, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from peft_whisper.environment import versions
from peft_whisper.files import write_json


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/peft_whisper, or ~/.cache/peft_whisper."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "peft_whisper"


def recalled(name: str) -> Any:
    """What was kept by that name; None where nothing was, or it can't be read."""
    try:
        return json.loads((cache_folder() / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def remember(name: str, answer: Any) -> None:
    """Keep `answer`, which JSON can hold; where the folder can't be written it is only not kept."""
    with suppress(OSError):
        write_json(cache_folder() / f"{name}.json", answer)


@cache
def code_fingerprint(places: tuple[str, ...]) -> str:
    """Digest of files and folders of this package, and of the versions that it runs on."""
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    root = Path(__file__).parent
    for place in places:
        found = root / place
        for path in sorted(found.rglob("*.py")) if found.is_dir() else [found]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
