"""Audited splits -> the facts that a person looks at before training on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from peft_whisper.data.audit import hours
from peft_whisper.data.batches import collate, features
from peft_whisper.data.epochs import Context, Layout, plan_epoch
from peft_whisper.data.labels import MAX_TOKENS
from peft_whisper.data.mel import SAMPLE_RATE, SAMPLES_PER_POSITION
from peft_whisper.data.splits import transcript_key
from peft_whisper.data.transcripts import (
    Character,
    Habit,
    Placed,
    Word,
    characters,
    costly_words,
    habits,
    spell,
)
from peft_whisper.positions import FULL_POSITIONS

if TYPE_CHECKING:
    from peft_whisper.data.audit import Clip, Rejected
    from peft_whisper.data.labels import Labels
    from peft_whisper.data.splits import Splits

EXTREMES = 5  # clips at either end of characters per second
POSITION_S = SAMPLES_PER_POSITION / SAMPLE_RATE  # 0.02
FULL_S = FULL_POSITIONS * POSITION_S  # 30.0
PLANNED_UPDATES = 200  # whole epochs are planned until there are so many


@dataclass(frozen=True)
class SplitFacts:
    """One split in numbers; clips whose row names no speaker are `unnamed`."""

    name: str
    clips: int
    hours: float
    transcripts: int  # different ones
    speakers: int
    unnamed: int
    speakers_of_train: int  # those of `speakers` that train has too
    languages: tuple[tuple[str, int], ...]
    rejected: int


@dataclass(frozen=True)
class Spread:
    """One quantity of every clip, by split; `limit` is the model's, where there is one."""

    name: str
    unit: str
    values: dict[str, np.ndarray]
    limit: int | None
    decimals: int


@dataclass(frozen=True)
class Outlook:
    """What training will do, from the plan of its first `planned` updates on one process.

    `batches` counts micro-batches by their encoder positions; shares are of encoder positions,
    weighted by clips.
    """

    clips_per_update: int
    updates_per_epoch: int
    updates: int
    planned: int
    batches: tuple[tuple[int, int], ...]
    mean_positions: float
    saved: float  # against every clip at 30 s
    padding: float  # positions without speech
    padding_at_30_s: float


@dataclass(frozen=True)
class Survey:
    """All facts of the three splits."""

    splits: tuple[SplitFacts, ...]
    spreads: tuple[Spread, ...]
    fastest: tuple[Placed, ...]  # in characters per second
    slowest: tuple[Placed, ...]
    longest: tuple[Placed, ...]  # in seconds and, where it is another, in tokens
    habits: tuple[Habit, ...]
    characters: tuple[Character, ...]
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Step:
    """One decoder position: the token fed there and the one to be predicted from it."""

    position: int
    fed_id: int
    fed: str
    target_id: int
    target: str
    in_loss: bool


@dataclass(frozen=True)
class Lesson:
    """One clip as the model is taught it.

    `wave` is float32 (samples,) at 16 kHz; `mel` float32 (bands, frames).
    """

    placed: Placed
    wave: np.ndarray
    mel: np.ndarray
    steps: tuple[Step, ...]

    @property
    def starts(self) -> int:
        """How many times start-of-transcript is fed: 1, or the layout is wrong."""
        return sum(step.fed == "<|startoftranscript|>" for step in self.steps)

    @property
    def learns_to_stop(self) -> bool:
        """Is end-of-text the last target, and in the loss?"""
        return self.steps[-1].target == "<|endoftext|>" and self.steps[-1].in_loss


def everything(splits: Splits) -> tuple[Placed, ...]:
    """All clips, train first."""
    return tuple(Placed(name, clip) for name, clips in splits.items() for clip in clips)


def survey(splits: Splits, labels: Labels) -> Survey:
    """Gather the facts of all clips; no sound is decoded, the audit has done that."""
    placed = everything(splits)
    by_rate = sorted(placed, key=lambda one: (one.rate, one.clip.id))
    slowest = by_rate[:EXTREMES]
    fastest = by_rate[: EXTREMES - 1 : -1][:EXTREMES]  # the rest of them, fastest first
    longest = [
        max(placed, key=key, default=None)
        for key in (lambda one: one.clip.duration_s, lambda one: one.clip.tokens)
    ]
    return Survey(
        splits=tuple(_facts(name, clips, splits) for name, clips in splits.items()),
        spreads=_spreads(placed),
        fastest=tuple(fastest),
        slowest=tuple(slowest),
        longest=tuple(one for one in dict.fromkeys(longest) if one is not None),
        habits=habits(placed, labels.task),
        characters=characters(placed, labels.task),
        words=costly_words(placed, labels),
    )


def _facts(name: str, clips: Sequence[Clip], splits: Splits) -> SplitFacts:
    speakers = {clip.speaker for clip in clips if clip.speaker}
    languages = Counter(clip.language or "not named" for clip in clips)
    return SplitFacts(
        name=name,
        clips=len(clips),
        hours=hours(clips),
        transcripts=len({transcript_key(clip.text) for clip in clips}),
        speakers=len(speakers),
        unnamed=sum(not clip.speaker for clip in clips),
        speakers_of_train=len(speakers & {clip.speaker for clip in splits.train}),
        languages=tuple(sorted(languages.items(), key=lambda pair: (-pair[1], pair[0]))),
        rejected=len(splits.rejected.get(name, ())),
    )


def _spreads(placed: Sequence[Placed]) -> tuple[Spread, ...]:
    names = list(dict.fromkeys(one.split for one in placed))
    clips = {name: [one for one in placed if one.split == name] for name in names}
    seconds = {name: np.array([p.clip.duration_s for p in part]) for name, part in clips.items()}
    rates = {name: np.array([p.rate for p in part]) for name, part in clips.items()}
    tokens = {name: np.array([p.clip.tokens for p in part]) for name, part in clips.items()}
    return (
        Spread("duration", "s", seconds, int(FULL_S), 1),
        Spread("speaking rate", "characters/s", rates, None, 1),
        Spread("label length", "tokens", tokens, MAX_TOKENS, 0),
    )


def by_cause(rejected: Sequence[Rejected]) -> list[tuple[str, int]]:
    """Causes and how many clips each took, the most frequent first."""
    return Counter(one.cause for one in rejected).most_common()


def outlook(
    durations_s: Sequence[float], layout: Layout, context: Context, seed: int, updates: int
) -> Outlook:
    """Plan the first epochs as training will, and add up what the encoder gets to hear."""
    per_epoch = layout.updates_per_epoch(len(durations_s))
    wanted = min(updates, max(per_epoch, PLANNED_UPDATES))
    plan = [
        update
        for epoch in range(-(-wanted // per_epoch))
        for update in plan_epoch(durations_s, layout, context, seed, epoch)
    ][:wanted]
    micro = [batch for update in plan for process in update for batch in process]
    clips = sum(len(batch.clips) for batch in micro)
    positions = sum(len(batch.clips) * batch.positions for batch in micro)
    speech = sum(durations_s[i] for batch in micro for i in batch.clips) / POSITION_S
    return Outlook(
        clips_per_update=layout.clips_per_update,
        updates_per_epoch=per_epoch,
        updates=updates,
        planned=len(plan),
        batches=tuple(sorted(Counter(batch.positions for batch in micro).items())),
        mean_positions=positions / clips,
        saved=1 - positions / (clips * FULL_POSITIONS),
        padding=max(0.0, 1 - speech / positions),
        padding_at_30_s=1 - speech / (clips * FULL_POSITIONS),
    )


def spread_over(clips: Sequence[Clip], count: int) -> tuple[Placed, ...]:
    """`count` clips of train from the shortest to the longest, evenly by rank."""
    ranked = sorted(clips, key=lambda clip: (clip.duration_s, clip.id))
    last = len(ranked) - 1
    first, final = (0.0, last) if count > 1 else (last / 2, last / 2)
    at = np.linspace(first, final, min(count, len(ranked))).round().astype(int)
    return tuple(Placed("train", ranked[i]) for i in at)


def lesson(
    placed: Placed,
    wave: np.ndarray,
    labels: Labels,
    context: Context,
    n_mels: int,
    timestamps: bool,
) -> Lesson:
    """Make the clip's tensors as training does, and read off them what is fed and what is learned.

    `wave` is its sound, float32 (samples,), 16 kHz.
    """
    clip = placed.clip
    positions = context.positions(clip.duration_s)
    mel = features([clip], positions, n_mels, lambda _: wave)
    row = labels.row(clip.text, clip.language, clip.duration_s if timestamps else None)
    batch = collate(mel, positions, [row], labels.end, [clip])
    target_at = dict(zip(batch.index.tolist(), batch.targets.tolist(), strict=True))
    steps = [
        Step(
            position=position,
            fed_id=fed,
            fed=spell(fed, labels),
            target_id=target_at.get(position, labels.end),
            target=spell(target_at.get(position, labels.end), labels),
            in_loss=position in target_at,
        )
        for position, fed in enumerate(batch.decoder_input_ids[0].tolist())
    ]
    return Lesson(placed, wave, mel[0].numpy(), tuple(steps))
