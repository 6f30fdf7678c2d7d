"""A sweep file: a recipe, and keys with the values to try; every combination is a recipe.

recipe: recipes/demo_cpu.yaml
adapter.rank: [8, 32]
adapter.modules: [all, [q, v]]
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import yaml

from peft_whisper.errors import RecipeError

MOST = 200  # recipes of one sweep


def expand(path: Path) -> list[tuple[Path, tuple[str, ...]]] | None:
    """Each combination: the recipe's file and its `key.sub=value`; None where it is no sweep.

    Raises RecipeError for a sweep that can't be read.
    """
    root = _compose(path)
    if root is None:
        return None
    recipe: Path | None = None
    choices: list[list[str]] = []
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}: {key.value}"
        if key.value == "recipe":
            recipe = Path(_text(value, where))
        else:
            choices.append([f"{key.value}={one}" for one in _values(value, where)])
    combined = list(product(*choices))
    if len(combined) > MOST:
        raise RecipeError(f"{path}: {len(combined):,} combinations; expected at most {MOST}")
    assert recipe is not None  # or it would be no sweep
    return [(recipe, combination) for combination in combined]


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
