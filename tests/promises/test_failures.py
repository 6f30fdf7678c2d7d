"""P4, P5, P8: no NaN on disk, no harm from a full disk, no run half under another recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_runs import FULL, Runs
from safetensors.torch import load_file
from test_train import RECIPE

from peft_whisper.errors import RecipeError
from peft_whisper.files import check_seal
from peft_whisper.recipe import leaves, settings
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.resume import FREE, same_run


def checkpoints(runs: Runs, name: str) -> list[Path]:
    return sorted((runs.folder(name) / "checkpoints").glob("update-*"))


def test_a_nan_reaches_no_file(runs: Runs, whole: dict[str, Any]) -> None:
    """In the loss, or in one gradient, at any update."""
    draw, count, poisoned, named = np.random.default_rng(4), 100 if FULL else 2, 0, 0
    tensors = list(load_file(checkpoints(runs, "whole")[0] / "adapter_model.safetensors"))
    for number in range(count):
        update = int(draw.integers(1, 7))
        where = "loss" if number % 2 else int(draw.integers(len(tensors)))
        done = runs("nan", nan=[update, where])
        assert done["code"] == 4, done["said"]
        said = done["said"].replace("\n", " ")
        named += f"update {update}:" in said and "learning rate" in said and "Clips: " in said
        for folder in checkpoints(runs, "nan"):
            check_seal(folder)
            assert int(folder.name.split("-")[1]) < update
            for path in folder.glob("*.safetensors"):
                finite = (bool(one.float().isfinite().all()) for one in load_file(path).values())
                poisoned += not all(finite)
        assert not (runs.folder("nan") / "adapter").exists()
        runs.forget("nan")
    print(
        f"\n{count} NaNs: {count} runs stopped before the update (exit 4), {named} named update, "
        f"rate and clips, {poisoned} poisoned files"
    )
    assert poisoned == 0 and named == count


def test_a_full_disk_harms_nothing(runs: Runs, whole: dict[str, Any]) -> None:
    """No file may grow beyond a limit, stepped from nothing to more than the largest file."""
    largest = max(path.stat().st_size for path in checkpoints(runs, "whole")[-1].iterdir())
    limits = np.linspace(1000, 1.2 * largest, 40 if FULL else 2).astype(int)
    refused = verified = same = 0
    for limit in limits:
        done = runs("full", bytes=int(limit))
        if done["code"] != 0:
            assert done["code"] == 75 and "Traceback" not in done["said"], done["said"]
            refused += 1
            for folder in checkpoints(runs, "full"):
                check_seal(folder)
                verified += 1
            done = runs("full")  # room was made
            assert done["code"] == 0, done["said"]
        same += runs.outcome("full") == whole["outcome"]
        runs.forget("full")
    print(
        f"\n{len(limits)} limits: {refused} runs ended with exit 75 and a sentence, all "
        f"{verified} checkpoints left verify, {same}/{len(limits)} went on to the same bits"
    )
    assert same == len(limits) and refused > 0


def other(value: Any) -> Any:
    """A different value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "other"] if isinstance(value, list) else f"{value}-other"


def test_each_key_of_a_recipe_is_frozen_or_free(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(tmp_path / "tiny.yaml")
    tree, refused, free = settings(recipe), 0, 0
    keys = list(leaves(tree))
    for key, value in keys:
        changed = put(recipe, key.split("."), other(value))
        if any(key == one or key.startswith(f"{one}.") for one in FREE):
            same_run(changed, recipe, Path("outputs/x"))
            free += 1
        else:
            with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
                same_run(changed, recipe, Path("outputs/x"))
            refused += 1
    print(f"\n{len(keys)} keys changed one by one: {refused} refused by name, {free} applied")
    assert refused + free == len(keys) and free >= 3 and refused >= 25


def put(model: Any, path: list[str], value: Any) -> Any:
    """The recipe with one key changed, its rules not asked."""
    if len(path) > 1:
        value = put(getattr(model, path[0]), path[1:], value)
    return model.model_copy(update={path[0]: value})


def test_a_changed_clip_or_transcript_is_noticed(runs: Runs, whole: dict[str, Any]) -> None:
    """One byte of one clip, and one word of one transcript."""
    clip, manifest = runs.place / "3.wav", runs.place / "train.jsonl"
    stopped = runs("changed", operation=len(whole["operations"]) // 2)
    assert stopped["code"] == 137
    for path, at in ((clip, -100), (manifest, manifest.read_bytes().index(b'"text": "') + 10)):
        good = path.read_bytes()
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bad)
        done = runs("changed")
        path.write_bytes(good)
        assert done["code"] == 3 and "have changed" in done["said"].replace("\n", " ")
    assert runs("changed")["code"] == 0
    assert runs.outcome("changed") == whole["outcome"]
    runs.forget("changed")
    print("\na changed clip and a changed transcript refused; put back, the run ends bit-identical")
