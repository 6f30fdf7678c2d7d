"""Tokens and passwords: recognised by their shape or from the environment, and never repeated."""

from __future__ import annotations

import os
import re

MASK = "***"
# Shapes by name, for what is printed and for the bytes of files: all of it is ASCII.
TOKENS = {
    "a Hugging Face token": r"\bhf_(?:oauth_)?[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z]{20,}",
    "a GitHub token": r"\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "an API key": r"\bsk-[\w-]{20,}|\bAIza[\w-]{35}|\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "an access key of a cloud": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}(?:\.[\w-]+)?",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*",
}
# A user's name alone is masked too; a file isn't refused for one, see publishing/scan.py.
LOGIN = r"(?<=://)[^/\s@]+(?=@)"
SHAPES = re.compile("|".join([*TOKENS.values(), LOGIN]), re.ASCII)
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
