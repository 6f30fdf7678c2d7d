"""The recipe: everything that decides a run, as one frozen and validated object.

`recipe_yaml.load_recipe` makes it from YAML and overrides; commands read it and hand plain values,
or one of its sections, to the rooms behind them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from peft_whisper.languages import UNSPACED_LANGUAGES
from peft_whisper.recipe_rules import WITHOUT, contradictions
from peft_whisper.recipe_sections import Adapter, Base, Checkpoints, Context, Evaluation, Training
from peft_whisper.recipe_speech import Data, Section


class Recipe(Section):
    """One run of peft_whisper, from data to scores."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="Name of the run and of its folder; the file's name where it is left out.",
    )
    seed: int = Field(1, ge=0, lt=2**32, description="Another seed is another random run.")
    output: str = Field("outputs", min_length=1, description="Folder that holds the runs.")
    track: Literal["tensorboard", "trackio", "wandb"] | None = Field(
        None, description="Where curves are shown while training, beside log.jsonl; an extra."
    )
    base: Base = Field(description="The pretrained Whisper to start from.")
    data: Data = Field(description="The speech: train, validation and test.")
    adapter: Adapter = Field(Adapter(), description="What is trained.")
    context: Context = Field(Context(), description="Length of the encoder's input.")
    training: Training = Field(description="How the weights move.")
    evaluation: Evaluation = Field(description="How the model is judged.")
    checkpoints: Checkpoints = Field(Checkpoints(), description="What is kept on disk.")

    @model_validator(mode="before")
    @classmethod
    def _normalize_as_the_language_needs(cls, tree: Any) -> Any:
        """Fill in evaluation.normalizer, where it is left out, by data.language."""
        data, rules = (
            tree.get(name) if isinstance(tree, dict) else None for name in ("data", "evaluation")
        )
        if isinstance(data, dict) and isinstance(rules, dict) and rules.get("normalizer") is None:
            english = data.get("task") == "translate" or data.get("language") == "en"
            unspaced = data.get("language") in sorted(UNSPACED_LANGUAGES)
            own = "english" if english else "characters" if unspaced else "basic_marks"
            return tree | {"evaluation": rules | {"normalizer": own}}
        return tree

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        found = contradictions(self.model_dump(exclude_unset=True))
        if found:
            raise ValueError("; ".join(f"{'.'.join(path)}: {what}" for path, what in found))
        return self


def settings(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says as plain data: every value resolved, nothing that has no effect."""
    tree = recipe.model_dump(mode="json", exclude_none=True)
    without = WITHOUT.get(recipe.adapter.method, ())
    tree["adapter"] = {key: one for key, one in tree["adapter"].items() if key not in without}
    if recipe.adapter.method not in ("lora", "dora"):
        del tree["training"]["up_ratio"]
    for split in ("train", "validation", "test"):
        source = tree["data"][split]
        if "hub" not in source:
            del source["split"], source["streaming"]
        if "from_train" in source:
            del source["columns"]
    return tree


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of `settings`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def with_training(recipe: Recipe, **values: object) -> Recipe:
    """The recipe with other values in `training`, such as what `auto` has been found to be."""
    training = recipe.training.model_copy(update=values)
    return recipe.model_copy(update={"training": training})


def on_card(recipe: Recipe, device: str, bf16: bool = True) -> Recipe:
    """The recipe with `training.precision: auto` resolved for a torch device with or without bf16.

    A run on a CPU measures instead; where there is nothing to measure, it is fp32, which takes
    more memory.
    """
    if recipe.training.precision != "auto":
        return recipe
    chosen = "fp32" if device == "cpu" else "bf16" if bf16 else "fp16"
    return with_training(recipe, precision=chosen)


def recipe_hash(recipe: Recipe) -> str:
    """Return the SHA-256 (hex) of the recipe's resolved settings, whatever text they came from."""
    canonical = json.dumps(settings(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema()
    schema["required"].remove("name")  # a file's name is the default
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
