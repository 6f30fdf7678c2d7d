"""What was found in a recipe's speech, in the words that page and terminal share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft_whisper.data.survey import POSITION_S, Lesson, Outlook, SplitFacts, Survey
from peft_whisper.data.transcripts import Placed

if TYPE_CHECKING:
    from peft_whisper.data.splits import Splits


@dataclass(frozen=True)
class Exploration:
    """All that is said about a recipe's speech; `problem` is why training would stop, if it would.

    `about` are short facts for the head of the page, `outlook` is None where train is empty.
    """

    name: str
    about: tuple[str, ...]
    splits: Splits
    survey: Survey
    outlook: Outlook | None
    training: tuple[tuple[str, str], ...]  # pairs of a name and a value
    lessons: tuple[Lesson, ...]
    problem: str | None


def training_facts(
    outlook: Outlook, every: int, validation_clips: int
) -> tuple[tuple[str, str], ...]:
    """The outlook in words, as pairs of a name and a value."""
    mean_s, epochs = (
        outlook.mean_positions * POSITION_S,
        outlook.updates / outlook.updates_per_epoch,
    )
    # before the first update, every so often, and after the last
    checks = 1 + -(-outlook.updates // every)
    return (
        ("updates", f"{outlook.updates:,}, which are {epochs:.3g} epochs"),
        ("updates per epoch", f"{outlook.updates_per_epoch:,} on one process"),
        ("clips per update", f"{outlook.clips_per_update:,}"),
        ("encoder input per clip", f"{outlook.mean_positions:,.0f} positions = {mean_s:.2f} s"),
        ("against 30 s for every clip", f"{outlook.saved:.1%} of encoder positions saved"),
        (
            "encoder input without speech",
            f"{outlook.padding:.1%}; at 30 s it would be {outlook.padding_at_30_s:.1%}",
        ),
        ("validations", f"{checks:,}, each decodes {validation_clips:,} clips"),
    )


def context_rows(outlook: Outlook) -> list[tuple[str, str, str, str]]:
    """Per encoder length: positions, seconds, micro-batches, their share."""
    total = sum(count for _, count in outlook.batches)
    return [
        (f"{positions:,}", f"{positions * POSITION_S:.2f}", f"{count:,}", f"{count / total:.1%}")
        for positions, count in outlook.batches
    ]


def odd_clips(survey: Survey) -> list[tuple[str, Placed]]:
    """What is odd about a clip, and the clip."""
    return [
        *(("fastest", one) for one in survey.fastest),
        *(("slowest", one) for one in reversed(survey.slowest)),
        *zip(("longest", "most tokens"), survey.longest, strict=False),
    ]


def speakers(one: SplitFacts) -> str:
    """Named speakers of a split, those that train has too, and clips that name none."""
    said = [f"{one.speakers:,}"] if one.speakers else []
    if one.name != "train" and one.speakers:
        said[0] += f" ({one.speakers_of_train:,} in train)"
    if one.unnamed:
        said.append(f"{one.unnamed:,} clips name none" if said else "not named")
    return ", ".join(said)


def length(hours: float) -> str:
    """Hours, or minutes where there is less than one."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def share(count: int, size: int) -> str:
    """A count and what part of the split it is."""
    return f"{count:,} ({count / size:.0%})" if size else "–"
