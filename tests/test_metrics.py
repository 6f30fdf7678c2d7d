"""Counts are those a person would make, rates those of the papers, intervals what they claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_whisper.scoring.metrics import Utterance, align_words, difference, measure, summarize
from peft_whisper.scoring.normalize import normalizer

REPOSITORY = Path(__file__).resolve().parent.parent
RAW = normalizer("raw")
SENTENCE = "the red team will cover the left side"


def counts(reference: str, hypothesis: str) -> tuple[int, ...]:
    """(words, substitutions, deletions, insertions, hits)"""
    one = measure(reference, hypothesis, RAW)
    return one.words, one.substitutions, one.deletions, one.insertions, one.hits


def flags(reference: str, hypothesis: str) -> tuple[str, ...]:
    return measure(reference, hypothesis, normalizer("english")).flags


def score(*pairs: tuple[str, str]):
    return summarize([measure(*pair, RAW) for pair in pairs], "raw", 0, 1)


# Counts and rates


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", (3, 0, 0, 0, 3)),
        ("a b c", "a x c", (3, 1, 0, 0, 2)),
        ("a b c", "a c", (3, 0, 1, 0, 2)),
        ("a b c", "a b x c", (3, 0, 0, 1, 3)),
        ("a b c d", "b x d e", (4, 1, 1, 1, 2)),
        ("a b", "", (2, 0, 2, 0, 0)),
        ("", "a b", (0, 0, 0, 2, 0)),
        ("", "", (0, 0, 0, 0, 0)),
    ],
)
def test_words_are_counted_as_by_hand(reference, hypothesis, expected):
    assert counts(reference, hypothesis) == expected


def test_the_rates_are_those_of_the_papers():
    found = score(("a b c d", "b x d e"), ("ab", "ac ad"))
    # By hand: S 1+1, D 1, I 1+1, H 2, N 5, P 6. Characters: four letters of "a b c d" become
    # others in "b x d e", its spaces stay; "ab" -> "ac ad" is one substitution, three insertions.
    assert (found.substitutions, found.deletions, found.insertions) == (2, 1, 2)
    assert (found.words, found.clips) == (5, 2)
    assert found.wer == pytest.approx(5 / 5)
    assert found.mer == pytest.approx(5 / 7)
    assert found.wil == pytest.approx(1 - (2 / 5) * (2 / 6))
    assert found.cer == pytest.approx((4 + 4) / (7 + 2))
    assert found.over_100 == pytest.approx(1 / 2)


def test_characters_count_the_spaces_between_words():
    one = measure("ab cd", "abcd", RAW)
    assert (one.chars, one.char_errors) == (5, 1)
    assert measure("ab", "", RAW).char_errors == 2
    assert measure("", "ab", RAW).char_errors == 2
    assert measure("नमस्ते", "नमसते", RAW).char_errors == 1


WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "ü"]), max_size=7).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=6)


@given(PAIRS)
@settings(max_examples=150, deadline=None)
def test_a_corpus_gets_the_rates_that_jiwer_gives_it(pairs):
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    words = jiwer.process_words(references, hypotheses)
    found = score(*pairs)
    assert found.wer == pytest.approx(words.wer)
    assert found.mer == pytest.approx(words.mer)
    assert found.wil == pytest.approx(words.wil)
    assert found.cer == pytest.approx(jiwer.cer(references, hypotheses))
    assert found.substitutions + found.deletions + found.insertions == (
        words.substitutions + words.deletions + words.insertions
    )


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6), st.sampled_from(["raw", "basic"]))
@settings(max_examples=150, deadline=None)
def test_counts_add_up_and_bounded_rates_are_bounded(pairs, name):
    clean = normalizer(name)
    measured = [measure(*pair, clean) for pair in pairs]
    for (reference, hypothesis), one in zip(pairs, measured, strict=True):
        assert one.hits + one.substitutions + one.deletions == one.words
        heard = len(clean(hypothesis).split())
        assert one.hits + one.substitutions + one.insertions == heard
        assert one.chars == len(clean(reference))
        assert one.errors >= abs(one.words - heard)
    if any(one.words for one in measured):
        found = summarize(measured, name, 0, 1)
        assert 0 <= found.mer <= min(1.0, found.wer) + 1e-12
        assert 0 <= found.wil <= 1
        assert 0 <= found.over_100 <= 1
        assert found.clips == len(pairs)


def test_a_clip_over_100_percent_has_more_errors_than_words():
    assert score(("a b", "x y")).over_100 == 0
    assert score(("a b", "x y z")).over_100 == 1
    assert score(("a", "a"), ("", "x"), ("a b", "x y"), ("a", "")).over_100 == 1 / 4


def test_words_in_answer_to_silence_are_insertions_of_the_corpus():
    found = score(("a b c d", "a b c d"), ("", "thank you"))
    assert (found.wer, found.insertions, found.words) == (0.5, 2, 4)
    assert found.mer == pytest.approx(2 / 6)


def test_nothing_heard_at_all_is_all_lost():
    found = score(("a b", ""), ("c", ""))
    assert (found.wer, found.mer, found.wil, found.cer) == (1, 1, 1, 1)
    assert found.empties == 2


@pytest.mark.parametrize("pairs", [[], [("", "")], [("", "a")]])
def test_a_corpus_without_a_reference_word_has_no_rate(pairs):
    with pytest.raises(ValueError, match=f"{len(pairs)} clips hold no reference word after .*raw"):
        score(*pairs)


def test_both_sides_are_normalised_before_they_are_compared():
    one = measure("Twenty-one COLOURS!", "21 colors", normalizer("english"))
    assert (one.words, one.errors, one.char_errors) == (2, 0, 0)


def test_a_score_becomes_the_object_of_metrics_json():
    found = summarize([measure("a b", "a", RAW)], "raw", 50, 1)
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain == {**asdict(found), "wer_interval": [0.5, 0.5]}
    assert score(("a", "a")).as_dict()["wer_interval"] is None


# Flags: one that shows it, one that just doesn't

HOLD = "hold the line "


@pytest.mark.parametrize(
    ("flag", "reference", "shown", "just_not"),
    [
        ("loop", "hold the line", HOLD * 4, HOLD * 3),
        ("loop", "go now", "go go go go now", "go go go now"),
        ("loop", "a b c d e f", "a b c d e f " * 4, "a b c d e f " * 3),
        ("loop", "go", "Go, go. Go! GO", "Go, go. Go! got"),
        ("empty", "hold", "", "h"),
        ("empty", "hold", "...", "hold..."),
        ("runaway", "hold", "b c d e f g h i", "b c d e f g h"),
        ("runaway", "", "b c d e f g", "b c d e f"),
        ("burst", SENTENCE, f"x y z u v {SENTENCE}", f"x y z u {SENTENCE}"),
        ("burst", SENTENCE, SENTENCE + " x y z u v", f"x y {SENTENCE} z u v"),
        ("unrelated", "a b c d e", "v w x y z", "a w x y z"),
        ("unrelated", "a b c d e f", "a v w x y z", "a b w x y z"),
        ("unrelated", "a b c d e", "x", ""),
        ("unrelated", "a b c d e", "v w x y z", "v w x y e"),
    ],
)
def test_a_flag_is_raised_and_just_not_raised(flag, reference, shown, just_not):
    clean = RAW if flag != "empty" else normalizer("basic")
    assert flag in measure(reference, shown, clean).flags
    assert flag not in measure(reference, just_not, clean).flags


def test_short_references_are_never_unrelated():
    assert "unrelated" not in flags("b c d e", "v w x y")


def test_a_loop_too_long_for_the_counted_words_is_seen_by_compression():
    words = "alpha bravo charlie delta echo foxtrot golf hotel "  # eight, more than are counted
    assert "loop" in flags(words, words * 8)
    assert "loop" not in flags(words, words)


@pytest.mark.parametrize(
    ("reference", "hypothesis"),
    [
        ("one one one one one", "one one one one one"),
        ("one one one one one", "1 1 1 1 1"),
        ("One, one, one, one, one.", "one one one one"),
        ("no no no no no no no", "no no no no no no"),
        ("ha " * 40, "ha " * 40),
    ],
)
def test_repetition_that_was_really_said_is_no_loop(reference, hypothesis):
    assert "loop" not in flags(reference, hypothesis)


def test_more_repetition_than_was_said_is_a_loop():
    assert "loop" in flags("one one one one one", "one " * 6)


def test_a_right_clip_and_a_silent_one_have_no_flag():
    assert flags(SENTENCE, SENTENCE) == ()
    assert flags("", "") == ()


def test_flags_are_counted_in_the_score():
    found = score(("go", "go " * 9), ("go", ""), ("go", "go"), ("go", ""))
    assert (found.loops, found.empties, found.clips) == (1, 2, 4)


# Alignment


def test_words_are_aligned_with_what_became_of_them():
    aligned = align_words("The red team, HOLD on", "red beam hold x y", normalizer("basic"))
    assert aligned == [
        ("delete", "the", None),
        ("equal", "red", "red"),
        ("substitute", "team", "beam"),
        ("equal", "hold", "hold"),
        ("insert", None, "x"),
        ("substitute", "on", "y"),
    ]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("", "", []),
        ("", "a b", [("insert", None, "a"), ("insert", None, "b")]),
        ("a b", "", [("delete", "a", None), ("delete", "b", None)]),
    ],
)
def test_an_empty_side_aligns_too(reference, hypothesis, expected):
    assert align_words(reference, hypothesis, RAW) == expected


@given(WORDS, WORDS)
@settings(max_examples=150, deadline=None)
def test_an_alignment_tells_both_texts_and_the_counts(reference, hypothesis):
    aligned = align_words(reference, hypothesis, RAW)
    assert [said for _, said, _ in aligned if said is not None] == reference.split()
    assert [heard for _, _, heard in aligned if heard is not None] == hypothesis.split()
    kinds = [kind for kind, _, _ in aligned]
    names = ("substitute", "delete", "insert", "equal")
    assert counts(reference, hypothesis)[1:] == tuple(kinds.count(name) for name in names)
    assert all((said == heard) == (kind == "equal") for kind, said, heard in aligned)


# Intervals


def clip(words: int, errors: int) -> Utterance:
    """A clip whose errors are all substitutions."""
    return Utterance(words, errors, 0, 0, words - errors, words, errors, ())


def corpus(rng: np.random.Generator, clips: int, rate: float) -> list[Utterance]:
    """Clips of 3 to 12 words, each as hard as chance has it, of `rate` errors on average."""
    words = rng.integers(3, 13, clips)
    hardness = rng.beta(2 * rate, 2 * (1 - rate), clips)
    errors = rng.binomial(words, hardness)
    return [clip(int(n), int(e)) for n, e in zip(words, errors, strict=True)]


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly_so():
    clips = corpus(np.random.default_rng(1), 100, 0.3)
    first, again, other = (summarize(clips, "raw", 2_000, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.wer_interval != other.wer_interval
    assert first.wer_interval == pytest.approx(other.wer_interval, abs=0.02)
    assert summarize(clips, "raw", 0, 1) == replace(first, wer_interval=None)


def test_memory_is_bounded_and_blocks_do_not_repeat_themselves():
    clips = corpus(np.random.default_rng(1), 3_000, 0.3)  # 1,333 resamples fill a block
    low, high = summarize(clips, "raw", 3_000, 1).wer_interval or (0, 0)
    halves = summarize(clips, "raw", 1_300, 1).wer_interval
    assert halves == pytest.approx((low, high), abs=0.003)
    assert halves != (low, high)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_an_interval_holds_its_rate(pairs):
    clips = [clip(words, min(words, errors)) for words, errors in pairs]
    found = summarize(clips, "raw", 400, 1)
    assert found.wer_interval is not None
    low, high = found.wer_interval
    assert low <= found.wer <= high


def test_a_corpus_of_equal_clips_has_no_width():
    assert summarize([clip(4, 1)] * 9, "raw", 100, 1).wer_interval == (0.25, 0.25)


def test_clips_without_words_do_not_break_the_bootstrap():
    silence = Utterance(0, 0, 0, 1, 0, 0, 1, ())
    low, high = summarize([clip(2, 1), silence, silence], "raw", 500, 1).wer_interval or (0, 0)
    assert 0.5 <= low <= high < np.inf


def test_nineteen_of_twenty_intervals_hold_the_truth():
    rate, trials = 0.3, 300
    hits, widths = 0, []
    for trial in range(trials):
        found = summarize(corpus(np.random.default_rng(trial), 80, rate), "raw", 300, trial)
        low, high = found.wer_interval or (0, 0)
        hits += low <= rate <= high
        widths.append(high - low)
    mean = 100 * np.mean(widths)
    print(f"95 % intervals held the truth in {hits}/{trials} corpora, {mean:.1f} points wide")
    assert 0.90 <= hits / trials <= 0.98


def test_more_clips_make_narrower_intervals():
    def width(clips: int) -> float:
        low, high = summarize(
            corpus(np.random.default_rng(1), clips, 0.3), "raw", 500, 1
        ).wer_interval or (0, 0)
        return high - low

    assert width(1_600) == pytest.approx(width(100) / 4, rel=0.3)


# Paired differences


def test_a_difference_is_that_of_the_rates_and_pairs_the_clips():
    rng = np.random.default_rng(1)
    before = corpus(rng, 120, 0.5)
    after = [clip(one.words, max(0, one.errors - 1)) for one in before]
    found = difference(before, after, 1_000, 1)
    apart = summarize(after, "raw", 0, 1).wer - summarize(before, "raw", 0, 1).wer
    assert found["wer"] == pytest.approx(apart)
    low, high = found["interval"]
    assert low <= found["wer"] <= high < 0
    unpaired = summarize(before, "raw", 1_000, 1).wer_interval or (0, 0)
    assert high - low < 0.5 * (unpaired[1] - unpaired[0])
    assert found == difference(before, after, 1_000, 1)
    mirrored = difference(after, before, 1_000, 1)
    assert mirrored["interval"] == pytest.approx([-high, -low])


def test_no_difference_is_none_and_has_no_width():
    clips = corpus(np.random.default_rng(1), 50, 0.3)
    assert difference(clips, clips, 100, 1) == {"wer": 0.0, "interval": [0.0, 0.0]}
    assert difference(clips, clips, 0, 1) == {"wer": 0.0, "interval": None}


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([clip(3, 1)], [clip(3, 1), clip(3, 1)], "same clips in the same order.*1 and 2 clips"),
        ([clip(3, 1), clip(4, 1)], [clip(4, 1), clip(3, 1)], "same clips in the same order"),
        ([], [], "0 clips hold no reference word"),
        ([clip(0, 0)], [clip(0, 0)], "1 clips hold no reference word"),
    ],
)
def test_sides_that_are_no_pairs_are_refused(a, b, said):
    with pytest.raises(ValueError, match=said):
        difference(a, b, 10, 1)


# As a metric of `evaluate`

OFFLINE = """if True:
    import json, socket
    def refused(*a, **k):
        raise OSError("no network in this test")
    socket.socket.connect = socket.getaddrinfo = socket.create_connection = refused
    from peft_whisper.scoring.metrics import word_errors_metric
    metric = word_errors_metric()
    sides = {"predictions": ["A Colour!", "x"], "references": ["a color", "b c"]}
    print(json.dumps([
        metric.compute(**sides),
        metric.compute(**sides, normalizer="basic", bootstrap=50, seed=2),
    ]))
"""


def test_the_evaluate_metric_gives_the_same_numbers_without_a_network(tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path)}
    environment = {k: v for k, v in environment.items() if not k.endswith("_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    english, basic = json.loads(done.stdout)
    sides = [("a color", "A Colour!"), ("b c", "x")]
    expected = [measure(*pair, normalizer("english")) for pair in sides]
    assert english == summarize(expected, "english", 0, 1).as_dict()
    assert english["wer"] == 0.5
    expected = [measure(*pair, normalizer("basic")) for pair in sides]
    assert basic == summarize(expected, "basic", 50, 2).as_dict()
    assert basic["wer"] == 0.75
