"""The file that whisper.cpp reads, its older `ggml` layout (whisper.cpp, whisper_model_load).

u32 magic; eleven i32 of sizes, the last one the type; the mel filters (i32 bands, i32 bins, f32
each); the vocabulary (i32 number, then u32 length and bytes each); then the tensors until the end:
i32 number of dimensions, length of the name, type; i32 sizes, the fastest first; name; data.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from peft_whisper.exporting.blocks import q5_0, q8_0
from peft_whisper.exporting.names import dimensions, tensors

if TYPE_CHECKING:
    import torch

    from peft_whisper.model.base import Base

FILE = "ggml-model.bin"
MAGIC = 0x67676D6C  # "ggml"
QUANTIZATION_VERSION = 2_000  # 1,000 x GGML_QNT_VERSION, added to the type of a quantised file
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 2_007, "q5_0": 2_008}  # of ggml.h, enum ggml_ftype
TENSOR_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "q5_0": 6}  # of ggml.h, enum ggml_type
ORDER = (  # of the sizes in the header
    "n_vocab",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
    "n_mels",
)


def write_ggml(model: Base, folder: Path, kind: str) -> None:
    """Write ggml-model.bin into `folder`; matrices as `kind`: f32, f16, q8_0 or q5_0."""
    sizes = dimensions(model)
    with (folder / FILE).open("wb") as file:
        file.write(struct.pack("<I", MAGIC))
        file.write(struct.pack("<11i", *(sizes[name] for name in ORDER), FILE_TYPES[kind]))
        _write_filters(file, sizes["n_mels"])
        _write_vocabulary(file, model)
        for name, tensor in tensors(model):
            _write_tensor(file, name, tensor, kind)


def _write_filters(file: BinaryIO, n_mels: int) -> None:
    from peft_whisper.data.mel import filters

    bank = filters(n_mels).numpy().astype("<f4")  # (bands, bins)
    file.write(struct.pack("<2i", *bank.shape))
    file.write(bank.tobytes())


def _write_vocabulary(file: BinaryIO, model: Base) -> None:
    """The text tokens as bytes, by id; whisper.cpp names the special ones itself."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from peft_whisper.data.labels import Labels

    tokenizer = model.tokenizer()
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    end = Labels(tokenizer, model.config().vocab_size).end
    spelt = tokenizer.convert_ids_to_tokens(list(range(end)))
    file.write(struct.pack("<i", len(spelt)))
    for token in spelt:
        data = bytes(byte_of[letter] for letter in token)
        file.write(struct.pack("<I", len(data)) + data)


def _write_tensor(file: BinaryIO, name: str, tensor: torch.Tensor, kind: str) -> None:
    array = tensor.float().numpy()
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        array = array[:, None]  # added to (channels, frames)
    chosen = _type_of(name, array, kind)
    spelt = name.encode()
    file.write(struct.pack("<3i", array.ndim, len(spelt), TENSOR_TYPES[chosen]))
    file.write(struct.pack(f"<{array.ndim}i", *reversed(array.shape)))
    file.write(spelt)
    file.write(_data(array, chosen))


def _type_of(name: str, array: np.ndarray, kind: str) -> str:
    """What whisper.cpp expects of a tensor: only matrices are quantised, sums stay f32."""
    if array.ndim == 1 or name.endswith((".positional_embedding", "conv1.bias", "conv2.bias")):
        return "f32"
    return "f16" if array.ndim == 3 and kind != "f32" else kind


def _data(array: np.ndarray, kind: str) -> bytes:
    if kind in ("f32", "f16"):
        return array.astype("<f4" if kind == "f32" else "<f2").tobytes()
    return {"q8_0": q8_0, "q5_0": q5_0}[kind](array)
