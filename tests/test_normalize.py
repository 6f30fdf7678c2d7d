"""Four normalisers, and which letters each of them keeps."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_whisper.scoring.normalize import NORMALIZERS, normalizer

SPOKEN = " Don't  stop [noise] (uh) — COLOUR,\ttwenty-one! "
INDIC = {
    "Hindi": "नमस्ते दुनिया",
    "Tamil": "வணக்கம் உலகம்",
    "Bengali": "বাংলা ভাষা",
    "Thai": "สวัสดีชาวโลก",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("english", "do not stop color 21"),
        ("basic", "don t stop colour twenty one"),
        ("basic_marks", "don t stop colour twenty one"),
        ("raw", "Don't stop [noise] (uh) — COLOUR, twenty-one!"),
    ],
)
def test_each_does_what_it_says(name, expected):
    assert normalizer(name)(SPOKEN) == expected


def marks(text: str) -> int:
    return sum(unicodedata.category(letter)[0] == "M" for letter in text)


@pytest.mark.parametrize("language", INDIC)
def test_vowel_signs_are_kept_by_basic_marks_and_lost_by_basic(language):
    text = unicodedata.normalize("NFKC", INDIC[language])
    assert marks(text) > 0
    assert normalizer("basic_marks")(text) == text
    assert normalizer("raw")(text) == text
    assert marks(normalizer("basic")(text)) < marks(text)


def test_two_hindi_words_that_basic_takes_for_one_are_two_to_basic_marks():
    one, other = "दिन", "दीन"  # day, poor
    assert normalizer("basic")(one) == normalizer("basic")(other)
    assert normalizer("basic_marks")(one) != normalizer("basic_marks")(other)


def test_basic_marks_still_drops_case_brackets_and_punctuation():
    assert normalizer("basic_marks")("CAFÉ, [Musik] Straße?") == "café straße"
    assert normalizer("basic_marks")("नमस्ते, दुनिया।") == "नमस्ते दुनिया"


@pytest.mark.parametrize("name", NORMALIZERS)
@given(text=st.text())
@settings(max_examples=50, deadline=None)
def test_words_are_separated_by_one_space_whatever_comes_in(name, text):
    cleaned = normalizer(name)(text)
    assert cleaned == " ".join(cleaned.split())


@pytest.mark.parametrize("name", NORMALIZERS)
def test_nothing_stays_nothing(name):
    assert [normalizer(name)(text) for text in ("", "  ", "\n\t")] == ["", "", ""]


def test_an_unknown_name_is_refused_with_those_there_are():
    expected = "unknown normalizer 'whisper'; available: english, basic, basic_marks, raw"
    with pytest.raises(ValueError, match=expected):
        normalizer("whisper")
