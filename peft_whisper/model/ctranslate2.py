"""A CTranslate2 Whisper file -> the weights as transformers names them.

Layout of the file (CTranslate2's model_spec.py, binary version 6): u32 version; specification name;
u32 revision; u32 number of variables, each: name, u8 rank, u32 dimensions, u8 dtype, u32 bytes,
data; then aliases. A string is a u16 length with that many bytes, the last one zero.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from peft_whisper.errors import StateError

if TYPE_CHECKING:
    import torch

BINARY_VERSION = 6
DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """Read every variable of the file by its CTranslate2 name, and by its other names.

    Raises StateError where the file is not a whole CTranslate2 Whisper.
    """
    try:
        with path.open("rb") as file:
            version, name, _revision = _number(file, "I"), _string(file), _number(file, "I")
            if version != BINARY_VERSION or name != "WhisperSpec":
                raise StateError(
                    f"{path.name}: expected a CTranslate2 Whisper of binary version "
                    f"{BINARY_VERSION}, found {name!r} of version {version}"
                )
            variables = dict(_variable(file) for _ in range(_number(file, "I")))
            for _ in range(_number(file, "I")):  # tied weights, and tensors that are equal
                alias, name = _string(file), _string(file)
                variables[alias] = variables[name]
            return variables
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise StateError(f"{path.name}: not a whole CTranslate2 file: {error}") from error


def _number(file: BinaryIO, kind: str) -> int:
    size = struct.calcsize("<" + kind)
    return int(struct.unpack("<" + kind, file.read(size))[0])


def _string(file: BinaryIO) -> str:
    data = file.read(_number(file, "H"))
    if data[-1:] != b"\0":
        raise ValueError("a name ends early")
    return data[:-1].decode("utf-8")


def _variable(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _string(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    dtype = np.dtype(DTYPES[_number(file, "B")])
    data = file.read(_number(file, "I"))
    return name, np.frombuffer(data, dtype).reshape(shape)


def state_dict(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Rename and split CTranslate2's variables into a WhisperForConditionalGeneration's, float32.

    Fused projections come apart: linear_0 of self-attention is q, k, v; of cross-attention
    linear_0 is q and linear_1 is k, v. Whisper's k has no bias, so its third must be zero.
    """
    import torch

    named: dict[str, np.ndarray] = {}
    for part in ("encoder", "decoder"):
        position = f"{part}/position_encodings/encodings"
        named[f"{part}.embed_positions.weight"] = variables[position]
        named |= _norm(variables, f"{part}/layer_norm", f"{part}.layer_norm")
        number = 0
        while f"{part}/layer_{number}/ffn/linear_0/weight" in variables:
            named |= _layer(variables, f"{part}/layer_{number}", f"{part}.layers.{number}")
            number += 1
    for conv in ("conv1", "conv2"):
        named |= _linear(variables, f"encoder/{conv}", [f"encoder.{conv}"])
    named["decoder.embed_tokens.weight"] = variables["decoder/embeddings/weight"]
    for name, array in named.items():
        if array.dtype.kind != "f":
            raise StateError(f"{name} is quantised ({array.dtype}); expected float weights")
    return {f"model.{n}": torch.from_numpy(a.astype(np.float32)) for n, a in named.items()}


def _layer(variables: dict[str, np.ndarray], source: str, target: str) -> dict[str, np.ndarray]:
    own, cross, feed = f"{source}/self_attention", f"{source}/attention", f"{source}/ffn"
    named = _linear(variables, f"{own}/linear_0", _heads(f"{target}.self_attn", "qkv"))
    named |= _linear(variables, f"{own}/linear_1", [f"{target}.self_attn.out_proj"])
    named |= _norm(variables, f"{own}/layer_norm", f"{target}.self_attn_layer_norm")
    named |= _linear(variables, f"{feed}/linear_0", [f"{target}.fc1"])
    named |= _linear(variables, f"{feed}/linear_1", [f"{target}.fc2"])
    named |= _norm(variables, f"{feed}/layer_norm", f"{target}.final_layer_norm")
    if f"{cross}/linear_0/weight" in variables:
        named |= _linear(variables, f"{cross}/linear_0", _heads(f"{target}.encoder_attn", "q"))
        named |= _linear(variables, f"{cross}/linear_1", _heads(f"{target}.encoder_attn", "kv"))
        named |= _linear(variables, f"{cross}/linear_2", [f"{target}.encoder_attn.out_proj"])
        named |= _norm(variables, f"{cross}/layer_norm", f"{target}.encoder_attn_layer_norm")
    return named


def _heads(target: str, kinds: str) -> list[str]:
    return [f"{target}.{kind}_proj" for kind in kinds]


def _linear(
    variables: dict[str, np.ndarray], source: str, targets: list[str]
) -> dict[str, np.ndarray]:
    """Weight and bias, split into as many equal parts as there are targets."""
    named: dict[str, np.ndarray] = {}
    for kind in ("weight", "bias"):
        parts = np.split(variables[f"{source}/{kind}"], len(targets))
        named |= {f"{target}.{kind}": part for target, part in zip(targets, parts, strict=True)}
    for name in [name for name in named if name.endswith(".k_proj.bias")]:
        if named.pop(name).any():
            raise StateError(f"{source}: the key projection has a bias, which Whisper's has not")
    return named


def _norm(variables: dict[str, np.ndarray], source: str, target: str) -> dict[str, np.ndarray]:
    return {
        f"{target}.weight": variables[f"{source}/gamma"],
        f"{target}.bias": variables[f"{source}/beta"],
    }
