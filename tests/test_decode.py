"""Our greedy decoder against transformers' `generate`, token for token; and batches of clips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import whispers
from torch import nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from peft_whisper.data.audio import AudioRef, load_wave
from peft_whisper.data.audit import Clip, sample_hash
from peft_whisper.data.batches import collate, features
from peft_whisper.data.epochs import Context
from peft_whisper.data.labels import Labels
from peft_whisper.model.adapters import Adapter, attach
from peft_whisper.model.decoder import GROWTH, TokenDecoder, Vocabulary
from peft_whisper.model.encoder import TokenLoss, encode, whisper_of
from peft_whisper.model.quantized import quantize
from peft_whisper.scoring.decode import Decoder
from peft_whisper.scoring.search import Greedy

WORDS = range(300, 330)  # all that the random models may say, so that they often end too


def settings(end: int = 50_256) -> GenerationConfig:
    return GenerationConfig(
        suppress_tokens=[i for i in range(51_864) if i not in (*WORDS, end)],
        begin_suppress_tokens=[310, end],
        decoder_start_token_id=end + 1,
        eos_token_id=end,
        pad_token_id=end,
    )


def random_whisper(vocabulary: int = 51_864):
    """A random Whisper whose words depend on place and sound, and which ends now and then."""
    sizes = whispers.config(vocabulary=vocabulary)
    # As in real ones, queries are scaled by a power of two: in 16 bits it does not matter when.
    sizes.encoder_attention_heads = sizes.decoder_attention_heads = 4
    model = whispers.model(sizes, seed=3)
    with torch.no_grad():
        decoder = model.model.decoder
        decoder.embed_positions.weight.mul_(4)
        decoder.embed_tokens.weight[sizes.eos_token_id] = 1.2 * decoder.embed_tokens.weight[1000]
    return model


def sounds(rows: int, positions: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What an encoder might give: rows that differ."""
    generator = torch.Generator().manual_seed(5)
    common = torch.randn(rows, 1, 16, generator=generator)
    return (common + 0.5 * torch.randn(rows, positions, 16, generator=generator)).to(dtype)


def generated(model, heard, prefix, limit, generation) -> list[list[int]]:
    """transformers' own greedy search on the same encoder output, end-of-text cut off."""
    from transformers.generation.utils import GenerationMixin

    out = GenerationMixin.generate(
        model,
        encoder_outputs=BaseModelOutput(last_hidden_state=heard),
        decoder_input_ids=prefix,
        generation_config=generation,
        max_new_tokens=limit,
        do_sample=False,
        num_beams=1,
    )
    rows = out[:, prefix.shape[1] :].tolist()
    end = generation.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in rows]


PREFIX = torch.tensor([[50_257, 50_362]] * 12)


@pytest.mark.parametrize("clips", [1, 3, 12])
def test_random_model_equals_generate(clips: int) -> None:
    model, heard, prefix = random_whisper(), sounds(clips, 1500), PREFIX[:clips]
    with torch.inference_mode():
        ours = Greedy(model, settings())([heard], prefix, 40)
        assert ours == generated(model, heard, prefix, 40, settings())
    assert all(token in WORDS for row in ours for token in row)
    assert all(row[0] != 310 for row in ours)
    assert clips < 12 or len({len(row) for row in ours}) > 5


def test_rows_of_different_languages_equal_generate() -> None:
    model, heard = random_whisper(51_865), sounds(12, 1500)
    prefix = torch.tensor([[50_258, 50_259 + row, 50_359, 50_363] for row in range(12)])
    with torch.inference_mode():
        ours = Greedy(model, settings(50_257))([heard], prefix, 40)
        assert ours == generated(model, heard, prefix, 40, settings(50_257))
    assert len({len(row) for row in ours}) > 3


def with_adapter(model: nn.Module) -> nn.Module:
    """LoRA beside every linear layer, large enough to change what is said."""
    every = Adapter(4, 8, 0.0, range(2), range(2), ("q", "k", "v", "out", "fc1", "fc2"))
    wrapped = attach(model, every).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return whisper_of(wrapped)


@pytest.mark.parametrize("kind", ["bf16", "autocast", "adapter", "adapter, bf16", "int8", "nf4"])
def test_every_kind_of_layer_equals_generate(kind: str) -> None:
    """Adapters stay unmerged, beside a quantised base too."""
    model = random_whisper()
    if kind in ("int8", "nf4"):
        quantize(model, kind, "cpu")
    if "bf16" in kind:
        model.to(torch.bfloat16)
    if kind not in ("bf16", "autocast"):
        model = with_adapter(model)
    heard = sounds(12, 1500, model.dtype)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        ours = Greedy(model, settings())([heard], PREFIX, 40)
        assert ours == generated(model, heard, PREFIX, 40, settings())
        plain = Greedy(random_whisper(), settings())([sounds(12, 1500)], PREFIX, 40)
    assert kind in ("bf16", "autocast") or ours != plain
    assert len({tuple(row) for row in ours}) > 5


def test_lengths_decoded_together_are_as_each_alone() -> None:
    model = random_whisper()
    heard = [sounds(clips, 192 * clips) for clips in (1, 2, 3, 6)]
    with torch.inference_mode():
        search = Greedy(model, settings())
        together = search(heard, PREFIX, 40)
        alone = [row for one in heard for row in search([one], PREFIX[: len(one)], 40)]
    assert together == alone
    assert len({len(row) for row in together}) > 3


def test_finished_rows_are_dropped_when_they_are_half() -> None:
    model, fed = random_whisper(), []
    model.model.decoder.layers[0].fc1.register_forward_pre_hook(
        lambda _module, args: fed.append(len(args[0]))
    )
    with torch.inference_mode():
        ours = Greedy(model, settings())([sounds(12, 1500)], PREFIX, 40)
    live = [sum(len(row) >= step for row in ours) for step in range(40)]
    assert len(fed) == min(40, max(map(len, ours)) + 1)
    assert fed[0] == 12 and fed[-1] < 6
    assert all(rows < 2 * max(1, count) for rows, count in zip(fed, live, strict=False))


def test_room_for_tokens_grows_in_steps_up_to_what_is_asked_for() -> None:
    model, room = random_whisper(), []
    with torch.inference_mode():
        decoder = TokenDecoder(model, [sounds(12, 64)], 100)
        for ids in (PREFIX, *[PREFIX[:, :1]] * 98):
            decoder(ids)
            room.append(decoder.said[-1][0].shape[2])
    assert sorted(set(room)) == [GROWTH, 100]
    assert room.index(100) == GROWTH - 1  # the prefix was two tokens


def test_packed_vocabulary_gives_the_stock_logits() -> None:
    model = random_whisper()
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = Vocabulary(model)(hidden)
        torch.testing.assert_close(found, model.proj_out(hidden), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_model_equals_generate(demo, dtype: str) -> None:
    from peft_whisper.data.audio import load_wave
    from peft_whisper.data.batches import pad_waves
    from peft_whisper.data.mel import log_mel
    from peft_whisper.model.find import find_base

    base = find_base(str(demo / "whisper-tiny.en"))
    model, generation = base.load(dtype), base.generation_config()
    paths = sorted((demo / "speech" / "clean").glob("*.flac"))[:12]
    assert len(paths) == 12
    waves = [load_wave(AudioRef(str(path), None)) for path in paths]
    prefix = torch.tensor([[50_257, 50_362]] * len(waves))
    with torch.inference_mode():
        heard = encode(model.model.encoder, log_mel(pad_waves(waves, 1500), 80).to(model.dtype))
        ours = Greedy(model, generation)([heard], prefix, 48)
        theirs = generated(model, heard, prefix, 48, generation)
    assert ours == theirs
    lengths = sorted({len(row) for row in ours})
    assert len(lengths) > 3
    print(
        f"greedy decoding, {dtype}: {len(ours)} clips equal to generate, "
        f"{sum(map(len, ours))} tokens"
    )


CONTEXT = Context(margin=16)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    """Noise of 2 to 24 s, in no order."""
    folder, generator = tmp_path_factory.mktemp("clips"), np.random.default_rng(2)
    made = []
    for number, seconds in enumerate((12.0, 2.0, 24.0, 6.0, 2.4, 8.0, 18.0, 6.4, 2.8)):
        wave = generator.normal(0, 0.1 + 0.02 * number, int(16_000 * seconds)).astype(np.float32)
        path = folder / f"{number}.wav"
        soundfile.write(path, wave, 16_000, subtype="FLOAT")
        ref = AudioRef(path=str(path))
        made.append(Clip(f"{number}", ref, "t", None, None, seconds, 5, sample_hash(wave)))
    return made


def decoder_of(model, batch: int) -> Decoder:
    labels = Labels(whispers.tokenizer(".en"), 51_864)
    return Decoder(model, labels, settings(), 80, "mean", batch, 16)


def test_a_transcript_does_not_depend_on_the_batch(clips: list[Clip]) -> None:
    model, seen = random_whisper(), []
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.encoder_attn.k_proj.weight.mul_(20)  # not all positions alike
        model.model.encoder.conv1.weight.mul_(20)  # nor all sounds
    texts = decoder_of(model, 4).transcribe(clips, CONTEXT, seen.append)
    assert texts == decoder_of(model, 1).transcribe(clips[::-1], CONTEXT)
    assert seen == [4, 4, 1]
    assert set(texts) == {clip.id for clip in clips}
    assert len(set(texts.values())) > 2
    assert texts != decoder_of(model, 4).transcribe(clips, None)
    assert decoder_of(model, 4).transcribe([], CONTEXT) == {}


def test_the_loss_of_the_true_texts_is_that_of_training(clips: list[Clip]) -> None:
    """Heard once for both: the same tokens as without, the same loss as a training forward."""
    model, labels = random_whisper(), Labels(whispers.tokenizer(".en"), 51_864)
    spoken = [replace(clip, text="hold fire " * (1 + number)) for number, clip in enumerate(clips)]
    decoder = decoder_of(model, 4)
    encoded: list[int] = []
    hook = model.model.encoder.layer_norm.register_forward_hook(
        lambda _module, args, _out: encoded.append(len(args[0]))
    )
    texts, loss, tokens = decoder.graded(spoken, CONTEXT)
    hook.remove()
    assert sum(encoded) == len(clips)
    assert texts == decoder.transcribe(clips, CONTEXT)
    total, count = 0.0, 0
    for clip in spoken:
        positions = CONTEXT.positions(clip.duration_s)
        mel = features([clip], positions, 80, lambda c: load_wave(c.audio))
        batch = collate(mel, positions, [labels.row(clip.text, None)], labels.end, [clip])
        inputs = (batch.sound, batch.decoder_input_ids, batch.index, batch.targets)
        total += TokenLoss(model)(*inputs).item()
        count += len(batch.targets)
    print(f"loss per token {loss / tokens:.6f}, in training {total / count:.6f}")
    assert (tokens, loss) == (count, pytest.approx(total, rel=1e-5))


def test_a_batch_that_does_not_fit_is_halved_for_good(clips: list[Clip]) -> None:
    model, tried = random_whisper(), []
    texts = decoder_of(model, 8).transcribe(clips, CONTEXT)

    def too_large(_module, args) -> None:
        tried.append(len(args[0]))
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.model.decoder.layers[0].fc1.register_forward_pre_hook(too_large)
    most, seen = 3, []
    assert decoder_of(model, 8).transcribe(clips, CONTEXT, seen.append) == texts
    assert seen == [2, 2, 2, 2, 1]
    assert [rows for rows in tried if rows > most] == [8, 4]
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        decoder_of(model, 8).transcribe(clips, CONTEXT)


def test_other_errors_are_not_taken_for_too_little_memory(clips: list[Clip]) -> None:
    model = random_whisper()

    def broken(*_) -> None:
        raise RuntimeError("something else")

    model.model.decoder.layers[0].fc1.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="something else"):
        decoder_of(model, 8).transcribe(clips, CONTEXT)
