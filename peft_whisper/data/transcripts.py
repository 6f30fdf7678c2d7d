"""What the transcripts are like: casing, punctuation, odd characters, words that cost many tokens.

A fine-tuned Whisper writes the way its transcripts do, their accidents included: what is looked
for here is what would be learned by mistake.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from peft_whisper.data.labels import UNSPACED_LANGUAGES
from peft_whisper.data.scripts import is_foreign, is_invisible, visible

if TYPE_CHECKING:
    from peft_whisper.data.audit import Clip
    from peft_whisper.data.labels import Labels

EXAMPLES = 3  # clips shown for a habit
DIFFERS = 0.2  # a habit whose share in train is so far from another split's ...
ENOUGH = 20  # ... where both have so many clips, is one that the scores will show
RARE = 0.05  # a character in a smaller share of the clips is rare
COMMON = frozenset(" .,?!'-")  # what a plain English transcript has beside letters and digits
FEWEST_PIECES = 3  # a word of two tokens is nothing unusual

_MARKUP = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>|\{[^}]*\}|\*[^*]+\*")
_BROKEN = re.compile("\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")  # UTF-8 read as Latin-1


@dataclass(frozen=True)
class Placed:
    """A clip and the split it is in."""

    split: str
    clip: Clip

    @property
    def rate(self) -> float:
        """Characters of transcript per second of sound: far off where the two don't belong."""
        return len(self.clip.text.strip()) / self.clip.duration_s


@dataclass(frozen=True)
class Habit:
    """How many clips of each split do something; `examples` are of the rarer side.

    `usual`: more than half of all clips do it, so the examples are those that don't. `differs`:
    train and a held-out split do it in clearly different shares.
    """

    name: str
    why: str
    counts: dict[str, int]
    usual: bool
    differs: bool
    examples: tuple[Placed, ...]


@dataclass(frozen=True)
class Character:
    """A character that few clips have, its Unicode name, and one of those clips."""

    character: str
    name: str
    clips: int
    example: Placed

    def around(self, most: int) -> str:
        """At most so many characters of the example's transcript, with this one among them."""
        text, at = self.example.clip.text, self.example.clip.text.index(self.character)
        first = max(0, min(at - most // 2, len(text) - most))
        return "…" * (first > 0) + text[first : first + most] + "…" * (first + most < len(text))


@dataclass(frozen=True)
class Word:
    """A word that costs `surplus` more tokens than others of its length; all its `pieces`."""

    word: str
    times: int
    pieces: tuple[str, ...]
    surplus: float


Test = Callable[[str, str], bool]  # (transcript, language it is written in) -> is it so?


def written_in(clip: Clip, task: str) -> str:
    """Language of the transcript, which is not the spoken one where Whisper translates."""
    return "en" if task == "translate" or clip.language is None else clip.language


def _kinds(text: str) -> set[str]:
    return {unicodedata.category(character)[0] for character in text}


def _one_case(text: str, upper: bool) -> bool:
    """All of at least four cased letters are of one case; fewer may be an acronym."""
    cased = [c for c in text if c.isupper() or c.islower()]
    return len(cased) >= 4 and all(c.isupper() == upper for c in cased)


def _first_letter_is_capital(text: str) -> bool:
    return next((c for c in text if c.isalpha()), "").isupper()


HABITS: dict[str, tuple[str, Test]] = {
    "begins with a capital": (
        "the model will copy it",
        lambda text, _: _first_letter_is_capital(text),
    ),
    "ends with punctuation": (
        "half and half teaches it to guess",
        lambda text, _: unicodedata.category(text.strip()[-1])[0] == "P",
    ),
    "no punctuation at all": (
        "the model forgets the punctuation it knew",
        lambda text, _: "P" not in _kinds(text.replace("'", "").replace("-", "")),
    ),
    "ALL CAPS": (
        "costs about twice the tokens, and the model will shout",
        lambda text, _: _one_case(text, upper=True),
    ),
    "all lower case": (
        "the model forgets the casing it knew",
        lambda text, _: _one_case(text, upper=False),
    ),
    "digits": (
        "14 and fourteen are different words in a raw WER",
        lambda text, _: any(c.isdigit() for c in text),
    ),
    "brackets or markup": (
        "[noise], (laughs), <unk>: written into every output later",
        lambda text, _: _MARKUP.search(text) is not None,
    ),
    "symbols": (
        "% or $ is spoken; is it always written so?",
        lambda text, _: "S" in _kinds(text.replace("<", "").replace(">", "")),
    ),
    "line breaks, tabs, double spaces": (
        "they are tokens, and will be written",
        lambda text, _: re.search(r"[^\S ]|  ", text.strip()) is not None,
    ),
    "invisible characters": (
        "left over from a web page or an editor",
        lambda text, language: any(is_invisible(c, language) for c in text),
    ),
    "letters of another script": (
        "a look-alike letter, or another language",
        lambda text, language: any(is_foreign(c, language) for c in text),
    ),
    "broken encoding": (
        "UTF-8 once read as Latin-1: repair the source",
        lambda text, _: _BROKEN.search(text) is not None,
    ),
}


def habits(placed: Sequence[Placed], task: str) -> tuple[Habit, ...]:
    """Look at every transcript for each of HABITS, in that order."""
    sizes = Counter(one.split for one in placed)
    return tuple(
        _habit(name, why, test, placed, task, sizes) for name, (why, test) in HABITS.items()
    )


def _habit(
    name: str, why: str, test: Test, placed: Sequence[Placed], task: str, sizes: Counter[str]
) -> Habit:
    does = [test(one.clip.text, written_in(one.clip, task)) for one in placed]
    counts = Counter(one.split for one, so in zip(placed, does, strict=True) if so)
    usual = 2 * sum(does) > len(does)
    rarer = (one for one, so in zip(placed, does, strict=True) if so != usual)
    share = {split: counts[split] / size for split, size in sizes.items() if size >= ENOUGH}
    differs = any(abs(s - share.get("train", s)) >= DIFFERS for s in share.values())
    examples = tuple(one for one, _ in zip(rarer, range(EXAMPLES), strict=False))
    return Habit(name, why, {split: counts[split] for split in sizes}, usual, differs, examples)


def characters(placed: Sequence[Placed], task: str) -> tuple[Character, ...]:
    """Characters that few clips have, the strangest kinds first.

    Letters of large scripts are left out: most Chinese characters are rare.
    """
    clips: Counter[str] = Counter()
    first: dict[str, Placed] = {}
    for one in placed:
        for character in sorted(set(one.clip.text)):
            clips[character] += 1
            first.setdefault(character, one)
    rare = [
        Character(c, _name(c), count, first[c])
        for c, count in clips.items()
        if count <= max(1, RARE * len(placed)) and not _is_plain(c, first[c], task)
    ]
    strangeness = {"C": 0, "Z": 0, "S": 1, "L": 2, "M": 2, "N": 2, "P": 3}
    kind = {c.character: strangeness[unicodedata.category(c.character)[0]] for c in rare}
    return tuple(sorted(rare, key=lambda c: (kind[c.character], c.clips, c.character)))


def _is_plain(character: str, first: Placed, task: str) -> bool:
    if character in COMMON or (character.isascii() and character.isalnum()):
        return True
    large = unicodedata.name(character, "").split(" ")[0] in ("CJK", "HANGUL")
    return large and not is_foreign(character, written_in(first.clip, task))


def _name(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, 'control character').lower()}"


def costly_words(placed: Iterable[Placed], labels: Labels) -> tuple[Word, ...]:
    """Words of at least three tokens that cost more than their length explains, worst first.

    What a word of its length costs is the mean over all words of its language: in scripts that
    Whisper's vocabulary hardly has, every character costs tokens. Languages written without
    spaces have no words here.
    """
    times: Counter[tuple[str, str]] = Counter()
    for one in placed:
        language = written_in(one.clip, labels.task)
        if language not in UNSPACED_LANGUAGES:
            times.update((language, word) for word in _words(one.clip.text))
    ids = {key: labels.text(key[1], key[0]) for key in times}
    spent, written = Counter[str](), Counter[str]()
    for (language, word), count in times.items():
        spent[language] += count * len(ids[language, word])
        written[language] += count * len(word)
    found = [
        Word(
            word,
            count,
            tuple(spell(i, labels) for i in ids[language, word]),
            len(ids[language, word]) - len(word) * spent[language] / written[language],
        )
        for (language, word), count in times.items()
        if len(ids[language, word]) >= FEWEST_PIECES
    ]
    return tuple(sorted((w for w in found if w.surplus > 0), key=lambda w: (-w.surplus, w.word)))


def _words(text: str) -> Iterable[str]:
    """Words without the punctuation around them."""
    for word in text.split():
        ends = "".join(c for c in set(word) if unicodedata.category(c)[0] in "PS")
        if bare := word.strip(ends) if ends else word:
            yield bare


def spell(token: int, labels: Labels) -> str:
    """A token for reading: a space is \u2423, a piece of a character its bytes in hexadecimal."""
    name = str(labels.tokenizer.convert_ids_to_tokens(token))
    if token >= labels.end:
        return name
    raw = bytes(_byte_of()[letter] for letter in name)
    try:
        return visible(raw.decode("utf-8").replace(" ", "\u2423"))
    except UnicodeDecodeError:
        return f"\u27e8{raw.hex(' ').upper()}\u27e9"


@cache
def _byte_of() -> dict[str, int]:
    """The letter by which a byte-level vocabulary spells a byte -> that byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
