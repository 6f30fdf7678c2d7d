"""What the exported model hears, beside what the model that it was made from hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_whisper.errors import StateError
from peft_whisper.exporting.hearing import hear
from peft_whisper.exporting.runtimes import RUNTIMES
from peft_whisper.scoring.sample import Speech, heard

if TYPE_CHECKING:
    from peft_whisper.model.base import Base

WINDOW = 480_000  # samples: the 30 s that every Whisper hears
# Of the clips, those with mostly other words: a wrong layout makes all so, a few bits less a loop.
MOST_DIFFERENT = 0.5


@dataclass(frozen=True)
class Row:
    """One variant of an export: rates are fractions, the other numbers counts of the sample."""

    kind: str
    file_bytes: int
    wer: float
    words_differ: int  # from the merged model's, aligned
    words: int  # of the merged model
    texts_equal: int
    clips: int
    wer_filled: float | None  # clips as they are, whose features the program fills with zeros

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def merged_texts(model: Base, speech: Speech) -> list[str]:
    """What the model itself hears in float32, each clip padded to 30 s, greedily."""
    return heard(model.load("float32"), model, speech, None)


def compare(name: str, kind: str, folder: Path, speech: Speech, merged: Sequence[str]) -> Row:
    """Decode the export in `folder` by its program, and count.

    Raises StateError where it hears something else than the merged model.
    """
    waves = speech.waves()
    padded = [np.pad(wave, (0, WINDOW - len(wave))) for wave in waves]
    task = speech.labels.task
    texts = hear(name, folder, padded, speech.languages, task)
    filled = None
    if RUNTIMES[name].pads_features:
        filled = speech.wer(hear(name, folder, waves, speech.languages, task))
    differ, words = speech.differing(merged, texts)
    others = [speech.differing([one], [other]) for one, other in zip(merged, texts, strict=True)]
    if sum(2 * errors > count for errors, count in others) > MOST_DIFFERENT * len(texts):
        raise StateError(
            f"{RUNTIMES[name].program} hears other words with this {kind} export than the merged "
            f"model: {differ} of {words} differ; nothing was kept"
        )
    return Row(
        kind=kind,
        file_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        wer=speech.wer(texts),
        words_differ=differ,
        words=words,
        texts_equal=sum(map(str.__eq__, merged, texts)),
        clips=len(texts),
        wer_filled=filled,
    )
