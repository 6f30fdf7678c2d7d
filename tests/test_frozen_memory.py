"""The memory of a step that begins at kept outputs, traced and logged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from memory import RAGGED, logged, recipe_of, small_whisper
from torch.utils.flop_counter import FlopCounterMode

from peft_whisper.memory.account import find_peak
from peft_whisper.memory.cpu_log import alive
from peft_whisper.model.base import quiet_transformers
from peft_whisper.model.encoder import encode_below
from peft_whisper.model.sizes import Blueprint
from peft_whisper.planning.tracing import TrainingTrace, fake


@pytest.mark.parametrize("encoder", ["none", "top 1"])
def test_a_trace_is_what_the_allocator_logs_and_leaves_the_frozen_layers_out(
    encoder: str, tmp_path: Path
) -> None:
    base = small_whisper(tmp_path)
    recipe = recipe_of({"rank": 8, "dropout": 0.1}, {}, {})
    adapter = recipe.adapter.model_copy(update={"encoder_layers": encoder})
    peaks, flops = {}, {}
    for cache in ("none", "disk"):
        training = recipe.training.model_copy(update={"frozen_cache": cache})
        ours = recipe.model_copy(update={"adapter": adapter, "training": training})
        with fake("cpu"), quiet_transformers():
            trace = TrainingTrace(ours, Blueprint(base.config()), "cpu")
            trace.step(RAGGED)
        peaks[cache], flops[cache] = find_peak(trace.line, round_to=1).size, trace.line.flops
        others = alive()  # of tests before this one
        real = logged(ours, base, RAGGED) - others
        assert peaks[cache] == pytest.approx(real, rel=0.001)
    layers = 3 if encoder == "none" else 2
    whisper = base.load("float32")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for shape in RAGGED:
            mel = torch.zeros(shape.clips, 80, 2 * shape.positions)
            encode_below(whisper.model.encoder, mel, layers)
    saved = flops["none"] - flops["disk"]
    print(f"encoder {encoder}: {peaks['disk'] / peaks['none']:.2f} of the peak without the cache")
    assert saved == pytest.approx(counter.get_total_flops(), rel=1e-3)
