"""What a step leaves out that begins at kept outputs; `make bench-memory` holds its memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from memory import ALL, RAGGED, recipe_of, small_whisper
from torch.utils.flop_counter import FlopCounterMode

from peft_whisper.model.base import quiet_transformers
from peft_whisper.model.encoder import encode_below
from peft_whisper.model.sizes import Blueprint
from peft_whisper.planning.tracing import TrainingTrace, fake


@pytest.mark.parametrize("encoder", ["none", "top 1"])
def test_a_trace_leaves_the_frozen_layers_out(encoder: str, tmp_path: Path) -> None:
    base = small_whisper(tmp_path)
    recipe = recipe_of(ALL, {}, {})
    adapter = recipe.adapter.model_copy(update={"encoder_layers": encoder})
    flops = {}
    for cache in ("none", "disk"):
        training = recipe.training.model_copy(update={"frozen_cache": cache})
        ours = recipe.model_copy(update={"adapter": adapter, "training": training})
        with fake("cpu"), quiet_transformers():
            trace = TrainingTrace(ours, Blueprint(base.config()), "cpu")
            trace.step(RAGGED)
        flops[cache] = trace.line.flops
    layers = 3 if encoder == "none" else 2
    whisper = base.load("float32")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for shape in RAGGED:
            mel = torch.zeros(shape.clips, 80, shape.frames)
            encode_below(whisper.model.encoder, mel, layers)
    saved = flops["none"] - flops["disk"]
    assert saved == pytest.approx(counter.get_total_flops(), rel=1e-3)
