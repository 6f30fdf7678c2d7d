"""What a step of each recipe costs stays what it was: benchmarks/budgets.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from count import BUDGETS, budget_of

from peft_whisper.recipe_yaml import load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
WITHIN = 0.02
AGAIN = "python benchmarks/count.py recipes/*.yaml --write-budgets"


def test_each_recipe_has_a_budget() -> None:
    budgets = json.loads(BUDGETS.read_text(encoding="utf-8"))
    assert RECIPES
    assert sorted(budgets) == sorted(path.stem for path in RECIPES), AGAIN


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_step_keeps_to_its_budget(
    path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clip of 10 s, two layers on either side at full width; waiting to the last one."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(str(path))
    if recipe.base.model.startswith(".demo"):
        request.getfixturevalue("demo")
    allowed = json.loads(BUDGETS.read_text(encoding="utf-8"))[recipe.name]
    found = budget_of(recipe)
    assert found.keys() == allowed.keys(), AGAIN
    for what, most in allowed.items():
        within = 0 if what.startswith("syncs") else WITHIN * most
        assert abs(found[what] - most) <= within, (
            f"{recipe.name}: {what} is {found[what]:,}, its budget {most:,}. A loss? Mend it. "
            f"A gain? {AGAIN}"
        )
    assert found["syncs_micro_step"] == 0
