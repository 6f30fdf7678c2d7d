"""What a run keeps on disk: a folder per evaluated update, the best one never thrown away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.files import staged_folder, write_json
from peft_whisper.model.base import quiet_transformers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from peft_whisper.model.base import Base
    from peft_whisper.training.optim import Masters

PROCESSOR_FILES = (  # as transformers of any age writes them; a base has some of these
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def folder_of(checkpoints: Path, update: int) -> Path:
    return checkpoints / f"update-{update:06d}"


def save(
    checkpoints: Path,
    update: int,
    model: PreTrainedModel | PeftModel,
    masters: Masters,
) -> Path:
    """Write the trained weights (safetensors) of one update; whole or not at all.

    They are fp32, but for the matrices of a full fine-tune in bfloat16, which are as they are.
    An adapter is written in PEFT's own format, a full fine-tune as a transformers model.
    """
    target = folder_of(checkpoints, update)
    # Else peft asks the Hub, at each checkpoint, whether the base's vocabulary was extended.
    adapter_only: dict[str, Any] = (
        {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    )
    with staged_folder(target) as staging, masters.exposed(saving=True), quiet_transformers():
        model.save_pretrained(str(staging), **adapter_only)
        (staging / "README.md").unlink(missing_ok=True)  # peft's empty card; ours comes later
    return target


def rotate(checkpoints: Path, keep_last: int, best: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one."""
    kept = sorted(checkpoints.glob("update-*"))[-keep_last:] + [folder_of(checkpoints, best)]
    for folder in checkpoints.glob("update-*"):
        if folder not in kept:
            shutil.rmtree(folder)


def publish(
    checkpoints: Path, update: int, target: Path, base: Base, facts: dict[str, Any]
) -> None:
    """Copy one checkpoint to `target`, with all that using it elsewhere needs.

    Beside the weights: tokenizer, feature extractor and the base's generation settings, and
    `peft_whisper.json`: `facts`, the base and its fingerprint.
    """
    trained_on = {"model": base.name, "revision": base.revision, "fingerprint": base.fingerprint}
    with staged_folder(target) as staging:
        shutil.copytree(folder_of(checkpoints, update), staging, dirs_exist_ok=True)
        copy_processor(base, staging)
        write_json(staging / "peft_whisper.json", facts | {"base": trained_on})


def copy_processor(base: Base, target: Path) -> None:
    """Copy the base's tokenizer and feature extractor, and its whole generation config.

    A base without preprocessor_config.json gets the one of its number of mel bands.
    """
    for name in PROCESSOR_FILES:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, target / name)
    if not (target / "preprocessor_config.json").is_file():
        from transformers import WhisperFeatureExtractor

        extractor = WhisperFeatureExtractor(feature_size=base.config().num_mel_bins)
        extractor.save_pretrained(target)
    base.generation_config().save_pretrained(target)
