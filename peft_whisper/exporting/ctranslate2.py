"""CTranslate2's own conversion, and what faster-whisper needs beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from peft_whisper.files import write_json
from peft_whisper.model.base import quiet_transformers

if TYPE_CHECKING:
    from peft_whisper.model.base import Base


def write_ctranslate2(model: Base, folder: Path, kind: str) -> None:
    """Fill the empty `folder` with model.bin and its configuration, tokenizer and mel settings.

    `kind` is one of CTranslate2's quantizations.
    """
    from ctranslate2.converters import TransformersConverter

    with quiet_transformers():
        TransformersConverter(str(model.folder)).convert(str(folder), quantization=kind, force=True)
        write_tokenizer(model, folder)
        write_mel_settings(model, folder)
    _name_languages(model, folder / "config.json")


def write_tokenizer(model: Base, folder: Path) -> None:
    """Write tokenizer.json, without which faster-whisper would ask the Hub for OpenAI's."""
    if (model.folder / "tokenizer.json").is_file():
        shutil.copyfile(model.folder / "tokenizer.json", folder / "tokenizer.json")
        return
    backend = getattr(model.tokenizer(), "backend_tokenizer")  # noqa: B009
    backend.save(str(folder / "tokenizer.json"))


def write_mel_settings(model: Base, folder: Path) -> None:
    """Write preprocessor_config.json, without which faster-whisper takes 80 mel bands."""
    from transformers import WhisperFeatureExtractor

    bands = model.config().num_mel_bins
    WhisperFeatureExtractor(feature_size=bands).save_pretrained(folder)


def _name_languages(model: Base, path: Path) -> None:
    """Say which tokens are languages where the model's generation config did not.

    The converter then looks for them where this version of transformers has them no more, and
    finding the language that is spoken would not work.
    """
    from peft_whisper.data.labels import Labels

    config = json.loads(path.read_text(encoding="utf-8"))
    known = Labels(model.tokenizer(), model.config().vocab_size).languages()
    if known and not config.get("lang_ids"):
        write_json(path, config | {"lang_ids": sorted(known.values())})
