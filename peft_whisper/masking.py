"""Tokens and passwords: recognised by their shape or from the environment, and never repeated."""

from __future__ import annotations

import os
import re

MASK = "***"
SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"  # GitHub
    r"|\bsk-[\w-]{20,}"  # OpenAI and others
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # Amazon
    r"|(?<=://)[^/\s@]+(?=@)"  # user:password of an address
)
NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)$")
SHORTEST = 16  # characters; a shorter value could be a word


def masked(text: str) -> str:
    """`text` with every secret in it replaced by ***."""
    for value in _known():
        text = text.replace(value, MASK)
    return SHAPES.sub(MASK, text)


def _known() -> list[str]:
    """What environment variables hold that are named as secrets are."""
    held = (value for name, value in os.environ.items() if NAMES.search(name.upper()))
    return [value for value in held if len(value) >= SHORTEST]
