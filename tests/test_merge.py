"""Merging: the same logits, the right base, nothing half-written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
import whispers
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from peft_whisper import merge
from peft_whisper.errors import RecipeError, StateError
from peft_whisper.files import seal
from peft_whisper.model.adapters import Adapter, attach, trainable
from peft_whisper.model.find import find_base
from peft_whisper.model.trained import load_tuned, read_facts
from peft_whisper.training import checkpoint
from peft_whisper.training.optim import Masters


@pytest.fixture
def trained(tmp_path):
    """A base on disk and an adapter trained on it, with weights that matter."""
    return tmp_path, publish(tmp_path, LORA)


LORA = Adapter(4, 8, 0.0, range(2), range(2), ("q", "k", "v", "fc2"))


def publish(folder, adapter):
    """A base and an adapter on it in `folder`, as a run leaves them; returns the tuned model."""
    whispers.save_base(folder / "base", "multilingual", 80)
    base = find_base(str(folder / "base"))
    torch.manual_seed(1)
    model = attach(base.load("float32"), adapter)
    for name, parameter in trainable(model).items():
        if "lora_A" not in name:
            parameter.data += torch.randn_like(parameter) * 0.3
    masters = Masters(trainable(model), torch.float32)
    weights = checkpoint.folder_of(folder / "checkpoints", 3)
    checkpoint.save_weights(weights, model, masters)
    seal(weights, {})
    facts = {"method": adapter.method, "update": 3}
    checkpoint.publish(folder / "checkpoints", 3, folder / "adapter", base, facts)
    return model


@pytest.mark.parametrize("method", ["lora", "dora", "layernorm"])
def test_what_each_method_trained_is_loaded_and_merged(tmp_path, method) -> None:
    trained = publish(tmp_path, replace(LORA, method=method))
    base = find_base(str(tmp_path / "base"))
    read = load_tuned(base.load("float32"), base.fingerprint, tmp_path / "adapter")
    assert merge.main([str(tmp_path / "adapter"), "--into", str(tmp_path / "merged")]) == 0
    merged = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged")
    mel, fed = torch.randn(1, 80, 3000), torch.randint(1000, (1, 6))
    with torch.inference_mode():
        ours, again, whole, base = (
            one.eval()(input_features=mel, decoder_input_ids=fed).logits
            for one in (trained, read, merged, base.load("float32"))
        )
    assert torch.allclose(ours, again, atol=1e-4)
    assert torch.allclose(ours, whole, atol=1e-3)
    assert float((base - ours).abs().max()) > 0.1


@pytest.mark.parametrize(("method", "other"), [("lora", "LN_TUNING"), ("layernorm", "LORA")])
def test_an_adapter_of_another_kind_than_its_method_is_refused(tmp_path, method, other) -> None:
    publish(tmp_path, replace(LORA, method=method))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": other}))
    with pytest.raises(StateError, match=r"adapter_config\.json is not a plain"):
        merge.main([str(tmp_path / "adapter"), "--into", str(tmp_path / "merged")])


def test_merged_model_loads_plainly_and_gives_the_adapters_logits(trained, capsys) -> None:
    folder, model = trained
    into = folder / "merged"
    assert merge.main([str(folder / "adapter"), "--into", str(into)]) == 0
    printed = capsys.readouterr().out
    assert "logits differ from the adapter's by at most" in printed
    plain = WhisperForConditionalGeneration.from_pretrained(into)
    assert plain.dtype == torch.float32
    processor = WhisperProcessor.from_pretrained(into)
    assert processor.feature_extractor.feature_size == 80
    mel, fed = torch.randn(1, 80, 3000), torch.randint(1000, (1, 6))
    with torch.inference_mode():
        ours = plain(input_features=mel, decoder_input_ids=fed).logits
        theirs = model(input_features=mel, decoder_input_ids=fed).logits
        base = whispers.model(plain.config)(input_features=mel, decoder_input_ids=fed).logits
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert float((base - theirs).abs().max()) > 0.1
    assert plain.generation_config.suppress_tokens == [1, 2, 7]


def test_another_base_of_the_same_shape_is_refused(trained) -> None:
    folder, _ = trained
    whispers.save_base(folder / "other", "multilingual", 80, seed=2)
    command = [str(folder / "adapter"), "--into", str(folder / "m"), "--base", f"{folder}/other"]
    with pytest.raises(StateError, match="Equal shapes do not make it fit"):
        merge.main(command)
    assert not (folder / "m").exists()


def test_a_moved_base_with_the_same_weights_is_taken(trained) -> None:
    folder, _ = trained
    (folder / "base").rename(folder / "moved")
    command = [str(folder / "adapter"), "--into", str(folder / "m"), "--base", f"{folder}/moved"]
    assert merge.main(command) == 0


def test_a_poisoned_adapter_leaves_nothing(trained) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = trained
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(StateError, match="not finite"):
        merge.main([str(folder / "adapter"), "--into", str(folder / "m")])
    assert not (folder / "m").exists()


def test_clumsy_arguments_get_a_sentence(trained, tmp_path) -> None:
    folder, _ = trained
    with pytest.raises(StateError, match=r"peft_whisper\.json"):
        merge.main([str(folder / "base"), "--into", str(folder / "m")])
    full = folder / "full"
    full.mkdir()
    facts = {"method": "none", "base": {"model": "x", "revision": None, "fingerprint": "y"}}
    (full / "peft_whisper.json").write_text(json.dumps(facts))
    with pytest.raises(StateError, match="no adapter to merge"):
        merge.main([str(full), "--into", str(folder / "m")])
    with pytest.raises(StateError, match="already exists"):
        merge.main([str(folder / "adapter"), "--into", str(folder / "base")])


def test_an_adapter_folder_holds_what_other_tools_need(trained) -> None:
    folder, _ = trained
    files = {path.name for path in (folder / "adapter").iterdir()}
    assert files >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "peft_whisper.json",
    }
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["task_type"] is None


def refused(folder, kind, match, *more: str) -> None:
    """Merging stops with one sentence and leaves nothing."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        merge.main([str(folder / "adapter"), "--into", str(folder / "m"), *more])
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


FACTS = '{"method": "lora", "base": {"model": "x", "revision": null}}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("peft_whisper.json", "{"),
        ("peft_whisper.json", "{}"),
        ("peft_whisper.json", "[]"),
        ("peft_whisper.json", FACTS),
        ("adapter_config.json", None),
        ("adapter_config.json", "{"),
        ("adapter_config.json", "{}"),
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", ""),
        ("adapter_model.safetensors", 1000),
    ],
)
def test_a_damaged_adapter_is_told_and_leaves_nothing(trained, name, content) -> None:
    folder, _ = trained
    path = folder / "adapter" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:content] if content == 1000 else content.encode())
    refused(folder, StateError, "adapter")
    base = find_base(str(folder / "base"))
    with pytest.raises(StateError):
        load_tuned(base.load("float32"), base.fingerprint, folder / "adapter")
    if name == "peft_whisper.json":
        with pytest.raises(StateError, match=r"peft_whisper\.json"):
            read_facts(folder / "adapter")


def test_merging_again_is_told(trained) -> None:
    folder, _ = trained
    merge.main([str(folder / "adapter"), "--into", str(folder / "merged")])
    with pytest.raises(StateError, match="is already merged"):
        merge.main([str(folder / "merged"), "--into", str(folder / "m")])
    base = find_base(str(folder / "base"))
    load_tuned(base.load("float32"), base.fingerprint, folder / "merged")


def test_a_base_that_is_gone_or_damaged_says_what_to_do(trained) -> None:
    folder, _ = trained
    (folder / "base").rename(folder / "moved")
    wanted = rf"trained on {folder}/base; if it has moved, give --base"
    refused(folder, RecipeError, wanted)
    refused(folder, RecipeError, "^--base: .*nowhere", "--base", str(folder / "nowhere"))
    (folder / "moved" / "config.json").unlink()
    refused(folder, RecipeError, r"^--base: .*config\.json", "--base", str(folder / "moved"))


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    trained, monkeypatch, tmp_path
) -> None:
    folder, _ = trained
    shutil.rmtree(folder / "base")  # so that the work could not even begin
    (folder / "file").write_text("mine")
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    before = sorted(folder.rglob("*"))
    for into in (folder / "file" / "m", folder / "file" / "a" / "m", "/proc/m", ".", "x" * 300):
        with pytest.raises(RecipeError, match=r"^--into: "):
            merge.main([str(folder / "adapter"), "--into", str(into)])
    assert sorted(folder.rglob("*")) == before
