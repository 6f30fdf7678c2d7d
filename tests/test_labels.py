"""The token layout, against OpenAI's own tokenizer for all three vocabularies."""

from __future__ import annotations

import pytest
import whispers
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_whisper.data.labels import MAX_TOKENS, Labels

KINDS = list(whispers.VOCABULARIES)
TEXTS = [
    "Code red, bravo six.",
    "It's 12:45 o'clock; that's £3.50!",
    "Grüße aus Köln, naïve café",
    "頑張ってください",
    "नमस्ते दुनिया 🙂",
    "<|endoftext|> is not a token here",
]


def labels(kind: str) -> Labels:
    return Labels(whispers.tokenizer(kind), whispers.VOCABULARIES[kind])


def openai_tokenizer(kind: str, language: str):
    many = kind != ".en"
    return whispers.openai_tokenizer_module().get_tokenizer(
        many,
        num_languages=100 if kind == "large-v3" else 99,
        language=language if many else None,
        task="transcribe" if many else None,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_row_is_what_whisper_was_trained_with(kind: str, text: str) -> None:
    theirs = openai_tokenizer(kind, "en")
    prefix = list(theirs.sot_sequence_including_notimestamps)
    # `disallowed_special=()`: what looks like a control token in a transcript is only text.
    body = theirs.encoding.encode(" " + text, disallowed_special=())
    row = labels(kind).row(text, "en")
    assert list(row.decoder_input_ids) == prefix + body
    assert list(row.targets) == prefix[1:] + body + [theirs.eot]


@pytest.mark.parametrize(
    ("kind", "fed", "target"),
    [
        ("large-v3", [50258, 50259, 50360, 50364], [50259, 50360, 50364]),
        ("multilingual", [50258, 50259, 50359, 50363], [50259, 50359, 50363]),
        (".en", [50257, 50362], [50362]),
    ],
)
def test_prefix_ids_of_the_published_layouts(kind: str, fed: list, target: list) -> None:
    row = labels(kind).row("red", "en")
    assert list(row.decoder_input_ids[: len(fed)]) == fed
    assert list(row.targets[: len(target)]) == target
    assert row.targets[-1] == {".en": 50256}.get(kind, 50257)
    assert row.decoder_input_ids.count(fed[0]) == 1  # start-of-transcript is not doubled


@pytest.mark.parametrize("kind", KINDS)
def test_timestamped_rows_close_the_segment(kind: str) -> None:
    theirs = openai_tokenizer(kind, "en")
    row = labels(kind).row("red", "en", speech_s=1.237)
    at_zero, at_end = theirs.timestamp_begin, theirs.timestamp_begin + 62  # 1.24 s / 0.02 s
    assert theirs.no_timestamps not in row.decoder_input_ids
    assert list(row.targets[-3:]) == [*theirs.encode(" red"), at_end, theirs.eot]
    assert at_zero in row.targets


@pytest.mark.parametrize("kind", KINDS)
def test_count_is_the_length_of_the_longest_form(kind: str) -> None:
    made = labels(kind)
    for text in TEXTS:
        row = made.row(text, "en", speech_s=30.0)
        assert made.count(text, "en") == len(row.decoder_input_ids) + 1
    assert made.count("word " * 500, "en") > MAX_TOKENS


def test_rows_may_differ_in_language() -> None:
    made = labels("large-v3")
    for language in ("fr", "ko", "yue"):
        theirs = openai_tokenizer("large-v3", language)
        assert tuple(made.prefix(language)) == theirs.sot_sequence_including_notimestamps


def test_languages_without_spaces_get_none() -> None:
    made, theirs = labels("large-v3"), openai_tokenizer("large-v3", "ja")
    assert made.text("頑張って", "ja") == theirs.encode("頑張って")
    assert made.text("bonjour", "fr") == theirs.encode(" bonjour")


def test_a_missing_or_unknown_language_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.language"):
        labels("large-v3").prefix(None)
    with pytest.raises(ValueError, match=r"<\|xx\|>"):
        labels("multilingual").prefix("xx")
    with pytest.raises(ValueError, match=r"<\|yue\|>"):  # Cantonese came with large-v3
        labels("multilingual").prefix("yue")


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=60).filter(lambda text: text.strip() == text))
def test_decoding_gives_back_any_text(text: str) -> None:
    made = labels("multilingual")
    row = made.row(text, "en")
    assert made.decode(row.targets) == text
    assert all(token < made.end for token in made.text(text, "en"))
