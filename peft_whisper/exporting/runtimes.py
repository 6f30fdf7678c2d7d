"""The programs that exports are for, each decoding greedily what it is given."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.environment import cores
from peft_whisper.errors import RecipeError
from peft_whisper.exporting import ctranslate2, ggml, openai

if TYPE_CHECKING:
    import numpy as np

    from peft_whisper.model.base import Base

Waves = Sequence["np.ndarray"]  # float32 (samples,), 16 kHz, at most 30 s each
Languages = Sequence[str | None]
# No second attempt at a higher temperature and nothing thrown away as silence: one greedy pass.
ONE_PASS: dict[str, Any] = {
    "temperature": 0.0,
    "without_timestamps": True,
    "condition_on_previous_text": False,
    "no_speech_threshold": None,
    "compression_ratio_threshold": None,
}


def threads() -> int:
    """As many as torch would take: OMP_NUM_THREADS, or a core each."""
    return int(os.environ.get("OMP_NUM_THREADS") or cores())


def faster_whisper(folder: Path, waves: Waves, languages: Languages, task: str) -> list[str]:
    """What faster-whisper hears with the CTranslate2 model in `folder`."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", cpu_threads=threads(), local_files_only=True)
    texts = []
    for wave, language in zip(waves, languages, strict=True):
        segments, _ = model.transcribe(
            wave,
            language=language or "en",
            task=task,
            beam_size=1,
            log_prob_threshold=None,
            **ONE_PASS,
        )
        texts.append("".join(segment.text for segment in segments).strip())
    return texts


def openai_whisper(folder: Path, waves: Waves, languages: Languages, task: str) -> list[str]:
    """What openai-whisper hears with the model.pt in `folder`."""
    import whisper

    model = whisper.load_model(str(folder / openai.FILE), device="cpu")
    return [
        model.transcribe(
            wave,
            language=language or "en",
            task=task,
            fp16=False,
            logprob_threshold=None,
            **ONE_PASS,
        )["text"].strip()
        for wave, language in zip(waves, languages, strict=True)
    ]


def whisper_cpp(folder: Path, waves: Waves, languages: Languages, task: str) -> list[str]:
    """What whisper.cpp hears with the ggml-model.bin in `folder`.

    It knows no list of suppressed tokens; its own of tokens that are no speech is near to OpenAI's.
    """
    from pywhispercpp.model import Model

    model = Model(
        str(folder / ggml.FILE),
        redirect_whispercpp_logs_to=None,
        context_params={"use_gpu": False},
        n_threads=threads(),
        translate=task == "translate",
        no_timestamps=True,
        single_segment=True,
        suppress_nst=True,
        temperature_inc=0.0,
        no_speech_thold=1.0,
        greedy={"best_of": 1},
        print_progress=False,
    )
    return [
        " ".join(part.text for part in model.transcribe(wave, language=language or "en")).strip()
        for wave, language in zip(waves, languages, strict=True)
    ]


@dataclass(frozen=True)
class Runtime:
    """A program: how a model is written for it, as which types, and how it decodes."""

    program: str
    module: str  # what has to be installed for `hear`
    install: str
    kinds: tuple[str, ...]  # the first is the default
    write: Callable[[Base, Path, str], None]
    hear: Callable[[Path, Waves, Languages, str], list[str]]
    pads_features: bool  # fills a short clip's log-mel with zeros, not its sound with silence

    def check_installed(self) -> None:
        """Raise RecipeError where the program can't be asked: nothing unheard is kept."""
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            raise RecipeError(
                f"--to: {self.program} decodes each export before it is kept, and it can't be "
                f"loaded here ({error}). Install it: {self.install}"
            ) from error


RUNTIMES = {
    "ctranslate2": Runtime(
        "faster-whisper",
        "faster_whisper",
        "pip install 'peft-whisper[export]'",
        ("float16", "float32", "bfloat16", "int8", "int8_float16", "int8_float32"),
        ctranslate2.write_ctranslate2,
        faster_whisper,
        True,
    ),
    "whispercpp": Runtime(
        "whisper.cpp",
        "pywhispercpp.model",
        "pip install 'peft-whisper[export]'",
        ("f16", "q8_0", "q5_0"),
        ggml.write_ggml,
        whisper_cpp,
        False,
    ),
    "openai": Runtime(
        "openai-whisper",
        "whisper",
        "pip install openai-whisper",
        ("float16", "float32"),
        openai.write_openai,
        openai_whisper,
        True,
    ),
}
