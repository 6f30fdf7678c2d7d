"""Ten minutes of prompts with silence between: are their times right, and does memory stay flat?

    python benchmarks/long_audio.py

The held-out prompts of the demo, clean, 2 s of digital silence before each, transcribed by Whisper
tiny.en. The truth is where each prompt's file was put. A prompt is found where its first and its
last word are (aligned with what was heard), and its times are those of the segments that hold them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peft_whisper.data.mel import SAMPLE_RATE
from peft_whisper.environment import cores, peak_memory
from peft_whisper.errors import run
from peft_whisper.scoring.longform import Segment, ended_at_pauses, transcribe_long
from peft_whisper.terminal import Terminal

DEMO = Path(".demo")
PAUSE_S, WITHIN_S, SHARE = 2.0, 0.5, 0.95
MEMORY_S = 60.0  # against which the whole is held
GROWTH = 1.1  # of the peak, at most


@dataclass(frozen=True)
class Prompt:
    """What was said, and between which seconds of the recording."""

    start_s: float
    end_s: float
    text: str


def main(argv: list[str] | None = None) -> int:
    """Print the figures; exit code 1 where a promise is broken."""
    import torch

    from peft_whisper.systems import find_systems

    argparse.ArgumentParser(prog="benchmarks/long_audio.py", description=__doc__).parse_args(argv)
    torch.set_num_threads(cores())
    console = Terminal()
    wave, prompts = recording(DEMO / "speech" / "clean_test.jsonl")
    model = DEMO / "whisper-tiny.en"
    systems = find_systems(str(model), [], compare=False, base_at=None)
    decoder = next(systems.decoders("mean"))[1]
    heard(decoder, wave[: round(MEMORY_S * SAMPLE_RATE)])
    before = peak_memory()["peak_bytes"]
    own = heard(decoder, wave)
    after = peak_memory()["peak_bytes"]
    segments = ended_at_pauses(own)
    checks = [
        (monotone(segments), f"{len(segments)} segments, monotone"),
        at_the_right_time(prompts, segments),
        (after <= GROWTH * before, f"peak {mib(before)} after 1 minute, {mib(after)} after all"),
    ]
    console.print(f"{len(wave) / SAMPLE_RATE / 60:.1f} minutes, {len(prompts)} prompts")
    console.print(f"Whisper's own segments: {at_the_right_time(prompts, own)[1]}")
    for met, said in checks:
        console.print(f"{'ok    ' if met else 'BROKEN'}  {said}")
    return 0 if all(met for met, _ in checks) else 1


def recording(listing: Path) -> tuple[np.ndarray, list[Prompt]]:
    """All prompts of a listing one after another, float32 (samples,), and where each is."""
    from peft_whisper.data.audio import AudioRef, load_wave

    parts: list[np.ndarray] = []
    prompts, at = [], 0
    for line in listing.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        wave = load_wave(AudioRef(str(listing.parent / row["audio"])))
        parts += [np.zeros(round(PAUSE_S * SAMPLE_RATE), np.float32), wave]
        at += len(parts[-2])
        prompts.append(Prompt(at / SAMPLE_RATE, (at + len(wave)) / SAMPLE_RATE, row["text"]))
        at += len(wave)
    return np.concatenate(parts), prompts


def heard(decoder, wave: np.ndarray) -> list[Segment]:
    from peft_whisper.data.windows import Stream

    block = 10 * SAMPLE_RATE
    stream = Stream(
        "prompts", lambda: (wave[at : at + block] for at in range(0, len(wave), block)), 80
    )
    ((_, segments),) = transcribe_long(decoder, [stream])
    if not isinstance(segments, list):
        raise segments
    return segments


def monotone(segments: Sequence[Segment]) -> bool:
    """Every segment ends after it starts, and none starts before the one before ended."""
    times = [time for one in segments for time in (one.start_s, one.end_s)]
    return times == sorted(times) and all(one.start_s < one.end_s for one in segments)


def at_the_right_time(prompts: Sequence[Prompt], segments: Sequence[Segment]) -> tuple[bool, str]:
    """How many prompts begin, end, and do both, within 0.5 s of where they were put."""
    found = places(prompts, segments)
    starts = [abs(a - p.start_s) <= WITHIN_S for p, (a, _) in zip(prompts, found, strict=True)]
    ends = [abs(b - p.end_s) <= WITHIN_S for p, (_, b) in zip(prompts, found, strict=True)]
    both = [start and end for start, end in zip(starts, ends, strict=True)]
    total = len(prompts)
    said = (
        f"within {WITHIN_S} s: {share(both, total)} of prompts (starts {share(starts, total)}, "
        f"ends {share(ends, total)})"
    )
    return sum(both) >= SHARE * total, said


def places(prompts: Sequence[Prompt], segments: Sequence[Segment]) -> list[tuple[float, float]]:
    """(start, end) in seconds of the segments that hold each prompt; infinite where none does."""
    import jiwer

    from peft_whisper.scoring.normalize import normalizer

    clean = normalizer("english")  # one is 1, and 1. too
    said = [(clean(w), n) for n, one in enumerate(prompts) for w in one.text.split()]
    told = [(clean(w), n) for n, one in enumerate(segments) for w in one.text.split()]
    words = [[(word.split()[0], n) for word, n in side if word] for side in (said, told)]
    aligned = jiwer.process_words(*(" ".join(word for word, _ in side) for side in words))
    found = [(float("inf"), -float("inf"))] * len(prompts)
    for chunk in aligned.alignments[0]:
        if chunk.type not in ("equal", "substitute"):
            continue
        span = chunk.ref_end_idx - chunk.ref_start_idx
        for at in range(span):
            prompt = words[0][chunk.ref_start_idx + at][1]
            segment = segments[words[1][chunk.hyp_start_idx + at][1]]
            start, end = found[prompt]
            found[prompt] = min(start, segment.start_s), max(end, segment.end_s)
    return found


def share(met: Sequence[bool], total: int) -> str:
    return f"{100 * sum(met) / total:.1f} %"


def mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


if __name__ == "__main__":
    run(main)
