"""A CTranslate2 Whisper file is read whole and rightly, or refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import whispers

from peft_whisper.errors import StateError
from peft_whisper.model.ctranslate2 import read_variables, state_dict

TYPES = [np.float32, np.int8, np.int16, np.int32, np.float16]  # by CTranslate2's number


def string(text: str) -> bytes:
    return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"


def variable(name: str, array: np.ndarray) -> bytes:
    kind = TYPES.index(array.dtype.type)
    shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    data = array.tobytes()
    return string(name) + shape + struct.pack("<BI", kind, len(data)) + data


def ct2_file(
    variables: dict[str, np.ndarray],
    aliases: tuple[tuple[str, str], ...] = (),
    version: int = 6,
    name: str = "WhisperSpec",
) -> bytes:
    content = struct.pack("<I", version) + string(name) + struct.pack("<II", 3, len(variables))
    content += b"".join(variable(key, array) for key, array in variables.items())
    names = [string(part) for pair in aliases for part in pair]
    return content + struct.pack("<I", len(aliases)) + b"".join(names)


VARIABLES = {
    "a/weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "b/weight": np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 2),
    "c": np.array([1, -2], dtype=np.int16),
    "d": np.array([[2**31 - 1]], dtype=np.int32),
    "e/ünï": np.array([0.5, -65504.0], dtype=np.float16),
    "scalar": np.array(7, dtype=np.int32),
    "none": np.zeros((0, 3), dtype=np.float32),
}
ALIASES = (("tied/weight", "a/weight"), ("other/bias", "c"))


def read(folder: Path, content: bytes) -> dict[str, np.ndarray]:
    (folder / "model.bin").write_bytes(content)
    return read_variables(folder / "model.bin")


def test_every_type_shape_and_name_is_read_back(tmp_path):
    found = read(tmp_path, ct2_file(VARIABLES, ALIASES))
    expected = VARIABLES | {alias: VARIABLES[name] for alias, name in ALIASES}
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    content = ct2_file(VARIABLES, ALIASES)
    for length in range(len(content)):
        with pytest.raises(StateError, match=r"model\.bin: "):
            read(tmp_path, content[:length])
    print(f"{len(content)}/{len(content)} cut files refused")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 5}, "binary version 6, found 'WhisperSpec' of version 5"),
        ({"name": "TransformerSpec"}, "expected a CTranslate2 Whisper .*found 'TransformerSpec'"),
    ],
)
def test_another_version_or_model_is_refused(tmp_path, changes, said):
    with pytest.raises(StateError, match=said):
        read(tmp_path, ct2_file(VARIABLES, **changes))


@pytest.mark.parametrize("content", [b"PK\x03\x04" * 50, b"\0" * 200, b"\xff" * 200])
def test_another_file_is_refused(tmp_path, content):
    with pytest.raises(StateError):
        read(tmp_path, content)


def test_a_type_that_is_unknown_is_refused(tmp_path):
    content = ct2_file({"x": np.ones(2, np.float32)})
    at = content.index(b"x\0") + 2 + 1 + 4
    with pytest.raises(StateError, match="not a whole CTranslate2 file"):
        read(tmp_path, content[:at] + b"\x09" + content[at + 1 :])


# As CTranslate2 converts transformers' Whisper: projections of one input are fused.


def fused(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The variables that a converter would make of transformers' names."""
    w = {name.removeprefix("model."): tensor.numpy() for name, tensor in weights.items()}
    out = {"decoder/embeddings/weight": w["decoder.embed_tokens.weight"]}

    def linear(target: str, *sources: str) -> None:
        out[f"{target}/weight"] = np.concatenate([w[f"{one}.weight"] for one in sources])
        width = w[f"{sources[0]}.weight"].shape[0]
        biases = [w.get(f"{one}.bias", np.zeros(width, np.float32)) for one in sources]
        out[f"{target}/bias"] = np.concatenate(biases)

    def norm(target: str, source: str) -> None:
        out[f"{target}/gamma"], out[f"{target}/beta"] = w[f"{source}.weight"], w[f"{source}.bias"]

    for part in ("encoder", "decoder"):
        positions = w[f"{part}.embed_positions.weight"]
        out[f"{part}/position_encodings/encodings"] = positions
        norm(f"{part}/layer_norm", f"{part}.layer_norm")
        for number in range(2):
            to, of = f"{part}/layer_{number}", f"{part}.layers.{number}"
            own, cross = f"{of}.self_attn", f"{of}.encoder_attn"
            q_k_v = [f"{own}.{kind}_proj" for kind in "qkv"]
            linear(f"{to}/self_attention/linear_0", *q_k_v)
            linear(f"{to}/self_attention/linear_1", f"{own}.out_proj")
            norm(f"{to}/self_attention/layer_norm", f"{of}.self_attn_layer_norm")
            linear(f"{to}/ffn/linear_0", f"{of}.fc1")
            linear(f"{to}/ffn/linear_1", f"{of}.fc2")
            norm(f"{to}/ffn/layer_norm", f"{of}.final_layer_norm")
            if part == "decoder":
                linear(f"{to}/attention/linear_0", f"{cross}.q_proj")
                linear(f"{to}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                linear(f"{to}/attention/linear_2", f"{cross}.out_proj")
                norm(f"{to}/attention/layer_norm", f"{of}.encoder_attn_layer_norm")
    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    return out


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Weights of a tiny Whisper, every bias and norm random too."""
    torch.manual_seed(3)
    state = whispers.model(whispers.config()).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def test_a_whisper_comes_through_weight_by_weight(tmp_path, weights):
    found = state_dict(read(tmp_path, ct2_file(fused(weights))))
    expected = {name: tensor for name, tensor in weights.items() if name != "proj_out.weight"}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    print(f"{len(found)}/{len(expected)} weights of a Whisper are read back bit by bit")


def test_half_precision_weights_become_float32(tmp_path, weights):
    halves = {name: array.astype(np.float16) for name, array in fused(weights).items()}
    found = state_dict(read(tmp_path, ct2_file(halves)))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    torch.testing.assert_close(
        found["model.encoder.conv1.weight"],
        weights["model.encoder.conv1.weight"].half().float(),
        rtol=0,
        atol=0,
    )


def test_a_key_with_a_bias_is_no_whisper(weights):
    variables = fused(weights)
    variables["decoder/layer_1/attention/linear_1/bias"] = np.ones(32, np.float32)
    with pytest.raises(StateError, match="decoder/layer_1/attention/linear_1: the key projection"):
        state_dict(variables)


def test_quantised_weights_are_refused_not_misread(weights):
    variables = fused(weights)
    name = "encoder/layer_0/ffn/linear_0/weight"
    variables[name] = variables[name].astype(np.int8)
    with pytest.raises(StateError, match=r"encoder\.layers\.0\.fc1\.weight is quantised \(int8\)"):
        state_dict(variables)
