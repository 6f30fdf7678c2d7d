"""A sweep file: a recipe, and keys with the values to try; every combination is a recipe.

recipe: recipes/demo_cpu.yaml
adapter.rank: [8, 32]
adapter.modules: [all, [q, v]]

Or, instead of values to combine, changes by the names that they shall have:

recipe: recipes/demo_cpu.yaml
variants:
  LoRA on q and v: {adapter.modules: [q, v]}
  all weights: {adapter.method: none, training.learning_rate: 1e-4}
  the usual stack: {rival: true}
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from peft_whisper.errors import RecipeError

MOST = 200  # recipes of one sweep


@dataclass(frozen=True)
class Swept:
    """One recipe of a sweep: its file, its `key.sub=value`, and its name where it was given one.

    A `rival` is learned by Seq2SeqTrainer.
    """

    recipe: Path
    overrides: tuple[str, ...] = ()
    name: str | None = None
    rival: bool = False


def expand(path: Path) -> list[Swept] | None:
    """Each combination, or each variant; None where the file is no sweep.

    Raises RecipeError for a sweep that can't be read.
    """
    root = _compose(path)
    if root is None:
        return None
    recipe: Path | None = None
    choices: list[list[str]] = []
    variants: yaml.Node | None = None
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}: {key.value}"
        if key.value == "recipe":
            recipe = Path(_text(value, where))
        elif key.value == "variants":
            variants = value
        else:
            choices.append([f"{key.value}={one}" for one in _values(value, where)])
    assert recipe is not None  # or it would be no sweep
    if variants is not None and choices:
        raise RecipeError(f"{path}: variants stand alone; found {choices[0]} beside them")
    if variants is not None:
        return _variants(path, recipe, variants)
    combined = list(product(*choices))
    if len(combined) > MOST:
        raise RecipeError(f"{path}: {len(combined):,} combinations; expected at most {MOST}")
    return [Swept(recipe, combination) for combination in combined]


def _variants(path: Path, recipe: Path, node: yaml.Node) -> list[Swept]:
    """Each name with its changes."""
    where = f"{path}:{node.start_mark.line + 1}: variants"
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise RecipeError(f"{where}: expected names, each with its {{key.sub: value}}")
    made: dict[str, Swept] = {}
    for key, value in node.value:
        name, place = _text(key, where), f"{path}:{key.start_mark.line + 1}: {key.value}"
        if not isinstance(value, yaml.MappingNode):
            raise RecipeError(f"{place}: expected {{key.sub: value}}, {{}} for the recipe itself")
        if name in made:
            raise RecipeError(f"{place}: this name is given twice")
        pairs = {_text(one, place): _text(said, place) for one, said in value.value}
        rival = pairs.pop("rival", "false")
        if rival not in ("true", "false"):
            raise RecipeError(f"{place}: rival: found {rival}, expected true")
        changes = tuple(f"{one}={said}" for one, said in pairs.items())
        made[name] = Swept(recipe, changes, name, rival == "true")
    return list(made.values())


def _compose(path: Path) -> yaml.MappingNode | None:
    """The file as YAML nodes; None where it holds no `recipe:`, and is for the recipe's reader."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(root, yaml.MappingNode):
        return None
    return root if any(key.value == "recipe" for key, _ in root.value) else None


def _values(node: yaml.Node, where: str) -> list[str]:
    """The values of one key, as an override writes them."""
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise RecipeError(f"{where}: expected a list of the values to try, such as [8, 32]")
    found = [_text(one, where) for one in node.value]
    if len(set(found)) < len(found):
        raise RecipeError(f"{where}: a value is given twice in [{', '.join(found)}]")
    return found


def _text(node: yaml.Node, where: str) -> str:
    """A value in one line: a plain scalar, or a list of them."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(_text(one, where) for one in node.value)}]"
    raise RecipeError(f"{where}: expected a value or a list, found keys and values")
