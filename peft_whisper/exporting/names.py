"""A Whisper's tensors under OpenAI's names, which openai-whisper and whisper.cpp read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from peft_whisper.errors import StateError

if TYPE_CHECKING:
    import torch

    from peft_whisper.model.base import Base

# Vocabulary sizes that tell those programs how many languages there are (whisper/model.py).
VOCABULARIES = {51_864: "English-only", 51_865: "multilingual", 51_866: "large-v3"}
PARTS = (  # in this order; what is left unchanged is called alike
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
    (r"\.embed_tokens\.", ".token_embedding."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.self_attn\.", ".attn."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
)
TIED = "proj_out.weight"  # the token embedding again


def openai_name(name: str) -> str:
    """OpenAI's name (whisper/model.py) of one of transformers' tensors."""
    for pattern, replacement in PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def tensors(model: Base) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor once, by OpenAI's name, read one by one from the model's safetensors."""
    from safetensors import safe_open

    for path in model.weights():
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name != TIED:
                    yield openai_name(name), file.get_tensor(name)


def dimensions(model: Base) -> dict[str, int]:
    """The sizes that OpenAI's ModelDimensions holds, in its order.

    Raises StateError where the vocabulary is not one of OpenAI's, from whose size those programs
    derive their special tokens, or where the feed-forward layers are not four times as wide.
    """
    sizes = model.config()
    if sizes.vocab_size not in VOCABULARIES:
        known = ", ".join(f"{size} ({kind})" for size, kind in VOCABULARIES.items())
        raise StateError(
            f"{model.public_name} has {sizes.vocab_size} tokens, and this program knows OpenAI's "
            f"vocabularies only: {known}. Export to ctranslate2, which takes any."
        )
    if {sizes.encoder_ffn_dim, sizes.decoder_ffn_dim} != {4 * sizes.d_model}:
        raise StateError(
            f"{model.public_name} has feed-forward layers {sizes.encoder_ffn_dim} wide, and this "
            f"program expects 4 x {sizes.d_model}. Export to ctranslate2, which takes any."
        )
    return {
        "n_mels": sizes.num_mel_bins,
        "n_vocab": sizes.vocab_size,
        "n_audio_ctx": sizes.max_source_positions,
        "n_audio_state": sizes.d_model,
        "n_audio_head": sizes.encoder_attention_heads,
        "n_audio_layer": sizes.encoder_layers,
        "n_text_ctx": sizes.max_target_positions,
        "n_text_state": sizes.d_model,
        "n_text_head": sizes.decoder_attention_heads,
        "n_text_layer": sizes.decoder_layers,
    }
