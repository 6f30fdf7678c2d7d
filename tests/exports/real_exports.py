"""The shipped adapter, merged, in the programs that people use: real weights, speech, programs.

`make test-export`. Each bar prints its figure. The speech is an even share of the demo's test
split, throat microphone simulated; every program hears it padded to 30 s, greedily.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from peft_whisper import export, merge
from peft_whisper.merging.fold import Mixture, attached
from peft_whisper.model.adapters import merged as folded
from peft_whisper.model.find import find_base
from peft_whisper.model.trained import load_tuned
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.scoring.metrics import measure, summarize
from peft_whisper.scoring.normalize import normalizer
from peft_whisper.scoring.sample import Speech, sample
from peft_whisper.session import open_session

SHIPPED = Path("adapters/throat-mic-tiny.en")
CLIPS = 6
LARGEST_LOGIT_DIFFERENCE = 1e-4
POINTS = 0.003  # of WER, as a fraction


@pytest.fixture(scope="module")
def merged(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped adapter folded into the demo's base; the command prints how far they differ."""
    into = tmp_path_factory.mktemp("exports") / "merged"
    assert merge.main([str(SHIPPED), "--into", str(into)]) == 0
    return into


@pytest.fixture(scope="module")
def speech(merged: Path) -> Speech:
    recipe = load_recipe(SHIPPED / "recipe.yaml")
    return sample(
        find_base(str(merged)), recipe.data, recipe.evaluation.normalizer, None, None, CLIPS
    )


@pytest.fixture(scope="module")
def own(merged: Path, speech: Speech) -> float:
    """WER of the merged model, decoded by this package."""
    from peft_whisper.exporting.parity import merged_texts

    return speech.wer(merged_texts(find_base(str(merged)), speech))


def test_the_merged_model_is_the_adapter(merged: Path, speech: Speech, own: float) -> None:
    """Logits of every token of the true transcripts, and the words that `generate` finds."""
    base = find_base(load_recipe(SHIPPED / "recipe.yaml").base.model)
    adapter = attached(Mixture((SHIPPED / "adapter",)), base)
    whole = find_base(str(merged)).load("float32")
    processor = WhisperProcessor.from_pretrained(merged)
    largest = max(
        float((one - other).abs().max())
        for one, other in zip(
            logits(adapter, processor, speech), logits(whole, processor, speech), strict=True
        )
    )
    texts = generated(adapter, processor, speech)
    print(f"merged and adapter, fp32: logits differ by at most {largest:.1e}")
    print(f"WER: adapter {speech.wer(texts):.4f}, merged {own:.4f}, {len(speech.clips)} clips")
    assert largest <= LARGEST_LOGIT_DIFFERENCE
    assert speech.wer(texts) == own


def logits(model, processor, speech: Speech) -> list[torch.Tensor]:
    """For each clip, padded to 30 s: (1, tokens of its transcript, vocabulary)."""
    heard = processor(speech.waves(), sampling_rate=16_000, return_tensors="pt").input_features
    fed = [speech.labels.row(clip.text, clip.language).decoder_input_ids for clip in speech.clips]
    with torch.inference_mode():
        return [
            model(input_features=mel[None], decoder_input_ids=torch.tensor([ids])).logits
            for mel, ids in zip(heard, fed, strict=True)
        ]


def generated(model, processor, speech: Speech) -> list[str]:
    """What plain transformers (and peft) hear, by `generate`."""
    heard = processor(speech.waves(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        ids = model.generate(input_features=heard, max_new_tokens=224)
    return processor.batch_decode(ids, skip_special_tokens=True)


def test_plain_transformers_hears_the_same(merged: Path, speech: Speech, own: float) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(merged).eval()
    texts = generated(model, WhisperProcessor.from_pretrained(merged), speech)
    print(f"transformers: WER {speech.wer(texts):.4f}, ours {own:.4f}")
    assert abs(speech.wer(texts) - own) <= POINTS


@pytest.mark.parametrize(
    ("to", "kinds"),
    [
        ("ctranslate2", ("float32", "int8")),
        ("whispercpp", ("f16", "q8_0")),
        ("openai", ("float16",)),
    ],
)
def test_the_program_hears_what_the_merged_model_hears(
    to: str, kinds: tuple[str, ...], own: float, tmp_path: Path
) -> None:
    """The first type within 0.3 points of the merged model in float32; the other is printed."""
    words = [str(SHIPPED), "--to", to, "--into", str(tmp_path / "out"), "--count", str(CLIPS)]
    assert export.main([*words, "--quantize", *kinds]) == 0
    place = tmp_path / "out" if len(kinds) == 1 else tmp_path / "out" / kinds[0]
    rows = json.loads((place / "peft_whisper_export.json").read_text("utf-8"))["rows"]
    for row in rows:
        print(
            f"{to} {row['kind']}: WER {row['wer']:.4f}, merged {own:.4f}, "
            f"{row['words_differ']} of {row['words']} words differ"
        )
    assert [row["kind"] for row in rows] == list(kinds)
    assert abs(rows[0]["wer"] - own) <= POINTS


def test_the_shipped_adapter_gets_its_cards_figures(demo: Path) -> None:
    """Decoded again as `evaluate` does, but for the base, which takes two minutes to loop."""
    session = open_session(load_recipe(SHIPPED / "recipe.yaml"), Console(quiet=True))
    rules = session.recipe.evaluation
    told = json.loads((SHIPPED / "metrics.json").read_text(encoding="utf-8"))
    page = (SHIPPED / "README.md").read_text(encoding="utf-8")
    base = session.base.load(session.recipe.base.dtype)
    model = load_tuned(base, session.base.fingerprint, SHIPPED / "adapter").eval()
    with folded(model):
        for system, context in (("tuned", session.context), ("tuned_full_context", None)):
            texts = session.decoder(model).transcribe(session.splits.test, context)
            clean = normalizer(rules.normalizer)
            counted = [measure(one.text, texts[one.id], clean) for one in session.splits.test]
            found = summarize(counted, rules.normalizer, rules.bootstrap, session.recipe.seed)
            print(f"{system}: WER {found.wer:.4f}, on its card {told[system]['wer']:.4f}")
            assert abs(found.wer - told[system]["wer"]) <= POINTS
            assert found.words == told[system]["words"]
    assert f"{100 * told['tuned']['wer']:.1f} %" in page


def test_the_shipped_folder_is_small_and_names_no_place() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{SHIPPED}: {size / 1e6:.2f} MB in {len(files)} files")
    assert size < 10e6
    for path in files:
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert not any(root in text for root in ("/home/", "/root/", "/tmp/", "/work/"))
