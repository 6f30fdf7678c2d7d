"""Longer clips out of short ones: prompts end to end, with their texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from peft_whisper.data.audio import load_wave
from peft_whisper.data.audit import audit
from peft_whisper.data.corpus import read_rows
from peft_whisper.data.mel import SAMPLE_RATE
from peft_whisper.errors import RecipeError
from peft_whisper.recipe_speech import Source
from peft_whisper.session import Session


def joined(session: Session, seconds: float, count: int, folder: Path) -> Session:
    """The session with `count` training clips of about `seconds`.

    Prompts are taken in random order, each once before one comes again; the sound is written to
    `folder` and audited like any other.
    """
    import soundfile

    rows, channel = [], session.recipe.data.channel
    for number, parts in enumerate(groups(session, seconds, count)):
        clips = [session.splits.train[part] for part in parts]
        wave = np.concatenate([load_wave(clip.audio, channel) for clip in clips])
        soundfile.write(folder / f"{number}.flac", wave, SAMPLE_RATE)
        rows.append({"audio": f"{number}.flac", "text": " ".join(clip.text for clip in clips)})
    manifest = folder / "joined.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    listed = read_rows(Source(manifest=str(manifest)), session.recipe.data.language)
    clips = audit(listed, session.labels.count).clips
    return replace(session, splits=replace(session.splits, train=clips))


def groups(session: Session, seconds: float, count: int) -> list[list[int]]:
    """Indices of training clips: at random, as many as fit into `seconds`."""
    durations = [clip.duration_s for clip in session.splits.train]
    rng, left = np.random.default_rng(1), list[int]()
    made: list[list[int]] = []
    while len(made) < count:
        left = left or rng.permutation(len(durations)).tolist()
        group, length = list[int](), 0.0
        for number in [*left, *rng.permutation(len(durations)).tolist()]:
            if length + durations[number] <= seconds:
                group, length = [*group, number], length + durations[number]
        if not group:
            raise RecipeError(f"data.train: no clip is shorter than {seconds:g} s: nothing to join")
        left = [number for number in left if number not in group]
        made.append(group)
    return made
