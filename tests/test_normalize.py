"""Four normalisers, and which letters each of them keeps."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_whisper.recipe_yaml import load_recipe
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
    available = "english, basic, basic_marks, characters, raw"
    with pytest.raises(ValueError, match=f"unknown normalizer 'whisper'; available: {available}"):
        normalizer("whisper")


def test_characters_are_the_words_of_scripts_without_spaces():
    assert normalizer("characters")("今日は、天気です。") == "今 日 は 天 気 で す"
    assert normalizer("characters")("ไม่") == "ไ ม่"  # a letter keeps its marks


def test_full_stops_alone_are_no_words():
    assert normalizer("english")("...") == ""
    assert normalizer("english")("...to mute. It costs $3.50") == "to mute it costs $3.50"


@pytest.mark.parametrize(
    ("data", "own"),
    [
        ("language: en", "english"),
        ("language: de", "basic_marks"),
        ("language: hi", "basic_marks"),
        ("language: ja", "characters"),
        ("task: translate, language: ja", "english"),
        ("workers: 0", "basic_marks"),  # rows name their languages
    ],
)
def test_a_recipe_that_names_none_gets_the_one_of_its_language(data, own, tmp_path):
    text = (
        "base: {model: openai/whisper-tiny}\n"
        f"data: {{train: {{hub: a/b}}, validation: {{from_train: 0.1}}, "
        f"test: {{from_train: 0.1}}, {data}}}\n"
        "training: {epochs: 1, learning_rate: 1e-4}\nevaluation: {every: 1}\n"
    )
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml").evaluation.normalizer == own
    written = load_recipe(tmp_path / "r.yaml", ["evaluation.normalizer=raw"])
    assert written.evaluation.normalizer == "raw"
