"""The stock Whisper, run at the true length of a batch: encoder, and loss where tokens are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from peft_whisper.model.loss import summed_cross_entropy

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration
    from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder


def encode(encoder: WhisperEncoder, mel: Tensor) -> Tensor:
    """Run the encoder on as many positions as the batch has.

    The stock forward refuses anything but 3,000 frames; this is the same computation with the
    first `positions` rows of the position table, equal bit for bit in fp32 at 1,500 positions.

    Args:
        mel: (batch, mels, 2 * positions), positions <= 1500.

    Returns:
        (batch, positions, d_model).
    """
    return encode_from(encoder, encode_below(encoder, mel, 0), 0)


def encode_below(encoder: WhisperEncoder, mel: Tensor, first: int) -> Tensor:
    """What enters layer `first` (all layers: the last norm), (batch, positions, d_model).

    `mel` is as in `encode`; raises ValueError where it has another length.
    """
    frames = mel.shape[-1]
    limit = 2 * encoder.max_source_positions
    if frames % 2 or not 0 < frames <= limit:
        raise ValueError(f"the encoder takes an even number of frames up to {limit}, not {frames}")
    hidden = F.gelu(encoder.conv1(mel))
    hidden = F.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers[:first]:
        hidden = layer(hidden, None)
    return hidden


def encode_from(encoder: WhisperEncoder, hidden: Tensor, first: int) -> Tensor:
    """The rest of `encode`, from layer `first` on, of what `encode_below` gave."""
    for layer in encoder.layers[first:]:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)


def decode(decoder: WhisperDecoder, ids: Tensor, heard: Tensor) -> Tensor:
    """Run the decoder on whole transcripts, whose tokens each see those before.

    The stock forward first looks for several transcripts packed into one row, for which the host
    waits; without a mask its layers are causal.

    Args:
        ids: int64 (batch, t).
        heard: (batch, positions, d_model), what the encoder gives.

    Returns:
        (batch, t, d_model).
    """
    hidden = decoder.embed_tokens(ids) + decoder.embed_positions(ids)
    for layer in decoder.layers:
        hidden = layer(hidden, None, heard, use_cache=False)
    return decoder.layer_norm(hidden)


def whisper_of(model: nn.Module) -> WhisperForConditionalGeneration:
    """The WhisperForConditionalGeneration inside a PEFT model, or the model itself."""
    from peft import PeftModel

    inside: Any = model.base_model.model if isinstance(model, PeftModel) else model
    return inside


class TokenLoss(nn.Module):
    """One training forward: sound and decoder input in, summed loss of the real tokens out.

    With `first`, the encoder is run from that layer on, and its sound is what enters there; else
    it is log-mel.

    Logits are computed only at `index` (positions of the flattened decoder output that carry
    loss), so padding costs no vocabulary product.
    """

    def __init__(self, model: nn.Module, first: int | None = None):
        super().__init__()
        self.model, self.first = model, first

    def forward(
        self, sound: Tensor, decoder_input_ids: Tensor, index: Tensor, targets: Tensor
    ) -> Tensor:
        """(batch, mels, frames) or (batch, positions, d_model), (batch, t), (n,), (n,) -> scalar.

        The scalar is float32.
        """
        whisper = whisper_of(self.model)
        encoder = whisper.model.encoder
        if self.first is None:
            heard = encode(encoder, sound.to(encoder.conv1.weight.dtype))
        else:
            heard = encode_from(encoder, sound, self.first)
        hidden = decode(whisper.model.decoder, decoder_input_ids, heard)
        return summed_cross_entropy(hidden.flatten(0, 1)[index], whisper.proj_out.weight, targets)
