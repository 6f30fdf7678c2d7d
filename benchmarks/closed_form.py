"""The FLOPs that one clip's training needs, by arithmetic: what a counted step is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft_whisper.positions import heard_positions

if TYPE_CHECKING:
    from transformers import WhisperConfig

    from peft_whisper.model.adapters import Adapter

Product = tuple[int, int, int]  # rows, inputs, outputs of a linear layer


def flops_per_clip(
    sizes: WhisperConfig, positions: int, labels: int, adapter: Adapter | None
) -> int | None:
    """FLOPs of forward and backward for one clip; None where only some layers are adapted.

    With S positions, T labels, width d, 4 d inside the feed-forward, V words and M mel bands; a
    multiplication and its addition are two:

    - a linear layer: 2 x rows x inputs x outputs. Rows are S in the encoder and in the keys and
      values of what is heard, T in the rest of the decoder: 24 S d^2 an encoder layer, and
      28 T d^2 + 4 S d^2 a decoder layer.
    - attention: scores and sums, 4 x queries x keys x d, with T^2 for the decoder's own: what is
      masked is counted, as kernels without a mask compute it.
    - convolutions: 12 H M d (at two frames a position) and 6 H d^2, where H of S hear the clip;
      logits: 2 T d V.
    - backward: as much again for the gradient of a layer's input, and again for that of a trained
      weight; twice for attention. Frozen weights have no gradient, nor have inputs below which
      nothing is trained: those of the first layers' q, k and v, and all of a frozen encoder.
    - LoRA of rank r beside a layer: two products with r outputs or inputs, both trained.

    Scores that flash attention computes a second time, and what recomputation repeats, are not
    needed and not counted. Agrees with FlopCounterMode where attention keeps its scores.
    """
    if adapter is not None and not _everywhere(sizes, adapter):
        return None
    hears = adapter is None or bool(adapter.encoder)  # the encoder is trained
    width, encoder, decoder = sizes.d_model, sizes.encoder_layers, sizes.decoder_layers
    own_heard, own_said = _linears(positions, width), _linears(labels, width)
    cross = {"q": own_said["q"], "k": own_heard["k"], "v": own_heard["v"], "out": own_said["out"]}
    attention = 4 * width * positions**2
    attention_said = 4 * width * labels * (labels + positions)
    logits = 2 * labels * width * sizes.vocab_size
    heard = heard_positions(positions)
    outer = 12 * heard * sizes.num_mel_bins * width + 6 * heard * width**2

    total = outer + encoder * attention * (3 if hears else 1)
    total += 3 * decoder * attention_said + 2 * logits
    for linears, layers, learns in (
        (own_heard, encoder, hears),
        (own_said, decoder, True),
        (cross, decoder, True),
    ):
        for name, product in linears.items():
            of_input = learns and (hears or linears is not cross or name not in "kv")
            total += layers * _linear(product, of_input, adapter, name, learns)
    if adapter is not None:  # of the first layers' q, k and v
        total -= 3 * 2 * width**2 * (labels + (positions if hears else 0))
    if adapter is None:  # the convolutions' weights, the second one's input, the words
        total += outer + 6 * heard * width**2 + logits
    return total


def _everywhere(sizes: WhisperConfig, adapter: Adapter) -> bool:
    heard, said = len(adapter.encoder), len(adapter.decoder)
    return heard in (0, sizes.encoder_layers) and said == sizes.decoder_layers


def _linears(rows: int, width: int) -> dict[str, Product]:
    square = dict.fromkeys(("q", "k", "v", "out"), (rows, width, width))
    return square | {"fc1": (rows, width, 4 * width), "fc2": (rows, 4 * width, width)}


def _linear(
    product: Product, of_input: bool, adapter: Adapter | None, name: str, learns: bool
) -> int:
    """A layer's forward and backward, and its adapter's."""
    rows, inputs, outputs = product
    base = 2 * rows * inputs * outputs
    if adapter is None:
        return 3 * base
    total = base * (1 + of_input)
    if learns and name in adapter.modules:
        down, up = 2 * rows * inputs * adapter.rank, 2 * rows * adapter.rank * outputs
        total += down * (2 + of_input) + 3 * up
    return total
