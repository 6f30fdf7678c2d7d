"""From a reference and a hypothesis to counts, and from counts to rates with intervals.

WER = (S + D + I) / N over the whole corpus, N the reference words;
MER = (S + D + I) / (H + S + D + I) and WIL = 1 - H/N * H/P are bounded by 1 (Morris, Maier and
Green, Interspeech 2004); CER counts characters, spaces included. Alignments are jiwer's (minimal
edit distance).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Normalize = Callable[[str], str]
Aligned = tuple[str, str | None, str | None]  # operation, reference word, hypothesis word

MAX_COMPRESSION_RATIO = 2.4  # Whisper's own threshold (Radford et al. 2022, section 4.5)
MAX_REPEATS = 3  # the same 1-6-gram four times in a row is a loop
LONGEST_NGRAM = 6  # words
BURST_WORDS = 5  # insertions in a row
UNRELATED_SHARE = 0.2  # of the reference's words right, in references of at least
UNRELATED_WORDS = 5
BLOCK_PICKS = 4_000_000  # clips drawn at once by the bootstrap: 32 MB of indices


@dataclass(frozen=True)
class Utterance:
    """The counts of one clip; words and chars are those of the normalised reference."""

    words: int
    substitutions: int
    deletions: int
    insertions: int
    hits: int
    chars: int
    char_errors: int
    flags: tuple[str, ...]  # of loop, empty, runaway, burst, unrelated

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class Score:
    """One system on one corpus: rates are fractions, over_100 too; the other numbers are counts."""

    wer: float
    wer_interval: tuple[float, float] | None  # 95 %; None when no bootstrap was asked for
    cer: float
    mer: float
    wil: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    clips: int
    loops: int
    empties: int
    over_100: float  # share of clips with more errors than reference words
    normalizer: str

    def as_dict(self) -> dict[str, Any]:
        """Return the object that metrics.json holds for a system."""
        interval = None if self.wer_interval is None else list(self.wer_interval)
        return asdict(self) | {"wer_interval": interval}


def measure(reference: str, hypothesis: str, normalize: Normalize) -> Utterance:
    """Count one clip's errors after normalising both texts.

    An empty reference has 0 words, so each word of the hypothesis is an insertion and no rate
    is formed (jiwer 4 would return the count as if it were a rate).
    """
    import jiwer

    said, heard = normalize(reference), normalize(hypothesis)
    words = jiwer.process_words(said, heard)
    chars = jiwer.process_characters(said, heard)
    return Utterance(
        words=len(said.split()),
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        hits=words.hits,
        chars=len(said),
        char_errors=chars.substitutions + chars.deletions + chars.insertions,
        flags=_flags(reference, hypothesis, words),
    )


def align_words(reference: str, hypothesis: str, normalize: Normalize) -> list[Aligned]:
    """Align normalised words: (equal | substitute | delete | insert, reference, hypothesis).

    The word that an operation lacks (the hypothesis of a deletion, …) is None.
    """
    import jiwer

    words = jiwer.process_words(normalize(reference), normalize(hypothesis))
    said, heard = words.references[0], words.hypotheses[0]
    aligned: list[Aligned] = []
    for chunk in words.alignments[0]:
        left = said[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for at in range(max(len(left), len(right))):
            aligned.append((chunk.type, left[at] if left else None, right[at] if right else None))
    return aligned


def summarize(
    utterances: Sequence[Utterance], normalizer_name: str, bootstrap: int, seed: int
) -> Score:
    """Pool the counts into one Score with a 95 % percentile bootstrap over the clips.

    `bootstrap` is the number of resamples (0: no interval). Raises ValueError when there is no
    reference word to divide by.
    """
    totals = {
        name: sum(getattr(one, name) for one in utterances)
        for name in ("words", "substitutions", "deletions", "insertions", "hits")
    }
    if totals["words"] == 0:
        raise ValueError(
            f"{len(utterances)} clips hold no reference word after the {normalizer_name!r} "
            "normalizer: there is nothing to score against"
        )
    errors = sum(one.errors for one in utterances)
    hits = totals.pop("hits")
    rates = _resampled_wer([utterances], bootstrap, seed)
    return Score(
        wer=errors / totals["words"],
        wer_interval=_interval(rates[0]),
        cer=sum(one.char_errors for one in utterances) / sum(one.chars for one in utterances),
        mer=errors / (errors + hits),
        wil=_information_lost(hits, totals),
        **totals,
        clips=len(utterances),
        loops=sum("loop" in one.flags for one in utterances),
        empties=sum("empty" in one.flags for one in utterances),
        over_100=sum(one.errors > one.words for one in utterances) / len(utterances),
        normalizer=normalizer_name,
    )


def difference(
    a: Sequence[Utterance], b: Sequence[Utterance], bootstrap: int, seed: int
) -> dict[str, Any]:
    """Return {"wer": WER of b minus WER of a, "interval": 95 % or None}, resampling clips in pairs.

    Row i of both must be the same clip. Raises ValueError when they cannot be.
    """
    if [one.words for one in a] != [one.words for one in b]:
        raise ValueError(
            f"a paired difference needs the same clips in the same order on both sides; "
            f"got {len(a)} and {len(b)} clips whose reference words differ"
        )
    words = sum(one.words for one in a)
    if words == 0:
        raise ValueError(f"{len(a)} clips hold no reference word: there is no rate to compare")
    before, after = (sum(one.errors for one in side) for side in (a, b))
    rates = _resampled_wer([a, b], bootstrap, seed)
    interval = _interval(rates[1] - rates[0])
    return {
        "wer": (after - before) / words,
        "interval": None if interval is None else list(interval),
    }


def word_errors_metric() -> Any:
    """Return an `evaluate.Metric` over the same counts; make it once per run.

    `compute(predictions=[str], references=[str], normalizer="english", bootstrap=0, seed=1)` gives
    `Score.as_dict()`. Nothing is fetched: `evaluate.load` would download and run a script.
    """
    import datasets
    import evaluate

    from peft_whisper.scoring.normalize import normalizer as normalizer_named

    class WordErrors(evaluate.Metric):
        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description="Word, match and character error rates with their counts.",
                citation="",
                inputs_description="predictions and references: lists of strings",
                features=datasets.Features(
                    {
                        "predictions": datasets.Value("string"),
                        "references": datasets.Value("string"),
                    }
                ),
            )

        def _compute(
            self,
            predictions: list[str],
            references: list[str],
            normalizer: str = "english",
            bootstrap: int = 0,
            seed: int = 1,
        ) -> dict[str, Any]:
            clean = normalizer_named(normalizer)
            pairs = zip(references, predictions, strict=True)
            utterances = [measure(said, heard, clean) for said, heard in pairs]
            return summarize(utterances, normalizer, bootstrap, seed).as_dict()

    return WordErrors(keep_in_memory=True)


def _flags(reference: str, hypothesis: str, words: Any) -> tuple[str, ...]:
    """Name what went wrong with a clip beyond its counts; `words` is jiwer's WordOutput."""
    said, heard = len(words.references[0]), len(words.hypotheses[0])
    inserted = [c.hyp_end_idx - c.hyp_start_idx for c in words.alignments[0] if c.type == "insert"]
    empty = said > 0 and heard == 0
    unrelated = said >= UNRELATED_WORDS and words.hits < UNRELATED_SHARE * said and not empty
    found = {
        "loop": _is_loop(reference, hypothesis),
        "empty": empty,
        "runaway": heard > 2 * said + 5,
        "burst": max(inserted, default=0) >= BURST_WORDS,
        "unrelated": unrelated,
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _is_loop(reference: str, hypothesis: str) -> bool:
    """Tell whether the hypothesis repeats itself, and more so than what was really said."""
    ratio = _compression_ratio(hypothesis)
    repeats = _most_repeats(_plain_words(hypothesis))
    return ratio > max(MAX_COMPRESSION_RATIO, _compression_ratio(reference)) or repeats > max(
        MAX_REPEATS, _most_repeats(_plain_words(reference))
    )


def _plain_words(text: str) -> list[str]:
    """Split on white space, punctuation at word ends off: numbers stay as they were said."""
    stripped = (re.sub(r"^\W+|[^\w\u0300-\u1aff]+$", "", word) for word in text.lower().split())
    return [word for word in stripped if word]


def _compression_ratio(text: str) -> float:
    data = text.strip().encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data))


def _most_repeats(words: Sequence[str]) -> int:
    """Return how many times in a row the most repeated 1-6-gram occurs."""
    most = 1
    for size in range(1, LONGEST_NGRAM + 1):
        run = 0
        for at in range(size, len(words)):
            run = run + 1 if words[at] == words[at - size] else 0
            most = max(most, 1 + run // size)
    return most


def _information_lost(hits: int, totals: dict[str, int]) -> float:
    heard = hits + totals["substitutions"] + totals["insertions"]
    return 1.0 if heard == 0 else 1.0 - (hits / totals["words"]) * (hits / heard)


def _resampled_wer(systems: Sequence[Sequence[Utterance]], resamples: int, seed: int) -> np.ndarray:
    """Draw clips with replacement, the same for every system: float64 (systems, resamples).

    A draw without a single reference word has no rate and is left out.
    """
    words = np.array([one.words for one in systems[0]], dtype=np.int64)
    errors = np.array([[one.errors for one in system] for system in systems], dtype=np.int64)
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK_PICKS // words.size)
    blocks = []
    for start in range(0, resamples, rows):
        picks = rng.integers(words.size, size=(min(rows, resamples - start), words.size))
        drawn_words = words[picks].sum(axis=1)
        drawn_errors = np.stack([one[picks].sum(axis=1) for one in errors])
        blocks.append(drawn_errors[:, drawn_words > 0] / drawn_words[drawn_words > 0])
    return np.concatenate(blocks, axis=1) if blocks else np.empty((len(systems), 0))


def _interval(rates: np.ndarray) -> tuple[float, float] | None:
    if rates.size == 0:
        return None
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)
