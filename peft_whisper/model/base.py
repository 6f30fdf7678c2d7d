"""The pretrained Whisper: found, pinned, fingerprinted and loaded in a stated dtype."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

# peft imports bitsandbytes, which reports an optional accelerator that it does not find.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
INDEX = "model.safetensors.index.json"
START = "<|startoftranscript|>"
AGAIN = "Copy or download the model again."
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

    @property
    def public_name(self) -> str:
        """The name that files of a run may hold: of a folder elsewhere, without its way there."""
        return self.folder.name if Path(self.name).is_absolute() else self.name

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
        """The weight files that transformers loads: model.safetensors, or else its index's shards.

        Raises RecipeError where there are none, or where a shard is missing.
        """
        if (self.folder / "model.safetensors").is_file():
            return [self.folder / "model.safetensors"]
        if not (self.folder / INDEX).is_file():
            raise RecipeError(
                f"base.model: {self.name} holds no model.safetensors. Weights are read from "
                "safetensors only; convert the model with `save_pretrained` of a recent "
                "transformers."
            )
        shards = self._read(INDEX).get("weight_map")
        if not shards or not isinstance(shards, dict) or not all(map(_is_name, shards.values())):
            raise self._odd(f"{INDEX} has no weight_map from tensors to files. {AGAIN}")
        found = sorted(self.folder / name for name in set(shards.values()))
        missing = [path.name for path in found if not path.is_file()]
        if missing:
            raise self._odd(f"{INDEX} names {missing[0]}, which is not there. {AGAIN}")
        return found

    def check(self, *, weights: bool = True) -> None:
        """Read all that is small, and the headers of the weights.

        Raises RecipeError where a file is missing, damaged, or not a Whisper's.
        """
        sizes = self.config()
        self.tokenizer()
        self.generation_config()
        if (self.folder / "preprocessor_config.json").is_file():
            self._read("preprocessor_config.json")
        if weights:
            self._check_weights([sizes.d_model, sizes.num_mel_bins, 3])

    def _check_weights(self, first_layer: list[int]) -> None:
        """Raise RecipeError where a weight file is cut, or the encoder's first layer is another."""
        shapes: dict[str, list[int]] = {}
        for path in self.weights():
            try:
                shapes |= tensor_shapes(path)
            except ValueError as error:
                raise self._odd(f"{path.name} is damaged ({error}). {AGAIN}") from error
        found = [shape for name, shape in shapes.items() if name.endswith("encoder.conv1.weight")]
        if found != [first_layer]:
            raise self._odd(
                f"its config.json asks for an encoder.conv1.weight of shape {first_layer}, its "
                f"weights hold {found[0] if found else 'none'}; they are of two different models"
            )

    def _odd(self, what: str) -> RecipeError:
        return RecipeError(f"base.model: {self.name}: {what}")

    def _read(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files; raises RecipeError where it holds no JSON object."""
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise self._odd(
                f"has no {name}. Take it from the openai/whisper model it was made from."
            ) from error
        except (ValueError, RecursionError) as error:  # nested without end
            raise self._odd(f"{name} is not JSON ({error}). {AGAIN}") from error
        if not isinstance(found, dict):
            raise self._odd(f"{name} holds no JSON object. {AGAIN}")
        return found

    def config(self) -> WhisperConfig:
        """The model's sizes; raises RecipeError where this is no Whisper."""
        from transformers import WhisperConfig

        kind = self._read("config.json").get("model_type")
        if kind != "whisper":
            found = f"a {kind}" if kind else "of no kind that its config.json names (model_type)"
            raise RecipeError(f"base.model: {self.name} is {found}, not a Whisper")
        try:
            with quiet_transformers():
                return WhisperConfig.from_pretrained(self.folder)
        except Exception as error:  # whatever a wrong value makes of it
            raise self._odd(f"config.json can't be used ({_brief(error)}). {AGAIN}") from error

    def tokenizer(self) -> WhisperTokenizer:
        """The vocabulary; raises RecipeError where it is missing, damaged or not a Whisper's."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> WhisperTokenizer:
        from transformers import WhisperTokenizer

        has = {name for name in TOKENIZER_FILES if (self.folder / name).is_file()}
        if "tokenizer.json" not in has and not has >= {"vocab.json", "merges.txt"}:
            raise self._odd(
                "has no tokenizer.json (nor vocab.json with merges.txt). Take the tokenizer's "
                "files from the openai/whisper model it was made from."
            )
        try:
            made = WhisperTokenizer.from_pretrained(self.folder)
            start = made.convert_tokens_to_ids(START)
            knows_start = made.convert_ids_to_tokens(start) == START
        except Exception as error:  # of any kind: JSON, tokenizers' own, a type
            raise self._odd(f"its tokenizer can't be read ({_brief(error)}). {AGAIN}") from error
        if not knows_start:
            raise self._odd(
                f"its tokenizer has no token {START}, so it is not a Whisper's. Take the "
                "tokenizer's files from the openai/whisper model it was made from."
            )
        return made

    def generation_config(self) -> GenerationConfig:
        """The base's own generation settings, without forced_decoder_ids (ours are explicit)."""
        from transformers import GenerationConfig

        if not (self.folder / "generation_config.json").is_file():
            raise self._odd(
                "has no generation_config.json, which says what Whisper must never output "
                "(suppress_tokens). Take it from the openai/whisper model it was made from."
            )
        self._read("generation_config.json")
        try:
            config = GenerationConfig.from_pretrained(self.folder)
        except Exception as error:  # whatever a wrong value makes of it
            what = f"generation_config.json can't be used ({_brief(error)})"
            raise self._odd(f"{what}. {AGAIN}") from error
        if hasattr(config, "forced_decoder_ids"):
            del config.forced_decoder_ids
        return config

    def load(
        self, dtype: str, quantize: str | None = None, device: torch.device | str = "cpu"
    ) -> WhisperForConditionalGeneration:
        """Load the weights onto `device` as `dtype` ("float32", "bfloat16" or "float16").

        Whatever the checkpoint holds. With `quantize` ("int8" or "nf4") the linear layers are held
        in it. Dropout, layer drop and SpecAugment of the pretraining configuration are off; every
        parameter is frozen. Raises RecipeError where `device` can't hold what `quantize` asks for.
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
        model.name_or_path = model.config._name_or_path = self.public_name
        frozen: Any = model.requires_grad_(False).eval()
        if quantize is not None:
            from peft_whisper.model import quantized

            quantized.quantize(frozen, quantize, device)
        return frozen.to(device)


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes by tensor name, from a safetensors file's header; nothing of its body is read.

    Raises ValueError where the file is cut, too long, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(_brief(error)) from error


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name == Path(name).name


def _brief(error: Exception) -> str:
    """The first line of another library's error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
            # Of peft's own layer for norms, whose sizes it does not know.
            warnings.filterwarnings("ignore", "Unsupported layer type '.*LayerNorm'")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
