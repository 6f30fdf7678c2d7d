"""A base's files: which are its weights, and that what is damaged is said in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import whispers
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from peft_whisper.errors import RecipeError
from peft_whisper.model.find import find_base
from peft_whisper.training.checkpoint import copy_processor


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return whispers.save_base(tmp_path_factory.mktemp("whole") / "base", "multilingual", 80)


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "base"))


def sha256(*paths: Path) -> str:
    return "sha256:" + hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_the_fingerprint_is_of_the_file_that_is_loaded(base: Path) -> None:
    plain = find_base(str(base)).fingerprint
    assert plain == sha256(base / "model.safetensors")
    (base / "model.fp32-00001-of-00002.safetensors").write_bytes(b"another precision")
    beside = find_base(str(base))
    assert beside.fingerprint == plain
    assert [path.name for path in beside.weights()] == ["model.safetensors"]


def test_shards_are_those_of_the_index_in_order(base: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="1MB")
    shards = sorted(base.glob("model-0*.safetensors"))
    assert len(shards) > 1
    (base / "model-00009-of-00009.safetensors").write_bytes(b"left over")
    found = find_base(str(base))
    assert found.weights() == shards
    assert found.fingerprint == sha256(*shards)
    found.load("float32")
    shards[-1].unlink()
    with pytest.raises(RecipeError, match=rf"base\.model: .*names {shards[-1].name}"):
        find_base(str(base))
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(RecipeError, match="no weight_map"):
        find_base(str(base))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\xff"])
def test_a_broken_small_file_is_named(base: Path, name: str, content: str) -> None:
    (base / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"^base\.model: ") as caught:
        find_base(str(base), weights=False)
    assert str(base) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "tokenizer" in str(caught.value) or name in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_missing_small_file_is_named(base: Path, name: str) -> None:
    (base / name).unlink()
    with pytest.raises(RecipeError, match=rf"^base\.model: .*has no {name}"):
        find_base(str(base), weights=False)


def test_another_kind_of_model_is_no_whisper(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(RecipeError, match="is a bert, not a Whisper"):
        find_base(str(base))
    (base / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="not a Whisper"):
        find_base(str(base))
    (base / "config.json").write_text(json.dumps(config | {"num_mel_bins": "many"}))
    with pytest.raises(RecipeError, match=r"config\.json can't be used"):
        find_base(str(base))


def test_another_models_tokenizer_is_refused(base: Path) -> None:
    text = (base / "tokenizer.json").read_text().replace("<|startoftranscript|>", "<|other|>")
    (base / "tokenizer.json").write_text(text)
    config = (base / "tokenizer_config.json").read_text()
    (base / "tokenizer_config.json").write_text(config.replace("startoftranscript", "other"))
    with pytest.raises(RecipeError, match=r"no token <\|startoftranscript\|>"):
        find_base(str(base), weights=False)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_cut_weights_are_told_before_anything_is_loaded(base: Path, keep: float) -> None:
    path = base / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(RecipeError, match=r"^base\.model: .*model\.safetensors is damaged"):
        find_base(str(base))
    find_base(str(base), weights=False)


def test_weights_of_another_model_are_refused(base: Path) -> None:
    path = base / "model.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if "conv1" not in name}, path)
    with pytest.raises(RecipeError, match="of two different models"):
        find_base(str(base))
    path.unlink()
    with pytest.raises(RecipeError, match=r"holds no model\.safetensors"):
        find_base(str(base))


@pytest.mark.parametrize("n_mels", [80, 128])
def test_a_base_without_feature_extractor_gives_a_whole_processor(tmp_path, n_mels) -> None:
    kind = "multilingual" if n_mels == 80 else "large-v3"
    folder = whispers.save_base(tmp_path / "base", kind, n_mels)
    (folder / "preprocessor_config.json").unlink()
    target = tmp_path / "adapter"
    target.mkdir()
    copy_processor(find_base(str(folder)), target)
    assert (target / "preprocessor_config.json").is_file()
    processor = WhisperProcessor.from_pretrained(target)
    assert processor.feature_extractor.feature_size == n_mels
