"""Our greedy decoder against transformers' `generate`, token for token."""

from __future__ import annotations

import pytest
import torch
import whispers
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from peft_whisper.model.encoder import encode
from peft_whisper.scoring.decode import greedy


def settings(**more) -> GenerationConfig:
    return GenerationConfig(
        suppress_tokens=[1, 2, 7, 14],
        begin_suppress_tokens=[220, 50_256],
        decoder_start_token_id=50_257,
        eos_token_id=50_256,
        pad_token_id=50_256,
        **more,
    )


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


@pytest.mark.parametrize("positions", [256, 1500])
def test_random_model_equals_generate(positions: int) -> None:
    model = whispers.model(whispers.config())
    with torch.no_grad():  # make end-of-text likely, so that rows end at different steps
        model.model.decoder.embed_tokens.weight[50_256] *= 1.5
    mel = torch.randn(9, 80, 2 * positions, generator=torch.Generator().manual_seed(5))
    prefix = torch.tensor([[50_257, 50_362]] * 9)
    with torch.inference_mode():
        heard = encode(model.model.encoder, mel)
        ours = greedy(model, heard, prefix, settings(), 24)
        theirs = generated(model, heard, prefix, 24, settings())
    assert ours == theirs
    assert all(token not in (1, 2, 7, 14) for row in ours for token in row)


def test_real_model_equals_generate_and_drops_finished_rows(demo) -> None:
    from peft_whisper.data.audio import AudioRef, load_wave
    from peft_whisper.data.batches import pad_waves
    from peft_whisper.data.mel import log_mel
    from peft_whisper.model.base import find_base

    base = find_base(str(demo / "whisper-tiny.en"))
    model, generation = base.load("float32"), base.generation_config()
    paths = sorted((demo / "speech" / "clean").glob("*.flac"))[:12]
    assert len(paths) == 12
    waves = [load_wave(AudioRef(str(path), None)) for path in paths]
    prefix = torch.tensor([[50_257, 50_362]] * len(waves))
    with torch.inference_mode():
        heard = encode(model.model.encoder, log_mel(pad_waves(waves, 1500), 80))
        ours = greedy(model, heard, prefix, generation, 48)
        theirs = generated(model, heard, prefix, 48, generation)
    assert ours == theirs
    lengths = sorted({len(row) for row in ours})
    assert len(lengths) > 3
    print(f"greedy decoding: {len(ours)} clips equal to generate, {sum(map(len, ours))} tokens")
