"""Recordings longer than the window, against transformers' own long-form `generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import whispers
from transformers import GenerationConfig

from peft_whisper.data.audio import AudioRef, load_wave
from peft_whisper.data.labels import Labels
from peft_whisper.data.mel import log_mel
from peft_whisper.data.windows import Stream
from peft_whisper.model.find import find_base
from peft_whisper.scoring.decode import Decoder
from peft_whisper.scoring.listen import Attempt, Listener
from peft_whisper.scoring.longform import (
    Segment,
    ended_at_pauses,
    split,
    transcribe_long,
)
from peft_whisper.scoring.words import Word

FIRST = 50_363  # <|0.00|> of the English vocabulary
SECOND = 16_000  # samples
SILENCE = np.zeros(30 * SECOND, np.float32)


@pytest.fixture(scope="module")
def decoder(demo: Path) -> Decoder:
    base = find_base(str(demo / "whisper-tiny.en"))
    return Decoder(
        whisper=base.load("float32"),
        labels=Labels(base.tokenizer(), base.config().vocab_size),
        generation=base.generation_config(),
        n_mels=80,
        channel="mean",
        batch=2,
        max_tokens=None,
    )


@pytest.fixture(scope="module")
def joined(demo: Path) -> list[np.ndarray]:
    """Two recordings of prompts, one after another, 50 and 35 s; 30 s of silence behind each.

    With the silence every window that has speech in it is whole: transformers fills the last one
    with what is no silence.
    """
    paths = sorted((demo / "speech" / "clean").glob("*.flac"))
    waves = [load_wave(AudioRef(str(path), None)) for path in paths]
    recordings, at = [], 0
    for seconds in (50, 35):
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < seconds * SECOND:
            parts += [waves[at], np.zeros(SECOND // 2, np.float32)]
            at += 1
        recordings.append(np.concatenate([*parts, SILENCE]))
    return recordings


def heard(decoder: Decoder, waves: list[np.ndarray], **how) -> list[list[Segment]]:
    """Segments of each wave, read in blocks of 7 s."""
    block = 7 * SECOND
    streams = [
        Stream(
            str(number),
            lambda wave=wave: (wave[at : at + block] for at in range(0, len(wave), block)),
            decoder.n_mels,
        )
        for number, wave in enumerate(waves)
    ]
    found = {stream.name: segments for stream, segments in transcribe_long(decoder, streams, **how)}
    assert all(isinstance(segments, list) for segments in found.values())
    return [found[str(number)] for number in range(len(waves))]


def generated(decoder: Decoder, wave: np.ndarray) -> list[tuple[float, float, str]]:
    """Segments of transformers, greedy, those without text or length left out."""
    padded = torch.zeros(1, -(-len(wave) // 160) * 160)
    padded[0, : len(wave)] = torch.from_numpy(wave)
    with torch.inference_mode():
        found = decoder.whisper.generate(
            log_mel(padded, 80),
            return_timestamps=True,
            return_segments=True,
            temperature=0.0,
            condition_on_prev_tokens=False,
            logprob_threshold=-1.0,
            no_speech_threshold=0.6,
        )["segments"][0]
    said = [
        (round(float(s["start"]), 2), round(float(s["end"]), 2), decoder.labels.decode(s["tokens"]))
        for s in found
    ]
    return [(start, end, text) for start, end, text in said if text and start < end]


def spoken(segments: list[Segment], wave: np.ndarray) -> list[tuple[float, float, str]]:
    """Those that begin before the silence at the end."""
    end = (len(wave) - len(SILENCE)) / SECOND
    return [(one.start_s, one.end_s, one.text) for one in segments if one.start_s < end]


def test_segments_are_those_of_transformers(decoder: Decoder, joined: list[np.ndarray]) -> None:
    done: list[float] = []
    ours = heard(decoder, joined, progress=done.append, temperatures=(0.0,))
    theirs = spoken([Segment(*one) for one in generated(decoder, joined[0])], joined[0])
    assert spoken(ours[0], joined[0]) == theirs
    assert len(theirs) > 5 and theirs[-1][0] > 30
    for segments in ours:
        for one in segments:
            assert "".join(word.text for word in one.words).strip() == one.text
            times = [time for word in one.words for time in (word.start_s, word.end_s)]
            assert times == sorted(times)
    assert sum(done) == pytest.approx(sum(map(len, joined)) / SECOND, abs=0.02)
    assert heard(replace(decoder, batch=1), joined[1:], temperatures=(0.0,)) == ours[1:]
    print(f"long form: {sum(map(len, ours))} segments, those of generate")


def test_nothing_is_heard_where_nothing_is(decoder: Decoder) -> None:
    assert heard(decoder, []) == []
    assert heard(decoder, [np.zeros(0, np.float32), SILENCE]) == [[], []]


def test_a_segment_is_cut_where_its_words_pause() -> None:
    words = [Word(0.5, 0.9, " One"), Word(0.9, 1.2, " two."), Word(2.2, 2.5, " Three.")]
    whole = Segment(0.0, 4.0, "One two. Three.", tuple(words))
    assert ended_at_pauses([whole, Segment(4.0, 5.0, "Four.")]) == [
        Segment(0.5, 1.2, "One two.", tuple(words[:2])),
        Segment(2.2, 2.5, "Three.", tuple(words[2:])),
        Segment(4.0, 5.0, "Four."),
    ]


def test_every_segment_lasts() -> None:
    none = Word(2.0, 2.0, " and")
    before, after = Segment(1.0, 2.0, "One"), Segment(2.0, 3.0, "two")
    alone = Segment(2.0, 2.0, "and", (none,))
    later = replace(after, start_s=2.5)
    assert ended_at_pauses([before, alone, later])[1] == replace(alone, end_s=2.02)
    earlier = replace(before, end_s=1.5)
    assert ended_at_pauses([earlier, alone, after])[1] == replace(alone, start_s=1.98)
    assert ended_at_pauses([before, alone, after]) == [
        replace(before, text="One and", words=(none,)),
        after,
    ]


def stamp(seconds: float) -> int:
    return FIRST + round(50 * seconds)


@pytest.mark.parametrize(
    ("tokens", "frames", "parts", "heard"),
    [
        # Two segments and the beginning of a third, which is heard again.
        (
            [stamp(0), 1, stamp(2), stamp(2), 2, 3, stamp(5.5), stamp(6), 4],
            3000,
            [(0, 100, [stamp(0), 1, stamp(2)]), (100, 275, [stamp(2), 2, 3, stamp(5.5)])],
            550,
        ),
        # A last timestamp alone: nothing more is said in this window.
        (
            [stamp(0), 1, stamp(2), stamp(2), 2, stamp(4)],
            3000,
            [(0, 100, [stamp(0), 1, stamp(2)]), (100, 200, [stamp(2), 2, stamp(4)])],
            3000,
        ),
        ([stamp(0), 1, stamp(3)], 1200, [(0, 150, [stamp(0), 1, stamp(3)])], 1200),
        ([stamp(0), 1, 2], 1200, [(0, 600, [stamp(0), 1, 2])], 1200),
        ([], 700, [(0, 350, [])], 700),
    ],
)
def test_a_window_is_split_at_its_timestamps(tokens, frames, parts, heard) -> None:
    assert split(tokens, FIRST, frames) == (parts, heard)


def test_what_is_doubted_and_what_is_silence() -> None:
    good = Attempt([1], "Please enter your number.", -0.3, 0.1)
    assert not good.doubtful and not good.silent
    assert replace(good, logprob=-1.1).doubtful
    assert replace(good, text="press one " * 30).doubtful
    silent = replace(good, logprob=-1.1, no_speech=0.7)
    assert silent.silent and not silent.doubtful
    assert not replace(silent, logprob=-0.9).silent  # sure of its words, so there are some


def random_decoder() -> Decoder:
    model = whispers.model(whispers.config())
    rules = GenerationConfig(
        suppress_tokens=[1, 2, *range(50_257, FIRST - 1)],  # as the real ones: no special tokens
        begin_suppress_tokens=[220],
        eos_token_id=50_256,
    )
    return Decoder(model, Labels(whispers.tokenizer(".en"), 51_864), rules, 80, "mean", 4, None)


def attempts(decoder: Decoder, *temperatures: float) -> list[Attempt]:
    """At five windows of noise."""
    mel = torch.randn(5, 80, 3000, generator=torch.Generator().manual_seed(1))
    return Listener(decoder, temperatures)(mel, [None] * 5, [1500] * 5)


def test_doubtful_windows_are_sampled_again_with_the_same_result_each_time() -> None:
    decoder, encoded = random_decoder(), []
    decoder.whisper.model.encoder.layer_norm.register_forward_pre_hook(
        lambda _module, args: encoded.append(len(args[0]))
    )
    greedy = attempts(decoder, 0.0)
    sampled = attempts(decoder, 0.0, 0.4, 1.0)
    assert sampled == attempts(decoder, 0.0, 0.4, 1.0)
    assert sum(encoded) == 3 * 5  # the encoder's output is kept
    again = [before.doubtful for before in greedy]
    assert sum(again) > 0
    for before, after, doubted in zip(greedy, sampled, again, strict=True):
        assert (before.tokens != after.tokens) == doubted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_timestamps_come_in_pairs_and_never_go_back(temperature: float) -> None:
    """Of a random model, which knows no rule by itself."""
    decoder = random_decoder()
    with torch.no_grad():  # as likely as words are
        decoder.whisper.model.decoder.embed_tokens.weight[FIRST:] *= 1.5
    found = attempts(decoder, temperature)
    pairs = 0
    for attempt in found:
        tokens = attempt.tokens
        stamped = [token >= FIRST for token in tokens]
        stamps = [token for token in tokens if token >= FIRST]
        assert FIRST <= tokens[0] <= FIRST + 50
        assert stamps == sorted(stamps)
        assert FIRST - 1 not in tokens and 1 not in tokens and 2 not in tokens
        for place in range(1, len(tokens) - 1):
            pairs += stamped[place] and stamped[place + 1]
            if stamped[place] and stamped[place - 1]:
                assert not stamped[place + 1]  # a segment opened: words come next
            elif stamped[place]:
                assert stamped[place + 1]  # a segment closed: the next one opens
    assert pairs > 4
