"""Scripts and invisible characters: what a language is written in, and what nobody sees."""

from __future__ import annotations

import unicodedata
from functools import cache

# First words of the Unicode names of a language's letters; a language that is not here is written
# in Latin. Some are written in more than one script.
SCRIPTS = {
    "ARABIC": "ar fa ps sd ur",
    "ARMENIAN": "hy",
    "BENGALI": "as bn",
    "CJK": "ja ko yue zh",
    "CYRILLIC": "ba be bg kk mk mn ru sr tg tt uk uz",
    "DEVANAGARI": "hi mr ne sa sd",
    "ETHIOPIC": "am",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he yi",
    "HIRAGANA": "ja",
    "KANNADA": "kn",
    "KATAKANA": "ja",
    "KHMER": "km",
    "LAO": "lo",
    "LATIN": "kk sr uz",
    "MALAYALAM": "ml",
    "MYANMAR": "my",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
    "TIBETAN": "bo",
}
_LATIN = frozenset({"LATIN", "FEMININE", "MASCULINE"})  # the latter are the ordinals of Spanish
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


@cache
def scripts_of(language: str) -> frozenset[str]:
    """First words of the Unicode names that the language's letters have."""
    found = {script for script, codes in SCRIPTS.items() if language in codes.split()}
    return frozenset(found - {"LATIN"}) | (_LATIN if "LATIN" in found or not found else set())


def is_foreign(character: str, language: str) -> bool:
    """Is it a letter of a script that the language isn't written in?"""
    if unicodedata.category(character) not in ("Lu", "Ll", "Lt", "Lo"):
        return False  # modifier letters go with several scripts
    return unicodedata.name(character, "?").split()[0] not in scripts_of(language)


def is_invisible(character: str, language: str) -> bool:
    """Is it a control or format character that says nothing in this language?"""
    if character in "\u200c\u200d":  # joiners: spelling in Arabic and Indic scripts
        return "LATIN" in scripts_of(language)
    return unicodedata.category(character)[0] == "C" and not character.isspace()


def visible(text: str) -> str:
    """`text` with every control, format and line-breaking character as its code point.

    So that none moves a terminal's cursor, and that each is seen.
    """
    hidden = {c for c in set(text) if unicodedata.category(c) in _HIDDEN}
    return "".join(f"\u27e8U+{ord(c):04X}\u27e9" if c in hidden else c for c in text)
