"""Two transcripts of one recording beside each other, their differing words marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from peft_whisper.languages import UNSPACED_LANGUAGES
from peft_whisper.scoring.longform import Segment
from peft_whisper.scoring.subtitles import clock

if TYPE_CHECKING:
    from rich.table import Table

EDGES = re.compile(r"^\W+|[^\w\u0300-\u1aff]+$")  # combining vowel signs are no \w
Pair = tuple[str | None, str | None]  # a word of each side; None where one has none


@dataclass(frozen=True)
class Row:
    """Words up to where both transcripts end a segment."""

    start_s: float
    pairs: tuple[Pair, ...]
    space: str  # between words


def rows(left: Sequence[Segment], right: Sequence[Segment], language: str | None) -> list[Row]:
    """Both transcripts, aligned word by word (character by character without spaces)."""
    space = "" if language in UNSPACED_LANGUAGES else " "
    sides = [_words(left, space), _words(right, space)]
    made: list[Row] = []
    held: list[Pair] = []
    at, starts = [0, 0], []
    ends = [True, True]  # of a segment, on each side
    for pair in _aligned(*([word for word, _, _ in side] for side in sides)):
        for side, word in enumerate(pair):
            if word is not None:
                _, start, ends[side] = sides[side][at[side]]
                at[side] += 1
                starts.append(start)
        held.append(pair)
        if all(ends):  # as they are behind the last pair
            # A segment of one side may have begun before rows that only the other side has.
            before = made[-1].start_s if made else -1.0
            start_s = min((start for start in starts if start > before), default=before)
            made.append(Row(start_s, tuple(held), space))
            held, starts = [], []
    return made


def differing(shown: Sequence[Row]) -> tuple[int, int]:
    """Words that differ, and all words, a pair counting once."""
    pairs = [pair for row in shown for pair in row.pairs]
    return sum(not _same(*pair) for pair in pairs), len(pairs)


def differs(pair: Pair) -> bool:
    """Whether a word has no like on the other side."""
    return not _same(*pair)


def plain(shown: Sequence[Row]) -> str:
    """A line a row for a pipe: [-of the left-] and {+of the right+} where they differ."""
    lines = []
    for row in shown:
        words = []
        for left, right in row.pairs:
            if _same(left, right):
                words.append(right)
            else:
                words += [f"[-{left}-]"] * (left is not None)
                words += [f"{{+{right}+}}"] * (right is not None)
        lines.append(
            f"{clock(round(1000 * row.start_s), '.')}  {row.space.join(map(str, words))}\n"
        )
    return "".join(lines)


def table(shown: Sequence[Row], names: tuple[str, str]) -> Table:
    """A table for a terminal: what only the left has is red, what only the right has is green."""
    from rich.table import Table
    from rich.text import Text

    made = Table("time", *names, show_lines=True)
    for row in shown:
        cells = [Text(), Text()]
        for pair in row.pairs:
            for cell, word, colour in zip(cells, pair, ("bold red", "bold green"), strict=True):
                if word is not None:
                    cell.append(row.space if cell else "")
                    cell.append(word, style="" if _same(*pair) else colour)
        made.add_row(clock(round(1000 * row.start_s), ".")[:8], *cells)
    return made


def _words(segments: Sequence[Segment], space: str) -> list[tuple[str, float, bool]]:
    """Each word with its segment's start in seconds, and whether it is its segment's last."""
    found = []
    for one in segments:
        words = one.text.split() if space else list("".join(one.text.split()))
        found += [(word, one.start_s, at == len(words)) for at, word in enumerate(words, start=1)]
    return found


def _aligned(left: Sequence[str], right: Sequence[str]) -> list[Pair]:
    import jiwer

    if not left or not right:  # jiwer wants a word on each side
        return list(zip_longest(left, right))
    found = jiwer.process_words(" ".join(map(_key, left)), " ".join(map(_key, right)))
    pairs: list[Pair] = []
    for chunk in found.alignments[0]:
        pairs += zip_longest(
            left[chunk.ref_start_idx : chunk.ref_end_idx],
            right[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
    return pairs


def _same(left: str | None, right: str | None) -> bool:
    return left is not None and right is not None and _key(left) == _key(right)


def _key(word: str) -> str:
    """What of a word is compared: not its case, nor the punctuation around it."""
    return EDGES.sub("", word.lower()) or word
