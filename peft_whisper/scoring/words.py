"""When each word of a window was said, from what the decoder looked at while it wrote it.

The method of openai-whisper (whisper/timing.py): the cross-attention of the few heads that follow
the sound (`alignment_heads` of generation_config.json), and the cheapest path through it in which
time never goes back (dynamic time warping).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from peft_whisper.data.labels import TIMESTAMP_STEP_S
from peft_whisper.languages import UNSPACED_LANGUAGES
from peft_whisper.model.decoder import TokenDecoder

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    from peft_whisper.data.labels import Labels

SMOOTHED = 7  # positions of the median filter (whisper/timing.py)
CUT_CHARACTER = "\ufffd"  # what half of a character's bytes decode to


@dataclass(frozen=True)
class Word:
    """A word with its punctuation, and when it was said."""

    start_s: float
    end_s: float
    text: str


def alignment_heads(generation: GenerationConfig) -> list[tuple[int, int]]:
    """(layer, head) of the heads that follow the sound; none where the base does not say."""
    return [tuple(pair) for pair in getattr(generation, "alignment_heads", None) or []]


def token_times(
    whisper: WhisperForConditionalGeneration,
    heard: Tensor,
    prefixes: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    heads: Sequence[tuple[int, int]],
    positions: Sequence[int],
) -> list[np.ndarray]:
    """Seconds at which each token of each row begins, and behind them where the last one ends.

    Args:
        heard: encoder output (rows, positions, d_model).
        prefixes: forced tokens of each row, equally many, the last of them <|notimestamps|>.
        texts: tokens of each row, without timestamps.
        positions: how many of a row's positions hold sound, of 20 ms.
    """
    length, forced = max(map(len, texts)), len(prefixes[0])
    ids = [  # padded at the end, where nothing that comes before can see it
        [*prefix, *text, *[0] * (length - len(text))]
        for prefix, text in zip(prefixes, texts, strict=True)
    ]
    decoder = TokenDecoder(whisper, [heard], forced + length)
    layers: Any = whisper.model.decoder.layers
    asked: dict[int, Tensor] = {}  # what each layer's cross-attention is asked with

    def keep(number: int) -> Any:
        return lambda _module, _args, out: asked.__setitem__(number, out)

    hooks = [
        layers[number].encoder_attn_layer_norm.register_forward_hook(keep(number))
        for number in {layer for layer, _ in heads}
    ]
    try:
        decoder(torch.tensor(ids, device=heard.device))
    finally:
        for hook in hooks:
            hook.remove()
    scores = [
        _scores(layers[layer].encoder_attn, asked[layer], decoder.heard[layer][0][0], head)
        for layer, head in heads
    ]
    first = forced - 1  # where the first token of the text is predicted
    return [
        _path(torch.stack([one[row, first : first + len(text) + 1, :size] for one in scores]))
        for row, (text, size) in enumerate(zip(texts, positions, strict=True))
    ]


def _scores(attention: Any, asked: Tensor, keys: Tensor, head: int) -> Tensor:
    """One head's attention before its softmax: (rows, tokens, positions)."""
    query = attention.q_proj(asked).unflatten(-1, (attention.num_heads, -1))[:, :, head]
    return (query @ keys[:, head].transpose(1, 2) * attention.scaling).float()


def _path(scores: Tensor) -> np.ndarray:
    """Seconds at which each token begins, of scores (heads, tokens, positions)."""
    weights = scores.softmax(-1)
    spread, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = (weights - mean) / spread.clamp(min=1e-9)
    side = SMOOTHED // 2
    if weights.shape[-1] > side:
        around = torch.nn.functional.pad(weights, (side, side), mode="reflect")
        weights = around.unfold(-1, SMOOTHED, 1).median(-1).values
    return warp(-weights.mean(0).cpu().double().numpy()) * TIMESTAMP_STEP_S


def warp(cost: np.ndarray) -> np.ndarray:
    """First column of each row on the cheapest path through `cost` (rows, columns).

    The path goes from the first corner to the last in steps to the right, down, or both. A row's
    sums are found at once: of all places where the path may enter it, the cheapest so far.
    """
    rows, columns = cost.shape
    total, entered = np.empty((rows, columns)), np.empty((rows, columns), dtype=np.int64)
    numbers = np.arange(columns)
    for row in range(rows):
        along = np.cumsum(cost[row])
        above = total[row - 1] if row else np.where(numbers == 0, 0.0, np.inf)
        before = np.concatenate([[np.inf], above[:-1]]) if row else above
        entry = np.minimum(above, before) - (along - cost[row])
        cheapest = np.minimum.accumulate(entry)
        entered[row] = np.maximum.accumulate(np.where(entry == cheapest, numbers, 0))
        total[row] = along + cheapest
    starts, column = np.zeros(rows, dtype=np.int64), columns - 1
    for row in range(rows - 1, 0, -1):
        starts[row] = column = entered[row, column]
        if column and total[row - 1, column - 1] <= total[row - 1, column]:
            column -= 1
    return starts


def grouped(labels: Labels, tokens: Sequence[int], language: str | None) -> list[list[int]]:
    """Text tokens by words, punctuation with the word before it; by character without spaces."""
    spaced = language not in UNSPACED_LANGUAGES
    groups: list[list[int]] = []
    held: list[int] = []
    for token in tokens:
        held.append(token)
        text = labels.tokenizer.decode(held)
        if CUT_CHARACTER in text:
            continue
        if groups and not (text.startswith(" ") if spaced else text[:1].isalnum()):
            groups[-1] += held
        else:
            groups.append(held)
        held = []
    return groups + [held] * bool(held)
