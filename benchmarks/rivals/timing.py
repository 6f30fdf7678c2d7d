"""Both sides of a comparison, made to run in turns: clips by their length, seconds by the clip."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rivals import hf_trainer as rival
from transformers import TrainerCallback

from peft_whisper.assembly import make_updater
from peft_whisper.data.audio import load_wave
from peft_whisper.data.audit import audit
from peft_whisper.data.corpus import read_rows
from peft_whisper.data.mel import SAMPLE_RATE
from peft_whisper.recipe_sections import Source
from peft_whisper.session import Session
from peft_whisper.train import make_course, start_accelerator
from peft_whisper.training.loop import Updater, stream_updates

if TYPE_CHECKING:
    from accelerate import Accelerator

    from peft_whisper.data.batches import Batch

ENDLESS = 10_000  # updates: more than any benchmark takes


class Watch(TrainerCallback):
    """Notes the time of a Trainer's start and of the end of each update, loading included."""

    def __init__(self, ended: Callable[[], None] = lambda: None):
        self.ended = ended
        self.times_s: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.times_s.append(time.perf_counter())

    def on_step_end(self, *_: object, **__: object) -> None:
        self.times_s.append(time.perf_counter())
        self.ended()

    @property
    def seconds(self) -> float:
        return self.times_s[-1] - self.times_s[0]


def accelerator() -> Accelerator:
    """The product's own; what a Trainer left in accelerate's shared state is forgotten."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return start_accelerator()


class Ours:
    """The product's updates on its own stream, at the clips' true length or at 30 s."""

    def __init__(self, session: Session):
        self.updater: Updater
        self.updater, _ = make_updater(session, accelerator())
        self.streams = {share: endless(session, share) for share in (0.0, 1.0)}

    def seconds_per_clip(self, updates: int, full_share: float) -> float:
        """Time the next `updates` of a stream, loading included."""
        clips, began = 0, time.perf_counter()
        for _ in range(updates):
            batches = next(self.streams[full_share])
            self.updater.step(batches, 0.1)
            clips += sum(len(batch.clip_ids) for batch in batches)
        return (time.perf_counter() - began) / clips


def endless(session: Session, full_share: float) -> Iterator[list[Batch]]:
    """The product's stream of updates, of which a share is at the full 30 s."""
    context = replace(session.context, full_share=full_share)
    course = replace(make_course(session, 1), context=context, updates=ENDLESS)
    return stream_updates(course, 0)


class Rival:
    """Updates of the Trainer, on other clips each time; log-mels are made here, untimed."""

    def __init__(self, session: Session, seed: int = 1):
        self.session = session
        order = np.random.default_rng(seed).permutation(len(session.splits.train))
        processor = rival.make_processor(session)
        clips = [session.splits.train[number] for number in order]
        self.examples = rival.prepare(clips, processor, session.recipe.data.channel)
        self.at = 0

    def seconds_per_clip(self, updates: int, precision: str, clips: int | None = None) -> float:
        """Time `updates` of one `Trainer.train()`, loading included."""
        wanted = clips or updates * self.session.layout(1).clips_per_update
        taken = [self.examples[(self.at + i) % len(self.examples)] for i in range(wanted)]
        self.at += wanted
        watch = Watch()
        model = rival.make_model(self.session)
        rival.make_trainer(
            self.session, model, taken, precision, updates, callbacks=[watch]
        ).train()
        return watch.seconds / wanted

    def warm_up(self, precision: str) -> None:
        """One update of few clips."""
        self.seconds_per_clip(1, precision, clips=rival.MICRO)


def joined(session: Session, seconds: float, count: int, folder: Path) -> Session:
    """The session with `count` training clips of about `seconds`: prompts end to end, with text.

    Prompts are taken in random order, each once before one comes again; the sound is written to
    `folder` and audited like any other.
    """
    import soundfile

    rows = []
    for number, parts in enumerate(groups(session, seconds, count)):
        clips = [session.splits.train[part] for part in parts]
        channel = session.recipe.data.channel
        wave = np.concatenate([load_wave(clip.audio, channel) for clip in clips])
        soundfile.write(folder / f"{number}.flac", wave, SAMPLE_RATE)
        rows.append({"audio": f"{number}.flac", "text": " ".join(clip.text for clip in clips)})
    manifest = folder / "joined.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    listed = read_rows(Source(manifest=str(manifest)), session.recipe.data.language)
    clips = audit(listed, session.labels.count).clips
    return replace(session, splits=replace(session.splits, train=clips))


def groups(session: Session, seconds: float, count: int) -> list[list[int]]:
    """Indices of training clips whose lengths together are between 0.9 x and 1 x `seconds`."""
    durations = [clip.duration_s for clip in session.splits.train]
    rng, left = np.random.default_rng(1), list[int]()
    made: list[list[int]] = []
    while len(made) < count:
        left = left or rng.permutation(len(durations)).tolist()
        group, length = list[int](), 0.0
        for number in [*left, *rng.permutation(len(durations)).tolist()]:
            if length < 0.9 * seconds and length + durations[number] <= seconds:
                group, length = [*group, number], length + durations[number]
        left = [number for number in left if number not in group]
        made.append(group)
    return made


def clips_per_update(session: Session) -> int:
    return session.layout(1).clips_per_update


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median over the rounds, of each kind of work."""
    return {kind: float(np.median([one[kind] for one in rounds])) for kind in rounds[0]}


def threads() -> int:
    return torch.get_num_threads()
