"""Transcript -> what the decoder is fed and what it must answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from peft_whisper.languages import UNSPACED_LANGUAGES, Language

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

MAX_TOKENS = 448  # length of the decoder's position table in every published Whisper
TIMESTAMP_STEP_S = 0.02
LAST_TIMESTAMP_S = 30.0
ENGLISH_ONLY_VOCABULARY = 51_864  # one token fewer than the smallest multilingual model


@dataclass(frozen=True)
class LabelRow:
    """One clip's tokens; both tuples have the same length, one entry a decoder position.

    `targets[i]` is the token to be predicted after `decoder_input_ids[: i + 1]`. Every target
    carries loss, end-of-text too; padding is added, and masked by length, when rows are batched.
    """

    decoder_input_ids: tuple[int, ...]
    targets: tuple[int, ...]


class Labels:
    """Builds label rows for one tokenizer; every id is asked of the tokenizer by name.

    `vocabulary` is the model's output size: it tells an English-only model, whose prefix has
    neither language nor task, from a multilingual one.
    """

    def __init__(self, tokenizer: WhisperTokenizer, vocabulary: int, task: str = "transcribe"):
        self.tokenizer = tokenizer
        self.multilingual = vocabulary > ENGLISH_ONLY_VOCABULARY
        self.task = task
        self.end = self._id("<|endoftext|>")
        self._start = self._id("<|startoftranscript|>")
        self._no_timestamps = self._id("<|notimestamps|>")
        self.first_timestamp = self._no_timestamps + 1

    def _id(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(found, int) or self.tokenizer.convert_ids_to_tokens(found) != token:
            raise ValueError(f"the tokenizer has no token {token}; is it a Whisper tokenizer?")
        return found

    def prefix(self, language: str | None, *, timestamps: bool = False) -> list[int]:
        """The forced tokens of a row, from start-of-transcript to where the text begins.

        Raises ValueError where the model is multilingual and the row names no language, or one
        that this tokenizer does not know; where it is English-only and the row is not.
        """
        ids = [self._start]
        if self.multilingual:
            if not language:
                raise ValueError(
                    "a multilingual model needs a language: set data.language, or --language"
                )
            ids += [self._id(f"<|{language}|>"), self._id(f"<|{self.task}|>")]
        elif language not in (None, "en"):
            raise ValueError(f"an English-only model can't learn {language}; take another")
        return ids if timestamps else [*ids, self._no_timestamps]

    def text(self, text: str, language: str | None) -> list[int]:
        """Text tokens, with the leading space that Whisper was trained with where it applies."""
        spaced = text.strip() if language in UNSPACED_LANGUAGES else " " + text.strip()
        encoded = self.tokenizer(spaced, add_special_tokens=False, split_special_tokens=True)
        return list(encoded.input_ids)

    def row(self, text: str, language: str | None, speech_s: float | None = None) -> LabelRow:
        """Label one clip; with `speech_s` (seconds) as one timestamped segment from 0 to there."""
        body = self.text(text, language)
        if speech_s is not None:
            body = [self._timestamp(0.0), *body, self._timestamp(speech_s)]
        fed = [*self.prefix(language, timestamps=speech_s is not None), *body]
        return LabelRow(tuple(fed), (*fed[1:], self.end))

    def _timestamp(self, seconds: float) -> int:
        steps = round(min(seconds, LAST_TIMESTAMP_S) / TIMESTAMP_STEP_S)
        return self.first_timestamp + steps

    def count(self, text: str, language: str | None) -> int:
        """Decoder positions a clip needs in its longest form (timestamped), end-of-text included.

        A clip fits when this is at most `MAX_TOKENS`. Without timestamps it takes one less.
        """
        fixed = len(self.prefix(language, timestamps=True)) + 2 + 1
        return fixed + len(self.text(text, language))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, special tokens and timestamps left out."""
        return self.tokenizer.decode(self.plain(ids), skip_special_tokens=True).strip()

    def plain(self, ids: Sequence[int]) -> list[int]:
        """The text tokens among `ids`."""
        return [i for i in ids if i < self.end]  # every special id lies above the text tokens

    def languages(self) -> dict[str, int]:
        """Language codes and their tokens; none for an English-only model."""
        known = {name: f"<|{name}|>" for name in get_args(Language)} if self.multilingual else {}
        ids = {name: self.tokenizer.convert_tokens_to_ids(token) for name, token in known.items()}
        unknown = self.tokenizer.unk_token_id  # yue came with large-v3
        return {name: i for name, i in ids.items() if isinstance(i, int) and i != unknown}
