"""What an adapter on its base and the merged model hear of the same speech, compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import StateError
from peft_whisper.scoring.sample import Speech, heard, own_length
from peft_whisper.terminal import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from peft_whisper.model.base import Base

# Between the word error rates, fractions, of 16 bits and of the adapter: there each weight is
# rounded, and a word may change. In float32 sums are but reordered, and no rate may.
SMALL_DIFFERENCE = 0.02


@dataclass(frozen=True)
class Heard:
    """Both word error rates, fractions, on `clips` clips of `speech`.

    `words` is how many the adapter heard, and `words_differ` how many of the merged model's are
    others, aligned.
    """

    speech: str
    normalizer: str
    clips: int
    words: int
    words_differ: int
    wer_adapter: float
    wer_merged: float

    @property
    def apart(self) -> bool:
        """Whether the rates differ by more than rounding the weights to 16 bits explains."""
        return abs(self.wer_merged - self.wer_adapter) > SMALL_DIFFERENCE

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"WER: adapter {100 * self.wer_adapter:.2f} %, merged {100 * self.wer_merged:.2f} %, "
            f"{self.clips} clips, {self.words} words, {self.words_differ} of them differ"
        )


@dataclass(frozen=True)
class Trial:
    """Speech that both models are to hear, by the vocabulary of `base`, shown on `console`."""

    speech: Speech
    base: Base
    console: Console

    def texts(self, model: Any, who: str) -> list[str]:
        """What `model` hears, each clip at its own length, in the order of the clips."""
        with progress(self.console, f"decoding, {who}", len(self.speech.clips)) as task:
            return heard(model, self.base, self.speech, own_length(), task.advance)

    def compare(self, adapter: Sequence[str], merged: Sequence[str], dtype: str) -> Heard:
        """Count both; raises StateError where a merge in float32 has another word error rate."""
        speech = self.speech
        differ, words = speech.differing(adapter, merged)
        rates = speech.wer(adapter), speech.wer(merged)
        found = Heard(speech.what, speech.normalizer, len(adapter), words, differ, *rates)
        if dtype == "float32" and rates[0] != rates[1]:
            raise StateError(f"the merged model hears other words. {found}; nothing was written")
        return found
