"""The stock Whisper, run on what a clip says and on some of the silence behind it.

Which positions those are, and how many others each stands for, is in positions.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_whisper.model.loss import summed_cross_entropy
from peft_whisper.positions import counts_for, heard_positions, positions_for, silent_positions

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration
    from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder


GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, are spread evenly


def encode(encoder: WhisperEncoder, mel: Tensor) -> Tensor:
    """Run the encoder on clips, and on one in so many positions of the silence up to 30 s.

    The stock forward refuses anything but 3,000 frames. This one gives the same bits for those in
    fp32; for fewer, nearly what it gives for the same clip padded with silence.

    Args:
        mel: (batch, mels, frames); the last five positions (ten frames) of shorter ones are silent.

    Returns:
        (batch, positions, d_model): those of the clip (frames / 2), then those of the silence.
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
    positions = positions_for(frames // 2)
    if heard_positions(positions) * 2 != frames:
        raise ValueError(f"no number of positions hears {frames} frames; two more or less can be")
    hidden = F.gelu(encoder.conv1(mel))
    hidden = F.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = _placed(hidden, positions, encoder.embed_positions.weight)
    weights = key_weights(hidden)
    for layer in encoder.layers[:first]:
        hidden = layer(hidden, weights)
    return hidden


def _placed(hidden: Tensor, positions: int, table: Tensor) -> Tensor:
    """What hears the clip, and behind it the silence, with the rows of the position table."""
    silent, heard = silent_positions(positions), hidden.shape[1]
    if not silent:
        return hidden + table[:heard]
    # The last one lacks what comes behind it; the one before has heard nothing but silence.
    silence = hidden[:, -2:-1].expand(-1, silent + 1, -1)
    number = torch.arange(silent, dtype=torch.float32, device=hidden.device)
    # One in each stretch, not in its middle: even steps would hit the table's waves in phase.
    within = (number * GOLDEN + GOLDEN).frac()
    places = heard + ((number + within) * counts_for(positions)).long()
    return torch.cat((hidden[:, :-1], silence), 1) + torch.cat((table[:heard], table[places]))


def key_weights(heard: Tensor) -> Tensor | None:
    """What attention adds to the scores of keys (batch, positions, d_model): (1, 1, 1, positions).

    The logarithm of how many positions each stands for; None where all stand for themselves.
    """
    positions = heard.shape[1]
    silent = silent_positions(positions)
    if not silent:
        return None
    weights = heard.new_zeros(1, 1, 1, positions)
    weights[..., -silent:] = math.log(counts_for(positions))
    return weights


def encode_from(encoder: WhisperEncoder, hidden: Tensor, first: int) -> Tensor:
    """The rest of `encode`, from layer `first` on, of what `encode_below` gave."""
    weights = key_weights(hidden)
    for layer in encoder.layers[first:]:
        hidden = layer(hidden, weights)
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
    weights = key_weights(heard)
    for layer in decoder.layers:
        hidden = layer(hidden, None, heard, weights, use_cache=False)
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
