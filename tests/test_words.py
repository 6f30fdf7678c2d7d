"""Times of words: the cheapest path against transformers' own, and words moved out of pauses."""

from __future__ import annotations

import numpy as np
import pytest
import whispers
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from peft_whisper.data.labels import Labels
from peft_whisper.scoring.pauses import moved_to_sound, sounding
from peft_whisper.scoring.words import Word, grouped, warp


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (9, 1), (5, 40), (40, 200), (9, 5)])
def test_the_cheapest_path_is_that_of_transformers(rows: int, columns: int) -> None:
    cost = np.random.default_rng(rows + columns).standard_normal((rows, columns))
    text, time = _dynamic_time_warping(cost)
    assert warp(cost).tolist() == [int(time[text == row].min()) for row in range(rows)]


def test_tokens_are_grouped_into_words() -> None:
    labels = Labels(whispers.tokenizer("multilingual"), whispers.VOCABULARIES["multilingual"])

    def words(text: str, language: str) -> list[str]:
        tokens = labels.text(text, language)
        groups = grouped(labels, tokens, language)
        assert [token for group in groups for token in group] == tokens
        return [labels.tokenizer.decode(group) for group in groups]

    assert words("Don't re-enter 3.14, please!", "en") == [
        " Don't", " re-enter", " 3.14,", " please!",
    ]  # fmt: skip
    assert words("नमस्ते दुनिया", "hi") == [" नमस्ते", " दुनिया"]
    assert "".join(words("今日は、晴れ。", "ja")) == "今日は、晴れ。"
    assert len(words("今日は、晴れ。", "ja")) > 2


RATE = 16_000


def recording(*loud: tuple[float, float], seconds: float = 10.0) -> np.ndarray:
    """Faint noise, with louder noise between such seconds."""
    wave = np.random.default_rng(1).standard_normal(round(seconds * RATE)) * 0.001
    for start, end in loud:
        wave[round(start * RATE) : round(end * RATE)] *= 100
    return wave.astype(np.float32)


def test_sound_is_what_stands_out() -> None:
    sound = sounding(recording((1.0, 2.0), (2.1, 3.0), (5.0, 6.5)))
    edges = np.flatnonzero(np.diff(sound.astype(int)))
    assert (edges + 1).tolist() == [100, 300, 500, 650]  # 0.1 s is no pause
    assert not sounding(np.zeros(RATE, np.float32)).any()


def test_words_are_moved_out_of_pauses() -> None:
    sound = sounding(recording((1.0, 2.0), (5.0, 6.5)))
    words = [
        Word(0.4, 1.5, " One"),  # begins in the silence before it
        Word(1.5, 5.2, " two."),  # reaches over the pause
        Word(5.2, 6.0, " Three"),
        Word(6.0, 8.5, " four."),
    ]
    moved = moved_to_sound(words, sound)
    assert [(one.start_s, one.end_s) for one in moved] == [
        (1.0, 1.5), (1.5, 2.0), (5.0, 6.0), (6.0, 6.5),
    ]  # fmt: skip
    # The pause is behind the punctuation, though attention went on to the next sound too early.
    late = [Word(1.0, 2.5, " One"), Word(3.6, 5.2, " two."), Word(5.2, 6.5, " Three")]
    moved = moved_to_sound(late, sound)
    assert [(one.start_s, one.end_s) for one in moved] == [(1.0, 1.5), (1.5, 2.0), (5.0, 6.5)]
    assert moved_to_sound([], sound) == []
    assert moved_to_sound(late, np.zeros(1000, bool)) == late
