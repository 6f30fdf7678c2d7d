"""Text normalisers: what counts as the same word when errors are counted.

`raw`          the text as it stands; only runs of white space become one space.
`basic`        Whisper's for any language: lower case, no brackets, marks and punctuation -> space.
               It also deletes combining vowel signs, so Hindi or Tamil scores look far too good.
`basic_marks`  the same, but combining marks (Unicode category M) stay: use it for those scripts.
`english`      Whisper's English one: numbers, contractions, British spellings. The default.

Source: OpenAI's whisper/normalizers as packaged by whisper-normalizer 0.1.15 (MIT).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

NORMALIZERS = ("english", "basic", "basic_marks", "raw")


@cache
def normalizer(name: str) -> Callable[[str], str]:
    """Return the function text -> text called `name` (one of NORMALIZERS).

    Every one returns words separated by single spaces, without space at either end.
    Raises ValueError for an unknown name.
    """
    clean = _cleaner(name)
    return lambda text: " ".join(clean(text).split())


def _cleaner(name: str) -> Callable[[str], str]:
    if name == "raw":
        return str
    if name == "english":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    if name in ("basic", "basic_marks"):
        from whisper_normalizer.basic import BasicTextNormalizer

        return BasicTextNormalizer(preserve_marks=name == "basic_marks")
    raise ValueError(f"unknown normalizer {name!r}; available: {', '.join(NORMALIZERS)}")
