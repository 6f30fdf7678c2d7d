"""Real vocabularies and tiny random models for tests: small in weights, true in layout.

The byte-pair ranks are those that OpenAI's own package ships (gpt2.tiktoken for the English-only
models, multilingual.tiktoken for the others); special tokens follow in the order of its
whisper/tokenizer.py.
"""

from __future__ import annotations

import base64
import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

VOCABULARIES = {".en": 51_864, "multilingual": 51_865, "large-v3": 51_866}


def openai_whisper() -> Path:
    """Folder of OpenAI's own package; only its tokenizer module and assets are used."""
    spec = importlib.util.find_spec("whisper")
    assert spec is not None and spec.origin, "install openai-whisper: `make test` does"
    return Path(spec.origin).parent


@cache
def openai_tokenizer_module() -> ModuleType:
    """whisper/tokenizer.py alone: its package would import numba and triton."""
    path = openai_whisper() / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("openai_whisper_tokenizer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def tokenizer(kind: str) -> WhisperTokenizer:
    """The tokenizer of `.en`, `multilingual` (tiny to large-v2) or `large-v3` models."""
    name = "gpt2" if kind == ".en" else "multilingual"
    lines = (openai_whisper() / "assets" / f"{name}.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    letters = bytes_to_unicode()
    spell = lambda piece: "".join(letters[byte] for byte in piece)  # noqa: E731
    made = WhisperTokenizer(
        vocab={spell(piece): rank for piece, rank in ranks.items()},
        merges=[
            tuple(map(spell, _last_merge(ranks, piece)))
            for piece in sorted(ranks, key=ranks.__getitem__)
            if len(piece) > 1
        ],
    )
    languages = list(openai_tokenizer_module().LANGUAGES)[: 100 if kind == "large-v3" else 99]
    controls = [
        "startoftranscript",
        *languages,
        *("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"),
    ]
    made.add_special_tokens(
        {"extra_special_tokens": ["<|endoftext|>"] + [f"<|{name}|>" for name in controls]}
    )
    made.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
    return made


def _last_merge(ranks: dict[bytes, int], piece: bytes) -> tuple[bytes, bytes]:
    """The two parts that `piece` was merged from: byte-pair encode it without its own rank."""
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, 10**9) for a, b in pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def config(
    n_mels: int = 80, vocabulary: int = 51_864, layers: int = 2, feed: int = 32
) -> WhisperConfig:
    """Sizes of a Whisper that is 16 wide; everything else is as in the real ones."""
    end = 50_256 if vocabulary == VOCABULARIES[".en"] else 50_257
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=n_mels,
        d_model=16,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=feed,
        decoder_ffn_dim=feed,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def model(sizes: WhisperConfig, seed: int = 1) -> WhisperForConditionalGeneration:
    """A random Whisper with weights large enough that its outputs differ from clip to clip."""
    torch.manual_seed(seed)
    made = WhisperForConditionalGeneration(sizes)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(5)
    made.set_attn_implementation("sdpa")
    return made.requires_grad_(False).eval()


def save_base(folder: Path, kind: str, n_mels: int, seed: int = 1, feed: int = 32) -> Path:
    """Write a whole base to `folder`: random weights, real vocabulary and processor."""
    sizes = config(n_mels, VOCABULARIES[kind], feed=feed)
    made = model(sizes, seed)
    made.generation_config = GenerationConfig(
        suppress_tokens=[1, 2, 7],
        begin_suppress_tokens=[220, sizes.eos_token_id],
        decoder_start_token_id=sizes.decoder_start_token_id,
        eos_token_id=sizes.eos_token_id,
        pad_token_id=sizes.pad_token_id,
        bos_token_id=sizes.bos_token_id,
        max_length=448,
    )
    made.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=n_mels).save_pretrained(folder)
    return folder


def say_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows nothing is not let talk for long when it transcribes."""
    monkeypatch.setattr("peft_whisper.scoring.listen.WINDOW_TOKENS", 12)
    monkeypatch.setattr("peft_whisper.scoring.listen.LEAST_LOGPROB", -1e9)
