"""Segments as files, and two transcripts side by side."""

from __future__ import annotations

import io
import json

from rich.console import Console

from peft_whisper.scoring.longform import Segment
from peft_whisper.scoring.side_by_side import differing, plain, rows, table
from peft_whisper.scoring.subtitles import FORMATS
from peft_whisper.scoring.words import Word

SAID = [
    Segment(0.0, 1.2345, "Press <one> & wait."),
    Segment(1.2, 3.9996, "Two\n\nlines --> here"),
    Segment(3725.5, 3725.5, "Late.", (Word(3725.5, 3725.5, " Late."),)),
]


def test_txt_has_a_line_for_each_segment() -> None:
    assert FORMATS["txt"](SAID) == "Press <one> & wait.\nTwo lines --> here\nLate.\n"


def test_srt_never_overlaps_and_rounds_to_whole_milliseconds() -> None:
    assert FORMATS["srt"](SAID) == (
        "1\n00:00:00,000 --> 00:00:01,234\nPress <one> & wait.\n\n"
        "2\n00:00:01,234 --> 00:00:04,000\nTwo lines -> here\n\n"
        "3\n01:02:05,500 --> 01:02:05,501\nLate.\n\n"
    )


def test_vtt_is_escaped() -> None:
    assert FORMATS["vtt"](SAID).startswith(
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.234\nPress &lt;one&gt; &amp; wait.\n\n"
        "00:00:01.234 --> 00:00:04.000\nTwo lines -&gt; here\n\n"
    )


def test_json_has_words_where_they_are_known() -> None:
    found = json.loads(FORMATS["json"](SAID))["segments"]
    assert found[0] == {"start_s": 0.0, "end_s": 1.2345, "text": "Press <one> & wait."}
    assert found[2]["words"] == [{"start_s": 3725.5, "end_s": 3725.5, "text": "Late."}]


def test_silence_is_an_empty_transcript() -> None:
    made = {kind: write([]) for kind, write in FORMATS.items()}
    assert made == {"txt": "", "srt": "", "vtt": "WEBVTT\n\n", "json": '{\n  "segments": []\n}\n'}


BASE = [Segment(0.0, 2.0, "Please injure your pin."), Segment(2.0, 3.0, "Thank you")]
TUNED = [Segment(0.1, 1.9, "please enter your PIN"), Segment(2.1, 3.0, "Thank you so much.")]


def test_differing_words_are_marked_and_counted() -> None:
    shown = rows(BASE, TUNED, "en")
    assert differing(shown) == (3, 8)
    assert plain(shown) == (
        "00:00:00.000  please [-injure-] {+enter+} your PIN\n"
        "00:00:02.000  Thank you {+so+} {+much.+}\n"
    )


def test_a_terminal_shows_both_in_colour() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    screen.print(table(rows(BASE, TUNED, "en"), ("base", "tuned")))
    said = screen.file.getvalue()
    assert "\x1b[1;31minjure" in said and "\x1b[1;32menter" in said
    assert "base" in said and "tuned" in said


def test_one_side_may_be_empty_and_scripts_may_lack_spaces() -> None:
    assert differing(rows([], [], "en")) == (0, 0)
    assert differing(rows([], BASE, "en")) == (6, 6)
    shown = rows([Segment(0.0, 1.0, "今日は")], [Segment(0.0, 1.0, "今日に")], "ja")
    assert plain(shown) == "00:00:00.000  今日[-は-]{+に+}\n"


def test_the_time_of_a_row_never_goes_back() -> None:
    """Where one side has a single segment from the start, and the other several."""
    left = [Segment(0.0, 9.0, "wholly other words")]
    right = [Segment(0.0, 1.0, "One two."), Segment(4.0, 5.0, "Three."), Segment(7.0, 9.0, "Four.")]
    times = [row.start_s for row in rows(left, right, "en")]
    assert times == sorted(times)
    assert times[0] == 0.0
