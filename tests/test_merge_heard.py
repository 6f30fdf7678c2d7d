"""What adapter and merged model hear, compared: on which speech, how far apart, and why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whispers
from safetensors.torch import load_file, save_file

from peft_whisper import merge
from peft_whisper.errors import DataError, RecipeError, StateError
from peft_whisper.files import seal
from peft_whisper.merging import fold, parity
from peft_whisper.model.adapters import Adapter, attach, trainable
from peft_whisper.model.base import Base
from peft_whisper.model.find import find_base
from peft_whisper.training import checkpoint
from peft_whisper.training.optim import Masters

CLIPS = 3
RECIPE = """
name: run
base: {{model: {base}}}
data:
  train: {{manifest: {place}/train.jsonl}}
  validation: {{manifest: {place}/test.jsonl}}
  test: {{manifest: {place}/test.jsonl}}
  language: en
adapter: {{method: lora, rank: 4}}
training: {{learning_rate: 0.001, epochs: 1}}
evaluation: {{every: 1}}
"""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run: its recipe, an adapter with random weights that matter, and its speech."""
    monkeypatch.setattr("peft_whisper.scoring.sample.MOST_TOKENS", 8)
    base = find_base(str(whispers.save_base(tmp_path / "base", ".en", 80)))
    folder = tmp_path / "outputs" / "run"
    adapter(base, folder)
    listing(tmp_path / "test.jsonl", CLIPS)
    (folder / "recipe.yaml").write_text(RECIPE.format(base=tmp_path / "base", place=tmp_path))
    return folder


def adapter(base: Base, folder: Path) -> Path:
    """Random weights that matter, in `folder` as a run would publish them."""
    torch.manual_seed(1)
    model = attach(base.load("float32"), Adapter(4, 8, 0.0, range(2), range(2), ("q", "fc2")))
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    saved = checkpoint.folder_of(folder / "checkpoints", 1)
    checkpoint.save_weights(saved, model, Masters(trainable(model), torch.float32))
    seal(saved, {})
    checkpoint.publish(folder / "checkpoints", 1, folder / "adapter", base, {"method": "lora"})
    return folder / "adapter"


def listing(path: Path, clips: int) -> Path:
    """Noises of different loudness and length, each said to be two words."""
    rows = []
    for number in range(clips):
        noise = np.random.default_rng(number).normal(0, 0.1 + 0.1 * number, 16_000 + 4_000 * number)
        name = f"{path.stem}{number}.wav"
        soundfile.write(path.parent / name, noise, 16_000)
        rows.append(json.dumps({"audio": name, "text": "good morning"}) + "\n")
    path.write_text("".join(rows))
    return path


def merged(capsys, *words: object) -> str:
    """What merging prints."""
    assert merge.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(tmp_path: Path, kind: type, match: str, *words: object) -> None:
    """Merging stops with one sentence and leaves nothing."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        merge.main([*map(str, words), "--into", str(tmp_path / "m")])
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("dtype", merge.DTYPES)
def test_both_rates_on_the_runs_test_speech_are_printed_and_recorded(
    run, tmp_path, capsys, dtype
) -> None:
    said = merged(capsys, run, "--dtype", dtype, "--into", tmp_path / "m")
    told = json.loads((tmp_path / "m" / "peft_whisper.json").read_text())["compared"]
    heard = told["heard"]
    assert str(parity.Heard(**heard)) in said
    assert (heard["clips"], heard["normalizer"]) == (CLIPS, "english")
    assert heard["words"] > 0 and heard["wer_adapter"] > 0
    assert 0 <= told["logits_differ"] <= fold.LARGEST_DIFFERENCE[dtype]
    if dtype == "float32":
        assert heard["wer_merged"] == heard["wer_adapter"] and heard["words_differ"] == 0


def test_the_rates_are_those_of_what_adapter_and_merged_model_hear(run, tmp_path, capsys) -> None:
    """The adapter's words, not the base's: those are others."""
    from peft_whisper.scoring.sample import heard, own_length, sample

    base = find_base(str(tmp_path / "base"))
    speech = sample(base, None, None, tmp_path / "test.jsonl", None, CLIPS)
    plain = heard(base.load("float32"), base, speech, own_length())
    tuned = fold.attached(fold.Mixture((run / "adapter",)), base)
    adapted = heard(tuned, base, speech, own_length())
    assert speech.differing(plain, adapted)[0] > 0
    merged(capsys, run, "--into", tmp_path / "m")
    whole = heard(fold.saved(tmp_path / "m"), base, speech, own_length())
    told = json.loads((tmp_path / "m" / "peft_whisper.json").read_text())["compared"]["heard"]
    assert (told["wer_adapter"], told["wer_merged"]) == (speech.wer(adapted), speech.wer(whole))
    assert told["words"] == speech.differing(adapted, adapted)[1]


def test_other_speech_is_taken_and_at_most_so_many_clips(run, tmp_path, capsys) -> None:
    other = listing(tmp_path / "other.jsonl", 5)
    lone = run.rename(tmp_path / "lone") / "adapter"
    (lone.parent / "recipe.yaml").unlink()
    said = merged(capsys, lone, "--speech", other, "--count", "4", "--into", tmp_path / "m")
    assert "%, 4 clips, " in said
    told = json.loads((tmp_path / "m" / "peft_whisper.json").read_text())["compared"]["heard"]
    assert told["speech"] == "other.jsonl"


def test_why_nothing_was_compared_is_told_in_one_line(run, tmp_path, capsys) -> None:
    (tmp_path / "test.jsonl").unlink()
    said = merged(capsys, run, "--into", tmp_path / "gone").splitlines()
    assert len(said) == 2 and f"{tmp_path}/test.jsonl" in said[1]
    assert said[1].startswith("WER not compared: the run's test speech can't be used")
    assert said[1].endswith("; give --speech MANIFEST")
    (run / "recipe.yaml").write_text("name: [")
    said = merged(capsys, run, "--into", tmp_path / "damaged").splitlines()
    assert len(said) == 2 and f"WER not compared: {run}/recipe.yaml" in said[1]
    other = listing(tmp_path / "other.jsonl", 1)
    assert "%, 1 clips, " in merged(capsys, run, "--speech", other, "--into", tmp_path / "other")
    (run / "recipe.yaml").unlink()
    said = merged(capsys, run, "--into", tmp_path / "lone")
    assert f"WER not compared: {run}/adapter lies in no run" in said
    facts = json.loads((tmp_path / "lone" / "peft_whisper.json").read_text())
    assert list(facts["compared"]) == ["logits_differ"]


def test_speech_that_can_not_be_used_is_told_before_the_work(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("peft_whisper.merging.fold.attached", None)  # the work would begin with it
    refused(tmp_path, DataError, "nowhere", run, "--speech", tmp_path / "nowhere.jsonl")
    (tmp_path / "odd.jsonl").write_text("{")
    refused(tmp_path, DataError, "odd.jsonl:1", run, "--speech", tmp_path / "odd.jsonl")
    (tmp_path / "gone.jsonl").write_text('{"audio": "gone.wav", "text": "good"}\n')
    refused(tmp_path, DataError, "none of its clips", run, "--speech", tmp_path / "gone.jsonl")
    refused(tmp_path, RecipeError, "--count: 0", run, "--count", "0")


def test_a_multilingual_adapter_of_no_run_is_told_its_language(run, tmp_path, capsys) -> None:
    whispers.save_base(tmp_path / "many", "multilingual", 80)
    lone = adapter(find_base(str(tmp_path / "many")), tmp_path / "lone")
    words = (lone, "--speech", tmp_path / "test.jsonl")
    refused(tmp_path, DataError, "needs a language", *words)
    said = merged(capsys, *words, "--language", "de", "--into", tmp_path / "m")
    assert f"%, {CLIPS} clips, " in said


def test_sound_that_goes_while_it_is_decoded_leaves_nothing(run, tmp_path, monkeypatch) -> None:
    """After the adapter heard it, and before the merged model does."""
    whole = fold.saved

    def gone(folder: Path):
        (tmp_path / "test1.wav").unlink()
        return whole(folder)

    monkeypatch.setattr(fold, "saved", gone)
    with pytest.raises(DataError, match="clip test1 has changed"):
        merge.main([str(run), "--into", str(tmp_path / "m")])
    assert not (tmp_path / "m").exists() and not list(tmp_path.glob(".staging-*"))


def shaken(monkeypatch, by: float) -> None:
    """What was saved is read with other weights, and the logits' own check lets it pass."""
    whole = fold.saved

    def changed(folder: Path):
        path = folder / "model.safetensors"
        noise = torch.Generator().manual_seed(1)
        tensors = {
            name: tensor + by * torch.randn(tensor.shape, generator=noise).to(tensor)
            for name, tensor in load_file(path).items()
        }
        save_file(tensors, path, {"format": "pt"})
        return whole(folder)

    monkeypatch.setattr(fold, "saved", changed)
    monkeypatch.setattr(fold, "LARGEST_DIFFERENCE", dict.fromkeys(merge.DTYPES, 1e9))


def test_float32_with_another_rate_is_refused(run, tmp_path, monkeypatch) -> None:
    shaken(monkeypatch, 0.3)
    refused(tmp_path, StateError, r"hears other words\. WER: adapter .*nothing was written", run)


def test_sixteen_bits_far_from_the_adapters_rate_are_said_loudly(
    run, tmp_path, monkeypatch, capsys
) -> None:
    shaken(monkeypatch, 0.3)
    said = merged(capsys, run, "--dtype", "bfloat16", "--into", tmp_path / "m")
    assert "WARNING: rounding to bfloat16" in said
