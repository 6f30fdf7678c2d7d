"""What must not leave this machine: tokens and absolute paths, looked for in every byte."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from peft_whisper.masking import TOKENS

BLOCK = 1 << 20  # bytes read at once
OVERLAP = 1 << 12  # bytes read twice, so that nothing hides where two blocks meet
TEXT = 1 << 24  # bytes; a larger file is no text that a person wrote
LEAST = 8  # characters: a shorter secret is found by chance

LOGIN = rb"\b[a-z][a-z0-9+]{1,9}://[^\s/:@\"'<>]{1,64}:[^\s/@\"'<>]{3,}@"
ASSIGNED = (  # in texts alone; a name that says what it is, and something long behind it
    rb"(?i)(?:token|secret|passwd|password|api[_-]?key|access[_-]?key)[\"']?\s*[:=]\s*[\"']?"
    rb"[A-Za-z0-9_./+-]{20,}"
)
# Of any file: six bytes and more that nothing holds by chance.
HOMES = rb"/(?:home|Users)/[\w.-]+/|/root/[\w.-]|[A-Za-z]:[\\/]{1,2}Users[\\/]"
# Of texts: a path of two names or more behind a quote, a space or a sign that sets a value.
PATHS = rb"(?:(?<=[\"'`\s=:(>])|\A)(?!/dev/null)/[\w.-]+/[\w./-]+|[A-Za-z]:\\{1,2}\w+\\|file://"
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocabulary.json", "merges.txt", "vocabulary.txt")
PATH = "an absolute path"
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """Something that must not leave: in which file, on which line (None: no text), and what."""

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.what}"


def findings(name: str, source: Path | bytes) -> Iterator[Finding]:
    """Each token-shaped string and absolute path in a file that is to be called `name`.

    What was found of a token is not told, in no message and in no log.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if size <= TEXT and b"\0" not in (whole := file.read()):
            for what, pattern in _rules(name).items():
                for found in pattern.finditer(whole):
                    line = whole.count(b"\n", 0, found.start()) + 1
                    yield Finding(name, line, _told(what, found[0]))
            return
        file.seek(0)
        for what, found_bytes in _in_blocks(file):
            yield Finding(name, None, _told(what, found_bytes))


def _in_blocks(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    rules, kept, seen = _rules(None), b"", set()
    while block := file.read(BLOCK):
        kept += block
        for what, pattern in rules.items():
            for found in pattern.finditer(kept):
                if (what, found[0]) not in seen:  # an overlap is read twice
                    seen.add((what, found[0]))
                    yield what, found[0]
        kept = kept[-OVERLAP:]


def _told(what: str, found: bytes) -> str:
    if what == PATH:
        return f"{what} ({found.decode('utf-8', 'replace')[:80]})"
    return what


def _rules(name: str | None) -> dict[str, re.Pattern[bytes]]:
    """What is looked for, by what it is called; `name` is that of a text, None of another file."""
    own = b"|".join(re.escape(text) for text in sorted(known_secrets(), key=len, reverse=True))
    here = {str(place).encode() for place in (Path.home(), Path.cwd()) if len(place.parts) > 2}
    paths = [HOMES, *map(re.escape, sorted(here))]
    rules = {"a secret of this session": own} if own else {}
    if name is not None:
        rules["a secret"] = ASSIGNED
    if name is not None and Path(name).name not in VOCABULARIES:  # whose words hold slashes
        paths.insert(0, PATHS)
    rules |= {what: shape.encode() for what, shape in TOKENS.items()}
    rules |= {"a password in an address": LOGIN, PATH: b"|".join(paths)}
    return {what: re.compile(text) for what, text in rules.items()}


def known_secrets() -> set[bytes]:
    """Every secret of this process's surroundings, as it is, in base64 and percent-encoded."""
    from huggingface_hub import get_token

    held = {value for name, value in os.environ.items() if SECRET.search(name)}
    spelt: set[bytes] = set()
    for text in held | {get_token() or ""}:
        if len(text) < LEAST or os.path.exists(text):  # a file that holds one is no secret
            continue
        raw = text.encode()
        spelt |= {raw, quote(text, safe="").encode()}
        # Base64 spells the same bytes in three ways, by how many stand before them.
        spelt |= {base64.b64encode(b"\0" * at + raw)[4 * (at > 0) : -4] for at in range(3)}
    return {text for text in spelt if len(text) >= LEAST}
