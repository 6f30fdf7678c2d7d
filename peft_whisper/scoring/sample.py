"""A few clips to try a model on: of a test split, or of what is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from peft_whisper.errors import DataError, RecipeError
from peft_whisper.languages import UNSPACED_LANGUAGES
from peft_whisper.recipe_sections import Context as Rule
from peft_whisper.recipe_speech import Data, Source
from peft_whisper.scoring.metrics import measure
from peft_whisper.scoring.normalize import normalizer

if TYPE_CHECKING:
    from peft_whisper.data.audit import Clip
    from peft_whisper.data.epochs import Context
    from peft_whisper.data.labels import Labels
    from peft_whisper.model.base import Base

CONSIDERED = 5_000  # rows of a long listing that the clips are taken from
BATCH = 8  # clips decoded at once
MOST_TOKENS = 224  # of one clip: half of the decoder's positions
One = TypeVar("One")


@dataclass(frozen=True)
class Speech:
    """Audited clips with true transcripts; how they are heard and compared, and what they are."""

    clips: tuple[Clip, ...]
    labels: Labels
    channel: str
    normalizer: str
    what: str

    @property
    def languages(self) -> list[str | None]:
        return [clip.language for clip in self.clips]

    def waves(self) -> list[np.ndarray]:
        """Float32 (samples,), 16 kHz, in the order of the clips."""
        from peft_whisper.data.audio import load_wave

        return [load_wave(clip.audio, self.channel) for clip in self.clips]

    def wer(self, texts: Sequence[str]) -> float:
        """Word errors of the clips' `texts` over all true words, a fraction."""
        errors, words = self.differing([clip.text for clip in self.clips], texts)
        return errors / max(words, 1)

    def differing(self, left: Sequence[str], right: Sequence[str]) -> tuple[int, int]:
        """Aligned words of `right` that are not those of `left`, and how many `left` has."""
        clean = normalizer(self.normalizer)
        counted = [measure(one, other, clean) for one, other in zip(left, right, strict=True)]
        return sum(one.errors for one in counted), sum(one.words for one in counted)


def sample(
    model: Base,
    data: Data | None,
    rule: str | None,
    given: Path | None,
    language: str | None,
    most: int,
) -> Speech:
    """At most `most` clips, evenly spread over `given`, or else over the test split of `data`.

    `rule` names the normaliser; without one it is the language's.

    Raises RecipeError where there is neither, DataError where the speech can't be used.
    """
    from peft_whisper.data.labels import Labels

    if given is None and data is None:
        raise RecipeError(
            "the model is decoded before anything is kept, and it is no run that names its test "
            "speech: give some with --clips"
        )
    spoken = language or (data.language if data else None)
    task, channel = (data.task, data.channel) if data else ("transcribe", "mean")
    labels = Labels(model.tokenizer(), model.config().vocab_size, task)
    clips = _clips(data, given, spoken, labels, channel, most)
    if not clips:
        raise DataError(f"{given or 'the test split'}: none of its clips can be used")
    what = given.name if given else (data.note if data else None) or "the run's test speech"
    rule = rule or _rule(spoken, labels.multilingual)
    return Speech(tuple(clips), labels, channel, rule, what)


def heard(
    whisper: Any,
    base: Base,
    speech: Speech,
    context: Context | None,
    progress: Callable[[int], None] = lambda _clips: None,
) -> list[str]:
    """What a loaded model, or peft's around one, hears in each clip, greedily.

    Vocabulary and rules are those of `base`. Each clip is heard at its own length, or at 30 s
    without `context`; `progress` is called with the number of clips done.
    """
    from peft_whisper.model.encoder import whisper_of
    from peft_whisper.scoring.decode import Decoder

    decoder = Decoder(
        whisper=whisper_of(whisper),
        labels=speech.labels,
        generation=base.generation_config(),
        n_mels=base.config().num_mel_bins,
        channel=speech.channel,
        batch=BATCH,
        max_tokens=MOST_TOKENS,
    )
    texts = decoder.transcribe(speech.clips, context, progress)
    return [texts[clip.id] for clip in speech.clips]


def own_length() -> Context:
    """Clips at their own length, with the margins that a recipe has by default."""
    from peft_whisper.data.epochs import Context

    return Context(Rule().margin_positions)


def _clips(
    data: Data | None,
    given: Path | None,
    language: str | None,
    labels: Labels,
    channel: str,
    most: int,
) -> Sequence[Clip]:
    from peft_whisper.data.audit import audit
    from peft_whisper.data.corpus import read_rows
    from peft_whisper.data.splits import open_splits

    if given is not None:
        name = str(given)
        source = Source(folder=name) if given.is_dir() else Source(manifest=name)
    else:
        assert data is not None
        if data.test.from_train is not None:
            return _spread(open_splits(data, labels.count, quiet=True).test, most)
        source = data.test
    rows = list(islice(read_rows(source, language), CONSIDERED))
    return audit(_spread(rows, most), labels.count, channel).clips


def _spread(listed: Sequence[One], most: int) -> list[One]:
    """At most `most` of them, at even distances."""
    if len(listed) <= most:
        return list(listed)
    return [listed[number * len(listed) // most] for number in range(most)]


def _rule(language: str | None, multilingual: bool) -> str:
    """As a recipe would choose it (`Recipe`)."""
    if not multilingual or language == "en":
        return "english"
    return "characters" if language in UNSPACED_LANGUAGES else "basic_marks"
