"""Which runs a comparison asks for: recipes and sweeps, times seeds, all at one budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from comparing.sweeps import Swept, expand

from peft_whisper.environment import machine_name
from peft_whisper.errors import RecipeError
from peft_whisper.recipe import Recipe, leaves, settings
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.resume import FREE

# What may differ between two runs without changing what they learn or how they are scored.
ASIDE = ("name", "output", *FREE)
NOT_OF_THE_SPEECH = ("workers", "max_rejected", "note", "license", "attribution")
RECIPE_ENDS = (".yaml", ".yml")


@cache
def output() -> Path:
    """The folder of runs made on this machine: another's, on a shared disk, are not its own."""
    return Path("outputs/compare") / machine_name()


@dataclass(frozen=True)
class Budget:
    """What every run may spend: so many updates, clips heard, or minutes of training.

    Without any, what its recipe says; the recipes must then say the same.
    """

    updates: int | None = None
    clips: int | None = None
    minutes: float | None = None

    def overrides(self, recipe: Recipe) -> tuple[str, ...]:
        """The recipe's share of it: as many updates as hear the clips, at the size of its own."""
        updates = self.updates
        if self.clips is not None:
            rules = recipe.training
            updates = max(1, round(self.clips / (rules.batch * rules.accumulation)))
        return () if updates is None else (f"training.updates={updates}",)

    def named(self) -> dict[str, float]:
        """What runs of one budget have in common, but for updates, which their recipes hold."""
        found = {"clips": self.clips, "minutes": self.minutes}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Run:
    """One recipe with one seed."""

    label: str
    file: Path
    overrides: tuple[str, ...]
    recipe: Recipe
    budget: Budget
    source: str  # name of the file that asked for it
    rival: bool = False  # learned by Seq2SeqTrainer

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the run and its scores, but for the seed."""
        tree = _without(settings(self.recipe), ("seed",))
        for key in ASIDE:
            section, _, name = key.rpartition(".")
            (tree[section] if section else tree).pop(name, None)
        if self.budget.minutes is not None:
            tree["training"] = _without(tree["training"], ("updates", "epochs"))
        if self.budget.named():
            tree["budget"] = self.budget.named()
        if self.rival:
            tree["rival"] = "Seq2SeqTrainer"
        return tree

    @property
    def method(self) -> str:
        """The same for every seed."""
        return _hash(self.settings)

    @property
    def key(self) -> str:
        """What the run's result is found by."""
        return _hash({"method": self.method, "seed": self.recipe.seed})

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.recipe.name[:40]}-s{self.recipe.seed}-{self.key[:12]}"

    @property
    def folder(self) -> Path:
        return output() / self.name

    @property
    def title(self) -> str:
        return f"{self.label}, seed {self.recipe.seed}"

    @property
    def held_equal(self) -> dict[str, Any]:
        """What must be the same for two runs to be compared, by dotted key."""
        tree = self.settings
        shared: dict[str, Any] = {
            "base": {name: tree["base"].get(name) for name in ("model", "revision")},
            "data": _without(tree["data"], NOT_OF_THE_SPEECH),
            "context": tree["context"],  # how long a clip is heard, in training and in scoring
            "evaluation": _without(tree["evaluation"], ("batch", "bootstrap")),
            "budget": self.budget.named(),
        }
        if not self.budget.named():
            training = tree["training"]
            shared["training"] = {name: training.get(name) for name in ("updates", "epochs")}
        return {key: value for key, value in leaves(shared) if value is not None}


def speech_of(file: Path) -> tuple[str, ...]:
    """As overrides, what a recipe says of base, speech, evaluation and length of the run."""
    tree = settings(load_recipe(file))
    length = {
        key: tree["training"][key] for key in ("updates", "epochs") if key in tree["training"]
    }
    said = {
        "base.model": tree["base"]["model"],
        "base.revision": tree["base"].get("revision"),
        "data": tree["data"],
        "context": tree["context"],
        "evaluation": tree["evaluation"],
        **{f"training.{key}": value for key, value in length.items()},
    }
    return tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in said.items())


def plan_runs(words: Sequence[str], seeds: int, budget: Budget, rival: bool = False) -> list[Run]:
    """Every run that recipes, sweeps and `key.sub=value` in `words` ask for, recipe by recipe.

    Raises RecipeError for a recipe that is wrong, two that are one, and those not to be compared.
    """
    runs = read_runs(words, seeds, budget)
    if rival:
        runs += _rivals(runs)
    if budget.minutes and any(one.rival for one in runs):
        raise RecipeError("a rival's updates are not timed: give --updates instead of --minutes")
    _refuse_incomparable(runs)
    return runs


def read_runs(words: Sequence[str], seeds: int, budget: Budget) -> list[Run]:
    """The runs that `words` name, whether they can be compared or not.

    Raises RecipeError for a recipe that is wrong, and two that are one.
    """
    changes = tuple(one for one in words if "=" in one and not one.endswith(RECIPE_ENDS))
    files = [Path(one) for one in words if one not in changes]
    if not files:
        raise RecipeError("name a recipe to compare, for instance recipes/demo_cpu.yaml")
    runs: list[Run] = []
    for file in files:
        for swept in expand(file) or [Swept(file)]:
            runs += _seeded(swept, file.stem, changes, seeds, budget)
    _refuse_doubles(runs)
    return runs


def _seeded(
    swept: Swept, source: str, changes: tuple[str, ...], seeds: int, budget: Budget
) -> Iterator[Run]:
    """A recipe's runs, from its own seed upwards."""
    file, overrides = swept.recipe, (*swept.overrides, *changes)
    overrides = (*overrides, *budget.overrides(load_recipe(file, overrides)))
    first = load_recipe(file, overrides)
    label = swept.name or " ".join((first.name, *swept.overrides))
    if swept.rival and (lacks := _beyond_rivals(first)):
        raise RecipeError(
            f"{label}: rival: Seq2SeqTrainer with PEFT has no {lacks}; plain LoRA only"
        )
    for seed in range(first.seed, first.seed + seeds):
        own = (*overrides, f"seed={seed}")
        yield Run(label, file, own, load_recipe(file, own), budget, source, swept.rival)


def _rivals(runs: Sequence[Run]) -> list[Run]:
    """The rival of every run that it can learn too, and that has none yet.

    Raises RecipeError where there is no such run.
    """
    able = [one for one in runs if not one.rival and not _beyond_rivals(one.recipe)]
    if not able:
        raise RecipeError("--rival: none of the recipes is plain LoRA, which is what it trains")
    has = {one.key for one in runs}
    label = "{} (rival: Seq2SeqTrainer)"
    made = [replace(one, label=label.format(one.label), rival=True) for one in able]
    return [one for one in made if one.key not in has]


def _beyond_rivals(recipe: Recipe) -> str | None:
    """The first key of a recipe that the rival's script knows nothing of: it trains plain LoRA."""
    adapter, training = recipe.adapter, recipe.training
    asked = {
        "adapter.method": adapter.method != "lora",
        "adapter.start": adapter.start != "random",
        "adapter.rank_stabilized": adapter.rank_stabilized,
        "training.up_ratio": training.up_ratio != 1,
        "training.frozen_cache": training.frozen_cache != "none",
        "base.quantize": recipe.base.quantize is not None,
    }
    return next((key for key, is_asked in asked.items() if is_asked), None)


def _refuse_doubles(runs: Sequence[Run]) -> None:
    """Raise RecipeError where two recipes have one name, or are the same but for their names."""
    by_label: dict[str, str] = {}
    by_method: dict[str, str] = {}
    for run in runs:
        if by_label.setdefault(run.label, run.method) != run.method:
            raise RecipeError(
                f"two different recipes are called {run.label}: rename a file, or its `name`"
            )
        if by_method.setdefault(run.method, run.label) != run.label:
            raise RecipeError(
                f"{by_method[run.method]} and {run.label} are the same recipe but for the name: "
                "leave one out"
            )


def _refuse_incomparable(runs: Sequence[Run]) -> None:
    """Raise RecipeError, with the fields, where runs differ in what they must share."""
    first = runs[0]
    for other in runs[1:]:
        differing = differences(first.held_equal, other.held_equal)
        if differing:
            listed = "\n".join(f"  {one}" for one in differing)
            raise RecipeError(
                f"{first.label} and {other.label} are not comparable:\n{listed}\n"
                "Make them equal, in the files or for all at once: --on RECIPE (its base and "
                "speech), key.sub=value, --updates N or --minutes M."
            )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """`key: value of a, value of b` for every key that differs."""
    return [
        f"{key}: {_said(a.get(key))} and {_said(b.get(key))}"
        for key in sorted({*a, *b})
        if a.get(key) != b.get(key)
    ]


def _said(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _without(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in names}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
