"""`auto` of training.precision and attention: what is measured to be faster, said and repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import REPOSITORY, losses, make_place, train
from whispers import config

from peft_whisper.errors import RecipeError
from peft_whisper.recipe import on_card
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.training.fastest import PAYS, bf16_times_as_fast, tiles_times_as_fast

MEASURE = """
import torch
from transformers import WhisperConfig
from peft_whisper.environment import keep_freed_memory
from peft_whisper.training.fastest import bf16_times_as_fast, tiles_times_as_fast
keep_freed_memory()  # as training does
sizes = WhisperConfig(d_model=384, encoder_attention_heads=6, encoder_ffn_dim=1536)
print({measure})
"""
BF16 = "bf16_times_as_fast(sizes)"
TILES = "tiles_times_as_fast(sizes, torch.{dtype})"
AVX512_BF16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    or "avx512_bf16" not in Path("/proc/cpuinfo").read_text(),
    reason="the CPU has no bf16 instructions",
)


def measured(measure: str, **environment: str) -> float:
    """What a process with these variables finds at Whisper tiny's sizes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(measure=measure)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def test_a_cpu_without_bf16_instructions_computes_in_fp32() -> None:
    """oneDNN is told to use no newer instructions than AVX-512 without bf16."""
    found = measured(BF16, ONEDNN_MAX_CPU_ISA="AVX512_CORE")
    print(f"tiny's layer without bf16 instructions: {found:.2f}x as fast in bf16 as in fp32")
    assert found < PAYS


@AVX512_BF16
def test_a_cpu_with_bf16_instructions_computes_in_bf16() -> None:
    found = measured(BF16)
    print(f"tiny's layer with bf16 instructions: {found:.2f}x as fast in bf16 as in fp32")
    assert found >= PAYS


@AVX512_BF16
def test_tiles_are_taken_where_bf16_has_instructions_and_not_in_fp32() -> None:
    fast, slow = (measured(TILES.format(dtype=dtype)) for dtype in ("bfloat16", "float32"))
    print(f"attention in tiles: {fast:.2f}x as fast as torch's in bf16, {slow:.2f}x in fp32")
    assert slow < PAYS <= fast


def test_measuring_changes_neither_threads_nor_the_types_that_follow() -> None:
    threads = torch.get_num_threads()
    assert bf16_times_as_fast(config()) > 0
    assert tiles_times_as_fast(config(), torch.float32) > 0
    assert torch.get_num_threads() == threads
    assert not torch.is_autocast_enabled("cpu")


def test_what_was_chosen_is_recorded_and_the_record_repeats_the_run(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    auto = "training.precision=auto", "training.attention=auto"
    done = train(place, "tiny.yaml", *auto, "training.updates=2")
    run = place / "outputs" / "tiny"
    chosen = load_recipe(run / "recipe.yaml").training.precision
    environment = json.loads((run / "environment.json").read_text())
    facts = environment["precision"]
    assert facts["chosen"] == chosen
    assert (chosen == "bf16") == (facts["bf16_times_fp32"] >= PAYS)
    assert f"precision: {chosen}; a layer trains" in done.stdout
    attention = load_recipe(run / "recipe.yaml").training.attention
    facts = environment["attention"]
    assert facts["chosen"] == attention
    assert (attention == "tiled") == (facts["tiled_times_torch"] >= PAYS)
    assert f"attention: {attention}; tiles are" in done.stdout
    train(place, str(run / "recipe.yaml"), "name=again")
    assert losses(place / "outputs" / "again") == losses(run)


@pytest.mark.parametrize(
    ("device", "bf16", "expected"),
    [("cuda", True, "bf16"), ("cuda", False, "fp16"), ("cpu", True, "fp32")],
)
def test_a_plan_computes_in_what_the_card_has(
    tmp_path: Path, device: str, bf16: bool, expected: str
) -> None:
    place = make_place(tmp_path)
    recipe = load_recipe(place / "tiny.yaml", ["training.precision=auto"])
    assert on_card(recipe, device, bf16).training.precision == expected
    given = load_recipe(place / "tiny.yaml", ["training.precision=fp32"])
    assert on_card(given, device, bf16) is given


def test_weights_held_in_16_bits_leave_nothing_to_choose(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    with pytest.raises(RecipeError, match=r"bfloat16 weights .*write training.precision: bf16"):
        load_recipe(place / "tiny.yaml", ["training.precision=auto", "base.dtype=bfloat16"])
