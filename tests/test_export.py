"""Exports: the right layout, proven by the programs that read it, and refusals."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whispers

from peft_whisper import export
from peft_whisper.errors import DataError, RecipeError, StateError
from peft_whisper.exporting import blocks, ggml
from peft_whisper.exporting.ctranslate2 import write_ctranslate2
from peft_whisper.exporting.hearing import hear
from peft_whisper.exporting.openai import FILE, write_openai
from peft_whisper.exporting.runtimes import RUNTIMES
from peft_whisper.model import ctranslate2 as reader
from peft_whisper.model.find import find_base

FEED = 64  # four times the width: OpenAI's program and whisper.cpp know no other
KINDS = [(".en", 80), ("multilingual", 80), ("large-v3", 128)]


@pytest.fixture(params=KINDS, ids=[kind for kind, _ in KINDS])
def model(request, tmp_path):
    kind, mels = request.param
    return find_base(str(whispers.save_base(tmp_path / "model", kind, mels, feed=FEED)))


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "export").mkdir()
    return tmp_path / "export"


def test_openais_own_program_loads_its_file_and_gives_the_same_logits(model, place) -> None:
    import whisper

    write_openai(model, place, "float32")
    loaded = whisper.load_model(str(place / FILE), device="cpu")
    ours = model.load("float32")
    mel = torch.randn(1, model.config().num_mel_bins, 3000)
    tokens = torch.randint(1000, (1, 6))
    with torch.inference_mode():
        theirs = loaded(mel, tokens)
        difference = (ours(input_features=mel, decoder_input_ids=tokens).logits - theirs).abs()
    assert float(difference.max()) < 1e-4
    assert float(theirs.abs().max()) > 1
    bands = model.config().num_mel_bins
    assert loaded.num_languages == (100 if bands == 128 else 99)
    assert loaded.is_multilingual == (model.config().vocab_size > whispers.VOCABULARIES[".en"])


def test_ctranslate2_holds_the_same_weights_and_what_faster_whisper_reads(model, place) -> None:
    write_ctranslate2(model, place, "float32")
    found = reader.state_dict(reader.read_variables(place / "model.bin"))
    ours = model.load("float32").state_dict()
    assert len(found) > 30
    assert all(torch.equal(tensor, ours[name]) for name, tensor in found.items())
    settings = json.loads((place / "preprocessor_config.json").read_text())
    assert settings["feature_size"] == model.config().num_mel_bins
    assert (place / "tokenizer.json").read_bytes() == (model.folder / "tokenizer.json").read_bytes()
    told = json.loads((place / "config.json").read_text())
    size = model.config().vocab_size
    assert len(told["lang_ids"]) == {51_864: 0, 51_865: 99, 51_866: 100}[size]
    assert told["suppress_ids"] == [1, 2, 7]


def test_faster_whisper_loads_a_model_of_128_bands(tmp_path, place) -> None:
    model = find_base(str(whispers.save_base(tmp_path / "model", "large-v3", 128)))
    write_ctranslate2(model, place, "float32")
    (text,) = hear("ctranslate2", place, [np.zeros(16_000, np.float32)], ["de"], "transcribe")
    assert isinstance(text, str)


def test_ggml_spells_every_token_and_holds_every_tensor(model, place) -> None:
    ggml.write_ggml(model, place, "f16")
    header, filters, tokens, tensors = parsed(place / ggml.FILE)
    sizes = model.config()
    assert header[:2] == (sizes.vocab_size, 1500)
    assert header[-2:] == (sizes.num_mel_bins, 1)
    assert filters.shape == (sizes.num_mel_bins, 201)
    assert len(tokens) == (50_256 if sizes.vocab_size == 51_864 else 50_257)
    tokenizer = model.tokenizer()
    for text in (" hello", "é", " 您"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert b"".join(tokens[i] for i in ids).decode() == text
    ours = model.load("float32")
    names = {"decoder.token_embedding.weight": ours.model.decoder.embed_tokens.weight}
    names["encoder.blocks.1.attn.key.weight"] = ours.model.encoder.layers[1].self_attn.k_proj.weight
    names["encoder.conv1.bias"] = ours.model.encoder.conv1.bias[:, None]
    for name, weight in names.items():
        assert np.allclose(tensors[name], weight.numpy(), atol=0.02)
    assert len(tensors) == len(ours.state_dict()) - 1  # proj_out is the token embedding again


def parsed(path: Path):
    """Sizes, mel filters, tokens and tensors of a file in 16 bits."""
    data, at = path.read_bytes(), 0

    def take(layout: str) -> tuple:
        nonlocal at
        found = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return found

    def block(size: int) -> bytes:
        nonlocal at
        at += size
        return data[at - size : at]

    assert take("I") == (0x67676D6C,)
    header = take("11i")
    bands, bins = take("2i")
    filters = np.frombuffer(block(4 * bands * bins), "<f4").reshape(bands, bins)
    tokens = [block(*take("I")) for _ in range(*take("i"))]
    tensors = {}
    while at < len(data):
        rank, length, kind = take("3i")
        shape = take(f"{rank}i")[::-1]
        name = block(length).decode()
        dtype = np.dtype({0: "<f4", 1: "<f2"}[kind])
        tensors[name] = np.frombuffer(block(dtype.itemsize * int(np.prod(shape))), dtype)
        tensors[name] = tensors[name].reshape(shape)
    return header, filters, tokens, tensors


def test_blocks_are_read_back_within_half_a_step() -> None:
    values = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    values[0, :32] = 0  # a block without a scale
    rows = np.frombuffer(blocks.q8_0(values), [("scale", "<f2"), ("steps", "i1", 32)])
    again = rows["scale"].astype(np.float32)[:, None] * rows["steps"]
    step = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) / 127
    assert (np.abs(again - values.reshape(-1, 32)) <= 0.6 * step).all()

    layout = [("scale", "<f2"), ("high", "<u4"), ("low", "u1", 16)]
    rows = np.frombuffer(blocks.q5_0(values), layout)
    low = np.concatenate([rows["low"] & 15, rows["low"] >> 4], axis=1).astype(np.int32)
    high = (rows["high"][:, None] >> np.arange(32)) & 1
    again = rows["scale"].astype(np.float32)[:, None] * (low + 16 * high.astype(np.int32) - 16)
    step = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) / 16
    assert (np.abs(again - values.reshape(-1, 32)) <= 1.02 * step).all()
    assert (np.abs(again - values.reshape(-1, 32)) <= 0.52 * step).mean() > 0.95  # 16 is cut to 15


def test_a_vocabulary_of_its_own_goes_to_ctranslate2_only(tmp_path, place) -> None:
    folder = whispers.save_base(tmp_path / "model", "multilingual", 80)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 51_900}))
    for write, kind in ((write_openai, "float16"), (ggml.write_ggml, "f16")):
        with pytest.raises(StateError, match=r"51900 tokens.*Export to ctranslate2"):
            write(find_base(str(folder)), place, kind)
        assert not list(place.iterdir())


def test_a_feed_forward_of_another_width_goes_to_ctranslate2_only(tmp_path, place) -> None:
    model = find_base(str(whispers.save_base(tmp_path / "model", ".en", 80)))
    with pytest.raises(StateError, match=r"32 wide.*Export to ctranslate2"):
        write_openai(model, place, "float16")
    write_ctranslate2(model, place, "float16")


def test_a_program_that_ends_itself_is_told(place) -> None:
    (place / ggml.FILE).write_bytes(b"no model at all")
    with pytest.raises(StateError, match=r"whisper\.cpp could not decode"):
        hear("whispercpp", place, [np.zeros(16_000, np.float32)], ["en"], "transcribe")


@pytest.fixture
def spoken(tmp_path) -> Path:
    """A manifest with one clip."""
    noise = np.random.default_rng(1).normal(0, 0.1, 16_000)
    soundfile.write(tmp_path / "a.wav", noise, 16_000)
    (tmp_path / "clips.jsonl").write_text('{"audio": "a.wav", "text": "hello"}\n')
    return tmp_path / "clips.jsonl"


def refused(tmp_path: Path, kind: type, match: str, *words: str) -> None:
    """Export stops with one sentence and leaves nothing."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        export.main([*words, "--into", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_can_not_be_exported_is_told_and_leaves_nothing(tmp_path, spoken) -> None:
    base = str(whispers.save_base(tmp_path / "base", ".en", 80, feed=FEED))
    to = ("--to", "openai", "--clips", str(spoken))
    asked = ("--quantize", "int3")
    refused(tmp_path, RecipeError, "openai knows no int3; it knows float16", base, *to, *asked)
    refused(tmp_path, RecipeError, "--count: 0", base, *to, "--count", "0")
    refused(tmp_path, RecipeError, "give some with --clips", base, "--to", "openai")
    nowhere = ("--to", "openai", "--clips", str(tmp_path / "nowhere.jsonl"))
    refused(tmp_path, DataError, "nowhere", base, *nowhere)
    (tmp_path / "empty").mkdir()
    refused(tmp_path, RecipeError, r"has no config\.json", str(tmp_path / "empty"), *to)
    weights = tmp_path / "base" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    refused(tmp_path, RecipeError, r"model\.safetensors is damaged", base, *to)
    weights.write_bytes(whole)
    (tmp_path / "base" / "tokenizer.json").unlink()
    refused(tmp_path, RecipeError, r"has no tokenizer\.json", base, *to)


def test_another_models_words_are_not_kept(tmp_path, spoken, monkeypatch) -> None:
    base = str(whispers.save_base(tmp_path / "base", ".en", 80, feed=FEED))
    other = find_base(str(whispers.save_base(tmp_path / "other", ".en", 80, 3, FEED)))
    real = RUNTIMES["openai"]

    def confused(_model, folder, kind) -> None:  # what a wrong layout amounts to
        real.write(other, folder, kind)

    monkeypatch.setitem(RUNTIMES, "openai", replace(real, write=confused))
    words = (base, "--to", "openai", "--clips", str(spoken))
    refused(tmp_path, StateError, "hears other words", *words)


def test_several_types_go_into_a_folder_each_with_all_figures(tmp_path, spoken, capsys) -> None:
    base = str(whispers.save_base(tmp_path / "base", ".en", 80, feed=FEED))
    words = [base, "--to", "openai", "--clips", str(spoken), "--quantize", "float32", "float16"]
    assert export.main([*words, "--into", str(tmp_path / "out")]) == 0
    assert "unlike the merged model's" in capsys.readouterr().out
    names = {"model.pt", "README.md", "peft_whisper_export.json"}
    for kind in ("float32", "float16"):
        held = {path.name for path in (tmp_path / "out" / kind).iterdir()}
        assert held == names
        page = (tmp_path / "out" / kind / "README.md").read_text()
        assert f"| openai-whisper, {kind} (this one) |" in page
        assert "weights_only=True" in page
        assert str(tmp_path) not in page
