"""What a run keeps on disk: a sealed folder per saved update, the best one never thrown away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from peft_whisper.errors import NoRoomError, StateError, first_line, is_disk_full
from peft_whisper.files import (
    MANIFEST,
    check_seal,
    remove_folder,
    seal,
    staged_folder,
    sweep,
    write_json,
)
from peft_whisper.model.base import quiet_transformers
from peft_whisper.model.pissa import START, make_plain
from peft_whisper.training.ranks import make_lora
from peft_whisper.training.standing import (
    OPTIMIZER,
    RANKS,
    STATE,
    Standing,
    bytes_of,
    write_standing,
)

if TYPE_CHECKING:
    from peft_whisper.model.base import Base
    from peft_whisper.training.optim import Masters
    from peft_whisper.training.updater import Updater

SPARE = 64 * 2**20  # bytes of disk that a save leaves free for everything else
Refused = list[str]  # why a checkpoint is not gone on from
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


def save_run(
    checkpoints: Path,
    standing: Standing,
    updater: Updater,
    facts: dict[str, Any],
) -> Path:
    """Write all that the run needs to go on; whole, sealed and on the disk, or not at all.

    `facts` say of what base and data it is. Raises NoRoomError, before anything is written, where
    the disk could not hold the checkpoint twice.
    """
    check_space(checkpoints, updater)
    target = folder_of(checkpoints, standing.update)
    try:
        with staged_folder(target) as staging:
            save_weights(staging, updater.model, updater.masters)
            write_standing(staging, standing, updater)
            seal(staging, facts | {"update": standing.update})
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise NoRoomError(
            f"{target} could not be written ({first_line(error)}): it takes "
            f"{bytes_of(updater) / 1e9:.3g} GB. The checkpoint before it is whole: make room and "
            "start the same command again, and the run goes on."
        ) from error
    return target


def check_space(checkpoints: Path, updater: Updater) -> None:
    """Raise NoRoomError where the disk has no room for a checkpoint beside the older one."""
    place = next(one for one in (checkpoints, *checkpoints.parents) if one.exists())
    free, needed = shutil.disk_usage(place).free, 2 * bytes_of(updater) + SPARE
    if free < needed:
        raise NoRoomError(
            f"{checkpoints}: {free / 1e9:.2f} GB of disk are free, a checkpoint needs "
            f"{needed / 1e9:.2f} GB. Make room, and start the same command again: the run goes on "
            "from its last checkpoint."
        )


def save_weights(folder: Path, model: Any, masters: Masters) -> None:
    """Write the trained weights (safetensors) into `folder`.

    They are fp32, but for the matrices of a full fine-tune in bfloat16, which are as they are.
    An adapter is written in PEFT's own format, a full fine-tune as a transformers model.
    """
    # Else peft asks the Hub, at each checkpoint, whether the base's vocabulary was extended.
    adapter_only: dict[str, Any] = (
        {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    )
    with masters.exposed(saving=True), quiet_transformers():
        model.save_pretrained(str(folder), **adapter_only)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; ours comes later


def newest(checkpoints: Path) -> tuple[Path | None, Refused]:
    """The newest checkpoint that is bit for bit as it was written, and why no newer one.

    What a killed process left half made is deleted; to be called under the run's lock.
    """
    sweep(checkpoints)
    refused: Refused = []
    for folder in sorted(checkpoints.glob("update-*"), reverse=True):
        try:
            check_seal(folder)
            return folder, refused
        except (StateError, OSError) as error:
            refused.append(str(error))
    return None, refused


def rotate(checkpoints: Path, keep_last: int, at: Standing) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one.

    Those of later updates were damaged, or the run would have gone on from them: they go too.
    """
    newest_is = folder_of(checkpoints, at.update)
    made = [one for one in sorted(checkpoints.glob("update-*")) if one.name <= newest_is.name]
    kept = [*made[-keep_last:], folder_of(checkpoints, at.best.update)]
    for folder in checkpoints.glob("update-*"):
        if folder not in kept:
            remove_folder(folder)


def publish(
    checkpoints: Path, update: int, target: Path, base: Base, facts: dict[str, Any]
) -> None:
    """Copy one checkpoint to `target`, with all that using it elsewhere needs.

    Beside the weights: tokenizer, feature extractor and the base's generation settings, and
    `peft_whisper.json`: `facts`, the base and its fingerprint. Raises StateError where the
    checkpoint is not as it was written.
    """
    made = folder_of(checkpoints, update)
    check_seal(made)
    trained_on = {"model": base.name, "revision": base.revision, "fingerprint": base.fingerprint}
    without = shutil.ignore_patterns(OPTIMIZER, STATE, START, RANKS, MANIFEST)
    with staged_folder(target) as staging:
        shutil.copytree(made, staging, dirs_exist_ok=True, ignore=without)
        if (made / START).is_file():
            make_plain(staging, made / START)
        if facts["method"] == "adalora":
            make_lora(staging)
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
