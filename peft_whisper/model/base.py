"""The pretrained Whisper: found, pinned, fingerprinted and loaded in a stated dtype."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from peft_whisper.errors import RecipeError

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

# peft imports bitsandbytes, which reports an optional accelerator that it does not find.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# What a base needs; the pickled and the other frameworks' weights stay on the Hub.
SMALL_FILES = ["*.json", "merges.txt"]
WEIGHT_FILES = ["model.safetensors", "model-0*.safetensors"]
PRETRAINING_NOISE = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
)


@dataclass(frozen=True)
class Base:
    """A base model's files on this machine, before anything heavy is loaded."""

    name: str  # as the recipe names it
    revision: str | None  # commit on the Hub; None for a local folder
    folder: Path

    @cached_property
    def fingerprint(self) -> str:
        """ "sha256:..." over the weight files' bytes, in the order of their names.

        It ties an adapter to the base it was trained on: other Whispers have the same shapes.
        """
        digest = hashlib.sha256()
        for path in self.weights():
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return f"sha256:{digest.hexdigest()}"

    def weights(self) -> list[Path]:
        """The weight files; raises RecipeError where there are none."""
        found = sorted(self.folder.glob("model*.safetensors"))
        if not found:
            raise RecipeError(
                f"base.model: {self.name} holds no model.safetensors. Weights are read from "
                "safetensors only; convert the model with `save_pretrained` of a recent "
                "transformers."
            )
        return found

    def config(self) -> WhisperConfig:
        """The model's sizes; raises RecipeError where this is no Whisper."""
        from transformers import WhisperConfig

        with quiet_transformers():
            config = WhisperConfig.from_pretrained(self.folder)
        if config.model_type != "whisper" or not (self.folder / "config.json").is_file():
            raise RecipeError(f"base.model: {self.name} is a {config.model_type}, not a Whisper")
        return config

    def tokenizer(self) -> WhisperTokenizer:
        from transformers import WhisperTokenizer

        return WhisperTokenizer.from_pretrained(self.folder)

    def generation_config(self) -> GenerationConfig:
        """The base's own generation settings, without forced_decoder_ids (ours are explicit)."""
        from transformers import GenerationConfig

        if not (self.folder / "generation_config.json").is_file():
            raise RecipeError(
                f"{self.name} has no generation_config.json, which says what Whisper must never "
                "output (suppress_tokens). Take it from the openai/whisper model it was made from."
            )
        config = GenerationConfig.from_pretrained(self.folder)
        if hasattr(config, "forced_decoder_ids"):
            del config.forced_decoder_ids
        return config

    def load(self, dtype: str) -> WhisperForConditionalGeneration:
        """Load the weights as `dtype` ("float32" or "bfloat16"), whatever the checkpoint holds.

        Dropout, layer drop and SpecAugment of the pretraining configuration are off; every
        parameter is frozen.
        """
        import torch
        from transformers import WhisperForConditionalGeneration

        config = self.config()
        for noise in PRETRAINING_NOISE:
            setattr(config, noise, 0.0)
        config.apply_spec_augment = False
        config.forced_decoder_ids = None
        with quiet_transformers():
            model = WhisperForConditionalGeneration.from_pretrained(
                self.folder,
                config=config,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
            )
        model.generation_config = self.generation_config()
        # What an adapter's config names as its base; not the download cache's path.
        model.name_or_path = model.config._name_or_path = self.name
        return model.requires_grad_(False).eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' and peft's progress bars and advice to developers out of our terminal."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def find_base(name: str, revision: str | None = None, *, weights: bool = True) -> Base:
    """Resolve a Hub id or a local folder to a `Base`; downloads what is missing from the Hub.

    Without `weights` only configuration and tokenizer are fetched, for looking at data.
    Raises RecipeError where there is no such model, or it has no safetensors weights.
    """
    local = Path(name)
    if local.is_dir():
        found = Base(name, None, local)
    elif local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        made_by_demo = ".demo" in local.parts
        hint = "; `python -m peft_whisper.demo` makes it" if made_by_demo else ""
        raise RecipeError(f"base.model: {name} is not a folder{hint}")
    else:
        folder = _download(name, revision, SMALL_FILES + WEIGHT_FILES * weights)
        found = Base(name, folder.name, folder)
    if weights:
        found.weights()
    return found


def _download(name: str, revision: str | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    at = f"base.model: {name}" + (f" at revision {revision}" if revision else "")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise RecipeError(
            f"{at} is neither a folder here nor a Hub id (owner/name): {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise RecipeError(
            f"{at} is not on this machine and the Hub cannot be reached. Give a local folder, or "
            "download it once while online (`hf download " + name + "`)."
        ) from error
    except HfHubHTTPError as error:
        raise RecipeError(
            f"{at} could not be downloaded: {str(error).splitlines()[0]} "
            "(a gated model needs `hf auth login`)."
        ) from error
