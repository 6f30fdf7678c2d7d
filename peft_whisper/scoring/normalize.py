"""Text normalisers: what counts as the same word when errors are counted.

`raw`          the text as it stands; only runs of white space become one space.
`basic`        Whisper's for any language: lower case, no brackets, marks and punctuation -> space.
               It also deletes combining vowel signs, so Hindi or Tamil scores look far too good.
`basic_marks`  the same, but combining marks (Unicode category M) stay: use it for those scripts.
`characters`   `basic_marks` with each character as a word of its own, for scripts without spaces:
               the word error rate is then a character error rate.
`english`      Whisper's English one: numbers, contractions, British spellings; the full stops that
               it leaves standing alone are no words and go too.

Source: OpenAI's whisper/normalizers as packaged by whisper-normalizer 0.1.15 (MIT).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

NORMALIZERS = ("english", "basic", "basic_marks", "characters", "raw")


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
        return _english()
    if name in ("basic", "basic_marks", "characters"):
        from whisper_normalizer.basic import BasicTextNormalizer

        keep, split = name != "basic", name == "characters"
        return BasicTextNormalizer(preserve_marks=keep, split_letters=split)
    raise ValueError(f"unknown normalizer {name!r}; available: {', '.join(NORMALIZERS)}")


def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    normalize = EnglishTextNormalizer()
    return lambda text: " ".join(word for word in normalize(text).split() if word.strip("."))
