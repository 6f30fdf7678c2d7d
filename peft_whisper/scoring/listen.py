"""Windows of 30 s decoded with timestamps, again at higher temperatures where it went wrong.

The rules and thresholds of openai-whisper (whisper/decoding.py, whisper/transcribe.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peft_whisper.data.labels import MAX_TOKENS
from peft_whisper.model.decoder import TokenDecoder
from peft_whisper.scoring.decode import Decoder
from peft_whisper.scoring.search import follow
from peft_whisper.scoring.words import alignment_heads, token_times

if TYPE_CHECKING:
    from peft_whisper.scoring.search import Greedy

WINDOW_TOKENS = MAX_TOKENS // 2
FIRST_STAMP_BEFORE = 50  # steps of 20 ms: speech begins within the first second, or never
# Thresholds and temperatures of whisper/transcribe.py.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOST_REPETITIVE = 2.4  # bytes of text to bytes of it compressed
LEAST_LOGPROB = -1.0  # mean over tokens
NO_SPEECH = 0.6  # probability


@dataclass(frozen=True)
class Attempt:
    """A window's tokens, end-of-text left out, and what tells whether to believe them."""

    tokens: list[int]
    text: str
    logprob: float  # mean over the tokens, end-of-text among them
    no_speech: float  # probability
    times: tuple[float, ...] = ()  # seconds at which each token of the text begins, and its end

    @property
    def silent(self) -> bool:
        return self.no_speech > NO_SPEECH and self.logprob <= LEAST_LOGPROB

    @property
    def doubtful(self) -> bool:
        spelt = self.text.encode()
        repetitive = len(spelt) > MOST_REPETITIVE * len(zlib.compress(spelt))
        return not self.silent and (repetitive or self.logprob < LEAST_LOGPROB)


class Listener:
    """Decodes windows with timestamps, again at higher temperatures where it went wrong."""

    def __init__(self, decoder: Decoder, temperatures: Sequence[float] = TEMPERATURES):
        self.decoder, self.greedy, self.temperatures = decoder, decoder.search(), temperatures
        self.heads = alignment_heads(decoder.generation)

    def __call__(
        self, mel: Tensor, languages: Sequence[str | None], positions: Sequence[int]
    ) -> list[Attempt]:
        """An attempt for each window.

        Args:
            mel: (windows, mels, 3000).
            languages: of each window; None where the model is English-only.
            positions: of 20 ms, how many of each window lie before its recording's end.
        """
        labels = self.decoder.labels
        prefixes = [labels.prefix(language, timestamps=True) for language in languages]
        with self.decoder.working():
            heard = self.decoder.encoded(mel)
            found = self._attempt(heard, prefixes, self.temperatures[0])
            for temperature in self.temperatures[1:]:
                again = [row for row, one in enumerate(found) if one.doubtful]
                if not again:
                    break
                some = [prefixes[row] for row in again]
                for row, one in zip(
                    again, self._attempt(heard[again], some, temperature), strict=True
                ):
                    found[row] = one
            untimed = [labels.prefix(language) for language in languages]
            return self._timed(heard, untimed, positions, found)

    def language_of(self, mel: Tensor) -> str | None:
        """The likeliest language of a window (mels, 3000); None for an English-only model."""
        labels = self.decoder.labels
        languages = labels.languages()
        if not languages:
            return None
        with self.decoder.working():
            heard = self.decoder.encoded(mel[None])
            start = torch.tensor([labels.prefix("en")[:1]], device=heard.device)
            logits = self.greedy.vocabulary(TokenDecoder(self.greedy.whisper, [heard], 1)(start)[0])
        return max(languages, key=lambda name: float(logits[0, languages[name]]))

    def _timed(
        self,
        heard: Tensor,
        prefixes: Sequence[Sequence[int]],
        positions: Sequence[int],
        found: list[Attempt],
    ) -> list[Attempt]:
        """The attempts with the times of their tokens, where the base says which heads tell."""
        texts = [self.decoder.labels.plain(one.tokens) for one in found]
        rows = [row for row, text in enumerate(texts) if text and not found[row].silent]
        if not self.heads or not rows:
            return found
        times = token_times(
            self.greedy.whisper,
            heard[rows],
            [prefixes[row] for row in rows],
            [texts[row] for row in rows],
            self.heads,
            [positions[row] for row in rows],
        )
        for row, told in zip(rows, times, strict=True):
            found[row] = replace(found[row], times=tuple(told.tolist()))
        return found

    def _attempt(
        self, heard: Tensor, prefixes: Sequence[Sequence[int]], temperature: float
    ) -> list[Attempt]:
        greedy, labels = self.greedy, self.decoder.labels
        rows, forced = len(heard), len(prefixes[0])
        limit = min(WINDOW_TOKENS, MAX_TOKENS - forced)
        decoder = TokenDecoder(greedy.whisper, [heard], forced + limit - 1)
        hidden = decoder(torch.tensor(prefixes, device=heard.device))
        first = greedy.vocabulary(hidden[:, 0]).float().softmax(-1)
        no_speech = first[:, labels.first_timestamp - 2].tolist()
        rules = TimestampRules(greedy, labels.first_timestamp, rows, temperature)
        ids = follow(decoder, greedy.vocabulary, hidden[:, -1], limit, greedy.end, rules.choose)
        return [
            Attempt(tokens, labels.decode(tokens), logprob, silence)
            for tokens, logprob, silence in zip(ids, rules.logprobs(), no_speech, strict=True)
        ]


class TimestampRules:
    """Chooses tokens so that timestamps come in pairs and never go back.

    The rules of whisper/decoding.py (ApplyTimestampRules), for all rows at once.
    """

    def __init__(self, greedy: Greedy, first: int, rows: int, temperature: float):
        self.greedy, self.first, self.temperature = greedy, first, temperature
        device = greedy.never.device
        # Each row's own, so that what is drawn does not depend on the rows beside it.
        self.random = [torch.Generator(device).manual_seed(0) for _ in range(rows)]
        # Tokens before the next one; where there is none yet, it counts as a timestamp.
        self.last = torch.full((rows,), first, device=device)
        self.before = torch.full_like(self.last, first)
        self.stamp = torch.full_like(self.last, -1)  # latest, counted from `first`
        self.total = torch.zeros(rows, device=device)  # log-probability
        self.count = torch.zeros_like(self.last)

    def choose(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """Token (rows,) of logits (rows, vocabulary)."""
        logits = logits.float()
        logits[:, self.first - 1] = -torch.inf  # <|notimestamps|>
        self.greedy.suppress(logits, step)
        self._keep_pairs(logits, rows, step)
        text, stamps = logits[:, : self.first], logits[:, self.first :]
        text.masked_fill_((stamps.logsumexp(-1) > text.amax(-1))[:, None], -torch.inf)
        if self.temperature:
            chances = (logits / self.temperature).softmax(-1)
            drawn = [
                one.multinomial(1, generator=self.random[row])
                for one, row in zip(chances, rows.tolist(), strict=True)
            ]
            token = torch.cat(drawn)
        else:
            token = logits.argmax(-1)
        self._note(logits, token, rows)
        return token

    def logprobs(self) -> list[float]:
        """Mean log-probability of each row's tokens, end-of-text among them."""
        means: list[float] = (self.total / self.count.clamp(min=1)).tolist()
        return means

    def _keep_pairs(self, logits: Tensor, rows: Tensor, step: int) -> None:
        text, stamps = logits[:, : self.first], logits[:, self.first :]
        if step == 0:
            text.fill_(-torch.inf)
            stamps[:, FIRST_STAMP_BEFORE + 1 :] = -torch.inf
            return
        last, before = self.last[rows] >= self.first, self.before[rows] >= self.first
        closed = last & ~before  # now its like opens the next segment, or all ends
        text[:, : self.greedy.end].masked_fill_(closed[:, None], -torch.inf)
        lowest = self.stamp[rows] + (~closed).long()
        earlier = torch.arange(stamps.shape[1], device=rows.device) < lowest[:, None]
        stamps.masked_fill_(earlier | (last & before)[:, None], -torch.inf)

    def _note(self, logits: Tensor, token: Tensor, rows: Tensor) -> None:
        """Remember what the rules and the mean need to know of a row."""
        last, end = self.last[rows], self.greedy.end
        going = last != end
        logprob = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
        self.total[rows] += logprob * going
        self.count[rows] += going
        stamp = token - self.first
        self.stamp[rows] = torch.where(stamp >= 0, stamp, self.stamp[rows])
        self.before[rows], self.last[rows] = last, torch.where(going, token, end)
