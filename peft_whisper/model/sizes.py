"""Whispers without weights: the dimensions of the public ones, and empty models of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import RecipeError
from peft_whisper.model.base import PRETRAINING_NOISE, Base
from peft_whisper.model.find import download

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

# d_model, encoder layers, decoder layers, heads, vocabulary, mel bands (their config.json)
SIZES = {
    "tiny": (384, 4, 4, 6, 51_865, 80),
    "base": (512, 6, 6, 8, 51_865, 80),
    "small": (768, 12, 12, 12, 51_865, 80),
    "medium": (1024, 24, 24, 16, 51_865, 80),
    "large": (1280, 32, 32, 20, 51_865, 80),
    "large-v2": (1280, 32, 32, 20, 51_865, 80),
    "large-v3": (1280, 32, 32, 20, 51_866, 128),
    "large-v3-turbo": (1280, 32, 4, 20, 51_866, 128),
}
ENGLISH_ONLY = ("tiny", "base", "small", "medium")  # have a sister .en with one token less


@dataclass(frozen=True)
class Blueprint:
    """A base whose sizes are known: it loads as the base would, with weights of no value."""

    sizes: WhisperConfig

    def config(self) -> WhisperConfig:
        return self.sizes

    def generation_config(self) -> GenerationConfig:
        from transformers import GenerationConfig

        return GenerationConfig(eos_token_id=self.sizes.eos_token_id)

    def load(
        self, dtype: str, quantize: str | None = None, device: torch.device | str = "cpu"
    ) -> WhisperForConditionalGeneration:
        """The model as `Base.load` gives it on `device`, its parameters uninitialised."""
        import torch
        from transformers import WhisperForConditionalGeneration
        from transformers.initialization import no_init_weights

        for noise in PRETRAINING_NOISE:
            setattr(self.sizes, noise, 0.0)
        self.sizes._attn_implementation = "sdpa"
        usual = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            with no_init_weights(), torch.device(device):
                model: Any = WhisperForConditionalGeneration(self.sizes)
        finally:
            torch.set_default_dtype(usual)
        model.tie_weights()
        if quantize is not None:
            from peft_whisper.model.quantized import empty_quantized

            empty_quantized(model, quantize)
        return model.requires_grad_(False).eval()


def find_blueprint(name: str, revision: str | None = None) -> Blueprint:
    """The sizes of a local folder's model, of a public Whisper, or of one on the Hub.

    Of the public ones nothing is downloaded; of others config.json alone. Raises RecipeError
    where there is no such model, or where it is unknown and the Hub cannot be reached.
    """
    if Path(name).is_dir():
        return Blueprint(Base(name, None, Path(name)).config())
    known = public_sizes(name)
    if known is not None:
        return Blueprint(known)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RecipeError(
            f"base.model: {name} is not a folder here; give a folder with a config.json, or a "
            "public Whisper such as openai/whisper-large-v3"
        )
    folder = download(name, revision, ["config.json"])
    return Blueprint(Base(name, revision, folder).config())


def public_sizes(name: str) -> WhisperConfig | None:
    """Configuration of openai/whisper-<size>; None for any other name."""
    from transformers import WhisperConfig

    kind = name.removeprefix("openai/whisper-")
    english = kind.endswith(".en")
    size = kind.removesuffix(".en")
    if kind == name or size not in SIZES or (english and size not in ENGLISH_ONLY):
        return None
    width, encoder, decoder, heads, vocabulary, mels = SIZES[size]
    return WhisperConfig(
        d_model=width,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        vocab_size=vocabulary - english,
        num_mel_bins=mels,
    )
