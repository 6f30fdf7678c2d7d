"""YAML text and overrides -> one validated Recipe, or every mistake in them at once.

Scalars follow YAML 1.2's core schema where PyYAML follows 1.1: `1e-5` is a number, `no` is
Norwegian, `010` is ten. Anchors, aliases and tags are refused: a recipe is plain data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peft_whisper.errors import RecipeError
from peft_whisper.masking import masked
from peft_whisper.recipe import Recipe, leaves, settings
from peft_whisper.recipe_problems import Problem, problems_of, shown
from peft_whisper.recipe_rules import HUB_ONLY, KINDS, SPLITS, WITHOUT

LARGEST_BYTES = 50_000  # a recipe is a page of text
DEEPEST = 10  # levels; a recipe has four, and PyYAML takes minutes over thousands
KeyPath = tuple[str, ...]
Origin = tuple[int, str]  # order in the report, and "file:line" or the override
Where = Callable[[int], Origin]  # of a line, counted from 1

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


class _Loader(yaml.SafeLoader):
    """Leaves every plain scalar a text; `scalar` below decides what it is."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  # as PyYAML declares it


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `scalar` would read as something else."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = isinstance(scalar(text), str) and text.isprintable()
    style = None if is_plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)


@dataclass
class _Draft:
    """A recipe being read: its tree, where each key was written, and what was wrong."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: KeyPath) -> Origin:
        """Where the key stands, or else the nearest section around it."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def report(self, path: KeyPath, what: str, at: Origin | None = None) -> None:
        order, where = at or self.origin(path)
        self.problems.append(Problem(order, where, ".".join(path), what))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply overrides (`key.sub=value`), validate.

    An override of one member of a choice (updates or epochs; hub, folder, manifest, parquet or
    from_train; adapter.method=none) takes the place of the file's other members.

    Raises RecipeError with every problem found, each with file and line and what was expected.
    """
    path = Path(path)
    where: Where = lambda line: (line, f"{path}:{line}")  # noqa: E731
    draft = _Draft(origins={(): where(1)})
    root = _compose(_read(path), where, draft)
    if root is not None:
        draft.tree = _section(root, (), draft, where)
    is_read = isinstance(root, yaml.MappingNode) or not draft.problems
    for number, override in enumerate(overrides):
        _override(override, LARGEST_BYTES + number, draft)
    draft.tree.setdefault("name", _name_of(path))
    recipe, problems = problems_of(draft.tree) if is_read else (None, [])
    for key, what in [*problems, *_secrets(draft.tree)]:
        draft.report(key, what)
    if draft.problems or recipe is None:
        raise RecipeError(_listed(path, draft.problems))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML that `load_recipe` reads back to the same recipe."""
    return yaml.dump(settings(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _secrets(tree: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """A complaint for each value that looks like a token or has a password in it."""
    for key, value in leaves(tree):
        if masked(str(value)) != str(value):
            yield (
                tuple(key.split(".")),
                "holds a token or a password, and a recipe is copied into the run's folder; use "
                "`hf auth login` or the environment, for instance HF_TOKEN",
            )


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise RecipeError(
                f"{path}: {path.stat().st_size:,} bytes is no recipe; "
                f"expected at most {LARGEST_BYTES:,}"
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        meant = _meant(path) if isinstance(error, FileNotFoundError) else None
        hint = (
            f"; did you mean {meant}?"
            if meant
            else ". `peft-whisper recipes` lists the recipes that ship."
        )
        raise RecipeError(f"{path}: {reason}{hint}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error


def _meant(path: Path) -> Path | None:
    """The recipe whose name was written without .yaml, or without its folder."""
    name = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    near = (Path(f"{path}.yaml"), Path("recipes", name))
    return next((file for file in near if os.path.isfile(file)), None)  # raises never


def _compose(text: str, where: Where, draft: _Draft) -> yaml.Node | None:
    """YAML text -> nodes, which know their lines; None, and a problem, where it can't be read."""
    readable = True
    try:
        for line, what, goes_on in _beyond_plain_data(text):
            draft.report((), what, where(line))
            readable = readable and goes_on
        return yaml.compose(text, Loader=_Loader) if readable else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        said = error.problem or error.context or "unreadable"
        hint = "; indent with spaces, not tabs" if "'\\t'" in said else ""
        draft.report((), f"not YAML: {said}{hint}", where(line))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        draft.report((), f"not YAML: {str(error).splitlines()[0]}", where(line))
    return None


def _beyond_plain_data(text: str) -> Iterator[tuple[int, str, bool]]:
    """Line, complaint, and whether one may read on, for all that a recipe has no use for."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if getattr(event, "anchor", None):  # an alias has one too
            is_alias = isinstance(event, yaml.AliasEvent)
            refused = "anchors (&) and aliases (*) are refused; write the value itself"
            yield line, refused, not is_alias
        if tag := getattr(event, "tag", None):
            yield line, f"tags are refused, found {tag}; write the value alone", True
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            yield line, f"nested too deeply; expected at most {DEEPEST} levels", False
            return


def _section(node: yaml.Node, path: KeyPath, draft: _Draft, where: Where) -> dict[str, Any]:
    """A mapping node's values by key; what is wrong in it is reported and left out."""
    if not isinstance(node, yaml.MappingNode):
        draft.report(path, f"expected keys and values, found {shown(_plain(node))}")
        return {}
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        here = where(key_node.start_mark.line + 1)
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            draft.report(path, "a key must be a word", here)
            continue
        full = (*path, key)
        if key in found:
            draft.report(full, f"is given twice; first at {draft.origins[full][1]}", here)
        else:
            draft.origins[full] = here
            found[key] = _value(value_node, full, draft, where)
    return found


def _value(node: yaml.Node, path: KeyPath, draft: _Draft, where: Where) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _section(node, path, draft, where)
    return _plain(node)


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return {str(key.value): _plain(value) for key, value in node.value}


def scalar(text: str) -> Any:
    """Read a plain (unquoted) scalar by YAML 1.2's core schema."""
    if text.lower() in _WORDS and text in (text.lower(), text.title(), text.upper()):
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text) and len(text) < 100:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _override(text: str, order: int, draft: _Draft) -> None:
    """Apply one `key.sub=value` to the draft."""
    here = (order, f"override {shown(text)}")
    where: Where = lambda line: here  # noqa: E731
    dotted, equals, value = text.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path):
        draft.report((), "expected key.sub=value", here)
        return
    node = _compose(value, where, draft) if value.strip() else None
    if node is None and value.strip():
        return
    section = draft.tree
    for key in path[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            draft.report(path, f"{key} holds a value, not a section", here)
            return
    draft.origins[path] = here
    section[path[-1]] = None if node is None else _value(node, path, draft, where)
    for rival in _displaced(path, section[path[-1]]):
        section.pop(rival, None)


def _displaced(path: KeyPath, value: Any) -> Iterator[str]:
    """Keys beside `path` that can't stand together with its new value."""
    if value is None:
        return
    if path in (("training", "updates"), ("training", "epochs")):
        yield "epochs" if path[-1] == "updates" else "updates"
    elif len(path) == 3 and path[0] == "data" and path[1] in SPLITS and path[2] in KINDS:
        yield from (kind for kind in KINDS if kind != path[2])
        yield from HUB_ONLY if path[2] != "hub" else ()
        yield from ("columns",) if path[2] == "from_train" else ()
    elif path == ("adapter", "method"):
        yield from WITHOUT.get(str(value), ())


def _name_of(path: Path) -> str:
    """The file's stem as a run's name."""
    name = re.sub(r"[^a-z0-9_-]+", "_", path.stem.lower()).lstrip("_-")
    return name[:64].rstrip("_") or "recipe"


def _listed(path: Path, problems: Sequence[Problem]) -> str:
    different = sorted(set(problems))
    count = f"{len(different)} problem" + "s" * (len(different) != 1)
    lines = [str(problem) for problem in different]
    return "\n".join([f"{path}: {count}", *lines])
