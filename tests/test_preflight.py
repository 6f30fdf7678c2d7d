"""Before the first step: this very run's largest updates, traced; what can't fit is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import whispers
from rich.console import Console

from peft_whisper.data.audit import Clip
from peft_whisper.data.labels import Labels
from peft_whisper.data.splits import Splits
from peft_whisper.errors import NoRoomError
from peft_whisper.memory.cards import Card, find_card
from peft_whisper.model.base import Base
from peft_whisper.planning import preflight
from peft_whisper.planning.preflight import check_memory, measured_beside, run_ways
from peft_whisper.recipe import Recipe
from peft_whisper.session import Session

MIB = 2**20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    return Base("tiny", None, whispers.save_base(folder, ".en", 80))


def session(base: Base, durations: list[float], **training) -> Session:
    nowhere = {"manifest": "none.jsonl"}
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "base": {"model": str(base.folder)},
            "data": {"train": nowhere, "validation": nowhere, "test": nowhere, "language": "en"},
            "adapter": {"rank": 4},
            "training": {"updates": 2, "learning_rate": 1e-3, "batch": 8} | training,
            "evaluation": {"every": 1, "batch": 2, "max_tokens": 20},
        }
    )
    unheard: Any = None
    clips = [
        Clip(f"clip{n}", unheard, "words", "en", None, seconds, 20 + n, f"{n}")
        for n, seconds in enumerate(durations)
    ]
    splits = Splits(tuple(clips), tuple(clips[:1]), tuple(clips[:1]), {}, (), ())
    return Session(recipe, base, Labels(base.tokenizer(), 51_864), 80, splits)


def card(mib: float) -> Card:
    return Card("test", "a test card", round(mib * MIB), context=0)


def test_the_runs_own_updates_are_traced(base: Base) -> None:
    """Longest input and most clips; with its longest transcript."""
    ways = run_ways(session(base, [2.0] * 15 + [12.0] * 9), processes=1)
    shapes = {way[0] for way in ways}
    assert {labels for _, _, labels in shapes} == {43}
    assert max(positions for _, positions, _ in shapes) == 704
    split = run_ways(session(base, [12.0] * 8, micro_audio_s=60), processes=1)
    assert all(len(way) == 2 and way[0][0] * way[0][1] * 0.02 <= 60 for way in split)


def test_a_run_that_fits_is_told_so_and_recorded(base: Base) -> None:
    console = Console(record=True, width=200)
    same, facts = check_memory(session(base, [2.0] * 8), 1, console, find_card("a10"))
    assert same.recipe.training.recompute == "none"
    assert facts["kind"] == "traced" and facts["verdict"] == "fits"
    assert 20 * MIB < facts["peak_bytes"] < 2000 * MIB
    assert re.search(r"memory: 0\.\d GiB at its peak, traced; NVIDIA A10", console.export_text())


def test_auto_takes_the_least_that_fits(base: Base) -> None:
    run, quiet = session(base, [29.0] * 8, recompute="auto"), Console(quiet=True)
    roomy, facts = check_memory(run, 1, quiet, find_card("a10"))
    assert roomy.recipe.training.recompute == "none"
    small, less = check_memory(run, 1, quiet, card(0.97 * facts["reserved_bytes"] / MIB))
    assert small.recipe.training.recompute not in ("none", "auto")
    assert less["peak_bytes"] < facts["peak_bytes"]


def test_a_run_that_cannot_fit_is_refused_with_what_would(base: Base) -> None:
    run, quiet = session(base, [29.9] * 8), Console(quiet=True)
    _, facts = check_memory(run, 1, quiet, find_card("a10"))
    with pytest.raises(NoRoomError) as refused:
        check_memory(run, 1, quiet, card(0.75 * facts["peak_bytes"] / MIB))
    said = str(refused.value)
    assert "does not fit: training on 8 clips x 30 s" in said and "traced" in said
    assert "training.micro_audio_s=" in said
    assert refused.value.exit_code == 75


def test_on_a_computer_with_plenty_nothing_is_traced(base: Base, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "ask", lambda _jobs: pytest.fail("traced"))
    here = dataclasses.replace(card(64_000), device="cpu", name="cpu")
    run = session(base, [2.0] * 8, recompute="auto")
    same, facts = check_memory(run, 1, Console(quiet=True), here)
    assert (same.recipe.training.recompute, facts) == ("none", {})


def test_a_measured_peak_far_from_the_trace_is_a_warning(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 100)
    assert measured_beside({"peak_bytes": 103})["warning"] is False
    assert measured_beside({"peak_bytes": 94})["warning"] is True


def recipes() -> list[Path]:
    return sorted(p for p in Path("recipes").glob("*.yaml") if "traced:" in p.read_text())


def test_recipes_say_what_they_take() -> None:
    assert len(recipes()) == 7


@pytest.mark.parametrize("path", recipes(), ids=lambda p: p.stem)
def test_what_a_recipe_says_of_its_memory_is_true(path: Path) -> None:
    """Each header's figures, traced again."""
    from peft_whisper.planning.jobs import ask
    from peft_whisper.planning.plans import job_of, ways_of
    from peft_whisper.recipe_yaml import load_recipe

    said = re.search(
        r"traced: ([\d.]+) of ([\d.]+) GiB with (\d+) clips of 30 s at once \((\d+) tokens",
        path.read_text(),
    )
    assert said is not None
    recipe, which = load_recipe(str(path), []), find_card(path.stem.rpartition("_")[2])
    job = job_of(recipe, which, ways_of(recipe, 30.0, int(said[4])), search=False)
    (found,) = ask([job])
    peak = found["training"]["allocated"] / 2**30
    print(f"{path.stem}: {peak:.2f} GiB, {found['training']['repeated']:.1%} repeated")
    assert f"{peak:.1f}" == said[1]
    assert f"{which.usable / 2**30:.1f}" == said[2]
    assert job.ways[0][0][0] == int(said[3])
    assert found["training"]["verdict"] == "fits" and found["decoding"]["verdict"] == "fits"
