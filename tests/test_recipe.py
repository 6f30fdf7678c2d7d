"""A recipe is right as a whole, or it is refused with all its mistakes, each at its line."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from peft_whisper.errors import RecipeError
from peft_whisper.languages import Language
from peft_whisper.recipe import Recipe, recipe_hash, recipe_schema, settings
from peft_whisper.recipe_rules import KINDS
from peft_whisper.recipe_yaml import dump_recipe, load_recipe, scalar

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
Path_ = tuple[str, ...]

SMALL = """\
base: {model: openai/whisper-tiny}
data:
  train: {manifest: train.jsonl}
  validation: {from_train: 0.1}
  test: {manifest: test.jsonl}
training:
  epochs: 3
  learning_rate: 1e-5
evaluation: {every: 10}
"""
CACHED = ("training.frozen_cache=disk", "adapter.encoder_layers=none")
HUB = {
    "hub": "someone/speech",
    "config": "no",
    "split": "train",
    "revision": "abc",
    "streaming": "true",
    "limit": "9",
    "columns": {"audio": "sound", "text": "words", "sha256": "sum"},
}
FULL: dict[str, Any] = {  # every key but the rivals of those given; values as YAML writes them
    "name": "full",
    "seed": "7",
    "output": "outputs",
    "track": "tensorboard",
    "base": {
        "model": "openai/whisper-tiny",
        "revision": "main",
        "license": "apache-2.0",
        "dtype": "bfloat16",
        "quantize": "nf4",
    },
    "data": {
        "train": HUB,
        "validation": {"manifest": "v.jsonl", "limit": "9"},
        "test": {"from_train": "0.25"},
        "language": "no",
        "task": "translate",
        "timestamps": "0.5",
        "channel": "first",
        "max_rejected": "3",
        "note": "read aloud",
        "license": "cc-by-4.0",
        "attribution": "read by many",
        "workers": "2",
    },
    "adapter": {
        "method": "lora",
        "rank": "16",
        "alpha": "010",
        "rank_stabilized": "true",
        "start": "random",
        "dropout": "0.1",
        "encoder_layers": "top 8",
        "decoder_layers": "0-7",
        "modules": "[q, v]",
    },
    "context": {
        "margin_positions": "50",
    },
    "training": {
        "updates": "100",
        "batch": "8",
        "accumulation": "2",
        "micro_audio_s": "120",
        "precision": "bf16",
        "attention": "tiled",
        "optimizer": "adamw8bit",
        "learning_rate": "1e-5",
        "up_ratio": "4",
        "weight_decay": "0.01",
        "schedule": "linear",
        "warmup": "5",
        "max_grad_norm": "0.5",
        "recompute": "2/3",
        "frozen_cache": "none",
        "compile": "false",
    },
    "evaluation": {
        "every": "20",
        "metric": "cer",
        "patience": "4",
        "batch": "4",
        "normalizer": "basic",
        "bootstrap": "500",
        "max_tokens": "100",
    },
    "checkpoints": {"keep_last": "3", "minutes": "5"},
}


def written(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(folder: Path, text: str, *overrides: str) -> Recipe:
    return load_recipe(written(folder, text), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the report, without the folder's name; the first one is the count."""
    with pytest.raises(RecipeError) as caught:
        loaded(folder, text, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def rendered(tree: dict[str, Any], depth: int = 0) -> list[str]:
    """The tree as block YAML, a key per line."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{'  ' * depth}{key}:", *rendered(value, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{key}: {value}")
    return lines


def text_of(tree: dict[str, Any]) -> str:
    return "\n".join(rendered(tree)) + "\n"


def line_of(tree: dict[str, Any], path: Path_) -> int:
    """Line of the key at `path` in `text_of(tree)`."""
    line, node = 0, tree
    for part in path:
        for key, value in node.items():
            line += 1
            if key == part:
                node = value
                break
            line += len(rendered(value)) if isinstance(value, dict) else 0
    return line


def at(tree: dict[str, Any], path: Path_) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def section_in(annotation: Any) -> type[BaseModel] | None:
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def keys(model: type[BaseModel] = Recipe, path: Path_ = ()) -> Iterator[tuple[Path_, FieldInfo]]:
    """Every key of the recipe with its field, sections included."""
    for name, field in model.model_fields.items():
        yield (*path, name), field
        if inner := section_in(field.annotation):
            yield from keys(inner, (*path, name))


KEYS = dict(keys())


def full_with(path: Path_) -> dict[str, Any]:
    """FULL, changed where that is needed for the key at `path` to stand in it."""
    tree = deepcopy(FULL)
    if path[0] == "data" and len(path) > 2:
        if path[2] in KINDS and path[2] != "hub":
            value = "0.25" if path[2] == "from_train" else "somewhere"
            tree["data"][path[1]] = {path[2]: value}
            if path[2] == "from_train":  # train itself can't be cut from train
                tree["data"]["train"] = deepcopy(HUB)
        else:
            tree["data"][path[1]] = deepcopy(HUB)
    if path == ("training", "epochs"):
        del tree["training"]["updates"]
        tree["training"]["epochs"] = "2"
    return tree


def impossible(path: Path_) -> bool:
    return path == ("data", "train", "from_train")


LEAVES = [path for path, f in KEYS.items() if not section_in(f.annotation) and not impossible(path)]
SECTIONS = [path for path, f in KEYS.items() if section_in(f.annotation)]


def options(annotation: Any) -> tuple[Any, ...]:
    """Members of a union, without None."""
    members = get_args(annotation)
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return tuple(one for one in members if one is not type(None)) if is_union else (annotation,)


# Values of YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e+3", -1500.0),
        ("010", 10),
        ("-3", -3),
        ("+3", 3),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("false", False),
        ("tRue", "tRue"),
        ("~", None),
        ("NULL", None),
        ("", None),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        (".", "."),
        ("1e", "1e"),
        ("٣", "٣"),
    ],
)
def test_plain_scalars_are_read_by_yaml_1_2(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_every_language_code_may_stand_unquoted(tmp_path):
    codes = get_args(Language)
    assert len(codes) == 100
    assert "no" in codes
    for code in codes:
        assert loaded(tmp_path, SMALL, f"data.language={code}").data.language == code
    in_file = SMALL.replace("data:\n", "data:\n  language: no\n")
    assert loaded(tmp_path, in_file).data.language == "no"


def test_quoted_texts_stay_texts(tmp_path):
    text = SMALL + "name: '007'\noutput: \"1e5\"\n"
    recipe = loaded(tmp_path, text, 'data.note="null"', "base.revision='true'")
    assert (recipe.name, recipe.output) == ("007", "1e5")
    assert (recipe.data.note, recipe.base.revision) == ("null", "true")
    assert refusal(tmp_path, SMALL + 'seed: "1"\n')[1:] == [
        "r.yaml:10: seed: found '1', expected a valid integer"
    ]


def test_numbers_are_what_they_look_like(tmp_path):
    recipe = loaded(tmp_path, SMALL + "seed: 010\n")
    assert recipe.training.learning_rate == 1e-5
    assert recipe.seed == 10
    assert recipe.training.epochs == 3.0
    assert type(recipe.training.epochs) is float


def test_the_files_name_is_the_runs_name_unless_one_is_given(tmp_path):
    for stem, name in [
        ("My run (2)", "my_run_2"),
        ("mein Rezept ä", "mein_rezept"),
        ("x" * 63 + " y", "x" * 63),
        ("_x", "x"),
        ("日本", "recipe"),
        ("010", "010"),
    ]:
        (tmp_path / f"{stem}.yaml").write_text(SMALL, encoding="utf-8")
        assert load_recipe(tmp_path / f"{stem}.yaml").name == name
    assert loaded(tmp_path, SMALL + "name: given\n").name == "given"


# Mistakes


def test_mistakes_of_every_kind_are_reported_together(tmp_path):
    text = """\
base: {modell: openai/whisper-tiny}
data:
  train: {manifest: a.jsonl, hub: someone/speech}
  validation: {from_train: 1.5}
  test: {manifest: t.jsonl}
  language: norwegian
adapter:
  rank: many
  rank: 8
training:
  updates: 10
  learning_rate: -1
  warmup: 20
metric: wer
"""
    assert refusal(tmp_path, text, "training.batsh=8") == [
        "r.yaml: 12 problems",
        "r.yaml:1: base.model: is missing: Hub id or local folder of the Whisper to tune.",
        "r.yaml:1: base.modell: unknown key; did you mean model?",
        "r.yaml:1: evaluation: is missing: How the model is judged.",
        "r.yaml:3: data.train: expected exactly one of hub, folder, manifest, parquet; "
        "found hub and manifest",
        "r.yaml:4: data.validation.from_train: found 1.5, expected less than 1",
        "r.yaml:6: data.language: found 'norwegian', expected one of 100 Whisper codes, "
        "for instance no, nn, ne",
        "r.yaml:8: adapter.rank: found 'many', expected a valid integer",
        "r.yaml:9: adapter.rank: is given twice; first at r.yaml:8",
        "r.yaml:12: training.learning_rate: found -1, expected greater than 0",
        "r.yaml:13: training.warmup: warmup (20) must be less than updates (10), "
        "or the learning rate never arrives",
        "r.yaml:14: metric: unknown key here; did you mean evaluation.metric?",
        "override 'training.batsh=8': training.batsh: unknown key; did you mean batch?",
    ]


def misspellings(name: str) -> list[str]:
    """One letter more, one twice, one left out, two swapped."""
    middle = len(name) // 2
    swapped = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    dropped = name[:middle] + name[middle + 1 :]
    wrong = [name + "s", name[0] + name, dropped if len(name) > 4 else name + "e", swapped]
    return [one for one in wrong if one != name]


def wrong_types(field: FieldInfo) -> list[str]:
    """Values of types that the field doesn't have."""
    kinds = {type(one) if get_origin(one) is None else Literal for one in options(field.annotation)}
    members = options(field.annotation)
    if members[0] is str or Literal in kinds:
        return ["[1, 2]", "{a: 1}", "true", "17"]
    if members[0] is bool:
        return ["yes", "1", '"true"']
    whole = ["2.5"] if members[0] is int else []
    return ["many", '"3"', "true", "1_000", *whole]


def out_of_range(field: FieldInfo) -> list[str]:
    """The nearest values that its bounds refuse."""
    values = []
    for bound in field.metadata:
        for name, step in (("ge", -1), ("le", 1), ("gt", 0), ("lt", 0)):
            if (limit := getattr(bound, name, None)) is not None:
                values.append(f"{limit + step}")
        if getattr(bound, "min_length", None):
            values.append('""')
        if getattr(bound, "pattern", None):
            values.append('"Not So"')
    if get_origin(options(field.annotation)[0]) is Literal:
        values.append("nonsense")
    return values


def replaced(text: str, line: int, new: str) -> str:
    lines = text.splitlines()
    indent = lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]
    lines[line - 1] = "\n".join(indent + one for one in new.split("\n"))
    return "\n".join(lines) + "\n"


def mutants() -> Iterator[tuple[str, str, str]]:
    """(kind, text, beginning of the line that must be reported) for every key of the recipe."""
    for path in LEAVES:
        tree, key, dotted = full_with(path), path[-1], ".".join(path)
        text, line, value = text_of(tree), line_of(tree, path), at(tree, path)
        for wrong in misspellings(key)[::3]:
            where = f"r.yaml:{line}: {'.'.join((*path[:-1], wrong))}: unknown key"
            yield f"misspelt {key}", replaced(text, line, f"{wrong}: {value}"), where
        where = f"r.yaml:{line}: {dotted}: found "
        for wrong in wrong_types(KEYS[path]):
            yield f"type {wrong}", replaced(text, line, f"{key}: {wrong}"), where
        for wrong in out_of_range(KEYS[path]):
            yield f"range {wrong}", replaced(text, line, f"{key}: {wrong}"), where
        yield (
            "twice",
            replaced(text, line, f"{key}: {value}\n{key}: {value}"),
            f"r.yaml:{line + 1}: {dotted}: is given twice",
        )
        if KEYS[path].is_required() and path != ("name",):
            section = line_of(tree, path[:-1])
            yield (
                "missing",
                "".join(text.splitlines(True)[: line - 1] + text.splitlines(True)[line:]),
                f"r.yaml:{section}: {dotted}: is missing",
            )
        last = len(text.splitlines()) + 1
        if len(path) > 1 and key not in FULL:
            yield "misplaced", f"{text}{key}: {value}\n", f"r.yaml:{last}: {key}: unknown key"
    for path in SECTIONS:
        tree = full_with((*path, "?"))
        line, dotted = line_of(tree, path), ".".join(path)
        for wrong in ("", "17", "[a, b]", "text"):
            broken = deepcopy(tree)
            at(broken, path[:-1])[path[-1]] = wrong
            yield f"section {wrong}", text_of(broken), f"r.yaml:{line}: {dotted}: found "


def test_two_hundred_mutants_and_more_are_all_refused_at_their_line(tmp_path):
    refused, kinds, made = 0, set(), 0
    for kind, text, where in mutants():
        made += 1
        try:
            said = refusal(tmp_path, text)
        except pytest.fail.Exception:
            pytest.fail(f"{kind} was accepted, expected {where}")
        assert any(line.startswith(where) for line in said[1:]), (kind, where, said)
        refused += 1
        kinds.add(kind.split()[0])
    print(f"{refused}/{made} mutated recipes refused at the right line")
    assert made >= 200
    assert kinds == {"misspelt", "type", "range", "twice", "missing", "misplaced", "section"}


def test_what_the_mutants_were_made_from_is_accepted(tmp_path):
    seen = {path for path in LEAVES if loaded(tmp_path, text_of(full_with(path)))}
    assert seen == set(LEAVES)
    assert len(seen) >= 75


def test_nearly_every_misspelling_is_told_what_was_meant(tmp_path):
    right, asked = 0, 0
    for path in LEAVES:
        tree = full_with(path)
        text, line = text_of(tree), line_of(tree, path)
        for wrong in misspellings(path[-1])[1:3]:
            said = refusal(tmp_path, replaced(text, line, f"{wrong}: {at(tree, path)}"))
            asked += 1
            right += any(one.endswith(f"unknown key; did you mean {path[-1]}?") for one in said)
    print(f"{right}/{asked} misspelt keys got the right suggestion")
    assert right >= 0.95 * asked


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.train={from_train: 0.5}"], "data.train.from_train: train can't be cut from itself"),
        (["data.test={}"], "data.test: expected exactly one of hub,.*found none of them"),
        (["data.test={folder: a, parquet: b}"], "data.test: .*found folder and parquet"),
        (["data.test.split=test"], "data.test.split: has no effect beside manifest"),
        (["data.test.config=de"], "data.test.config: has no effect beside manifest"),
        (["data.test.revision=de"], "data.test.revision: has no effect beside manifest"),
        (["data.test.streaming=true"], "data.test.streaming: has no effect beside manifest"),
        (["data.validation.columns.text=t"], "data.validation.columns: has no .* from_train"),
        (["base.model=https://hf.co/x"], "base.model: expected a Hub id .*found an address"),
        (["base.model=a/x.en", "data.language=de"], "data.language: a/x.en knows English only"),
        (["base.model=a/x.en/", "data.task=translate"], "data.task: a/x.en/ can't translate"),
        (["adapter={method: none, rank: 4}"], "adapter.rank: method: none trains every weight"),
        (["adapter={method: layernorm, rank: 4}"], "adapter.rank: method: layernorm has no matri"),
        (["adapter={method: dora, start: pissa}"], "adapter.start: method: dora is not PiSSA"),
        (["adapter={method: adalora, start: pissa}"], "adapter.start: method: adalora begins and"),
        (
            ["adapter.method=adalora", "base.quantize=nf4"],
            "adapter.method: adalora needs the base's",
        ),
        (["adapter.method=dora", "base.quantize=nf4"], "adapter.method: dora needs the base's"),
        (["adapter.start=pissa", "base.quantize=int8"], "adapter.start: pissa needs the base's"),
        (
            ["adapter.method=layernorm", "training.up_ratio=4"],
            "training.up_ratio: .*layernorm has none",
        ),
        (["adapter={encoder_layers: none, decoder_layers: none}"], "adapter: no layer is left"),
        (["adapter.encoder_layers=7-0"], "adapter.encoder_layers: .*did you mean 0-7"),
        (["training={learning_rate: 1, updates: 2, epochs: 1}"], "training: .*updates and epochs"),
        (["training={learning_rate: 1e-5}"], "training: .*found neither"),
        (["training.updates=5", "training.warmup=5"], "training.warmup: .*less than updates"),
        (["base.dtype=bfloat16"], "base.dtype: .*write training.precision: bf16"),
        (["base.dtype=float16", "training.precision=bf16"], "base.dtype: .*precision: fp16"),
        (["base.dtype=float16", "adapter={method: none}"], "base.dtype: .*write bfloat16 or"),
        (
            ["base.dtype=bfloat16", "training.precision=bf16", "adapter={method: none}"],
            "training.optimizer: .*write adamw8bit",
        ),
        (["base.quantize=nf4", "adapter={method: none}"], "base.quantize: nf4 weights are frozen"),
        (["training.recompute=3/2"], "training.recompute: expected a share .*found 3/2"),
        ([*CACHED, "adapter={method: none}"], "training.frozen_cache: .*no layer is frozen"),
        ([*CACHED, "adapter.encoder_layers=0-2"], "training.frozen_cache: .*encoder_layers is 0-2"),
        ([*CACHED, "adapter={}"], "training.frozen_cache: .*encoder_layers is all; write none"),
        (
            ["training.recompute=cheap", "training.compile=true"],
            "training.compile: .*write training.recompute: none",
        ),
        (["base.quantize=nf4", "training.compile=true"], "training.compile: .*base.quantize"),
        (["training.attention=auto", "training.compile=true"], "training.compile: .*attention"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path, overrides, said):
    lines = refusal(tmp_path, SMALL, *overrides)
    assert any(re.match(rf"(override '.*'|r\.yaml:\d+): {said}", line) for line in lines), lines


@pytest.mark.parametrize(
    "overrides",
    [
        ["base.model=a/x.en", "data.language=en"],
        ["adapter={method: none}"],
        ["adapter={method: layernorm}"],
        ["adapter={method: dora, rank: 4}", "training.up_ratio=4"],
        ["adapter={start: pissa, rank_stabilized: true}"],
        ["adapter.encoder_layers=none"],
        ["adapter.encoder_layers=5-5"],
        ["context.margin_positions=1500"],
        ["training.updates=6", "training.warmup=5"],
        ["base.dtype=bfloat16", "training.precision=bf16"],
        [
            "base.dtype=bfloat16",
            "adapter={method: none}",
            "training.precision=bf16",
            "training.optimizer=paged_adamw8bit",
        ],
        ["training.recompute=1/1"],
        CACHED,
        [*CACHED, "adapter.encoder_layers=1-3", "training.frozen_cache=memory"],
        ["data.test={hub: a/b, split: test}"],
    ],
)
def test_keys_that_just_agree_are_accepted(tmp_path, overrides):
    assert loaded(tmp_path, SMALL, *overrides)


BOMB = 'a: &a ["x"]\n' + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (b"", 1, "base: is missing"),
        (b"# nothing\n", 1, "base: is missing"),
        (b"- a\n- b\n", 1, "expected keys and values, found ['a', 'b']"),
        (b"just text\n", 1, "expected keys and values, found 'just text'"),
        (b"base:\n\tmodel: x\n", 2, "not YAML: .*indent with spaces, not tabs"),
        (b"base: {model: x\n", 2, "not YAML"),
        (SMALL.encode() + b"---\nseed: 2\n", 10, "not YAML: .*another document"),
        (SMALL.encode() + b"note: \0\n", 10, "not YAML: unacceptable character #x0000"),
        (SMALL.encode() + b"? [a]\n: b\n", 10, "a key must be a word"),
        (b"seed: &x 1\n" + SMALL.encode(), 1, "anchors"),
        (b"seed: 1\noutput: *x\n", 2, "anchors (&) and aliases (*) are refused"),
        (BOMB.encode(), 9, "anchors"),
        (b"base: &a {model: *a}\n", 1, "anchors"),
        (b"<<: {seed: 1}\n" + SMALL.encode(), 1, "<<: unknown key"),
        (SMALL.encode() + b"output: !!str 5\n", 10, "tags are refused"),
        (SMALL.encode() + b"output: ! x\n", 10, "tags are refused"),
        (SMALL.encode() + b"adapter:\n  modules: [!!str q]\n", 11, "tags are refused"),
        (SMALL.encode() + b"!!str output: x\n", 10, "tags are refused"),
        (b"--- !!map\n" + SMALL.encode(), 1, "tags are refused"),
        (b"!!python/object/apply:os.system ['true']\n", 1, "tags are refused"),
        (SMALL.encode() + b"output: " + b"[" * 40_000, 10, "nested too deeply"),
        (SMALL.encode() + b"x: " + b"{a: " * 9_000, 10, "nested too deeply"),
        (SMALL.encode() + b"name: " + b"x" * 40_000, 10, "name: found 'xxx.*[.]{3}, expected a-z"),
        (SMALL.encode() + b"seed: " + b"9" * 4_400, 10, "seed: found inf"),
    ],
)
def test_what_is_no_recipe_is_refused_at_its_line_and_at_once(tmp_path, content, line, said):
    (tmp_path / "r.yaml").write_bytes(content)
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert time.process_time() - began < 1.0
    report = str(caught.value).splitlines()
    said = said if ".*" in said else re.escape(said)
    where = re.escape(f"{tmp_path}/r.yaml:{line}: ")
    assert any(re.match(where + said, one) for one in report), report
    assert max(map(len, report)) < 400
    if "missing" not in said:  # no consequences of the one mistake beside it
        assert "is missing" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# " + b"x" * 2_000_000, "2,000,002 bytes is no recipe; expected at most 50,000"),
        (SMALL.encode("utf-16"), "byte 0 is not UTF-8; save the file as UTF-8"),
        (b"output: \xe9\n", "byte 8 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_file_that_is_no_text_of_a_page_is_refused_whole(tmp_path, content, said):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert str(caught.value) == f"{tmp_path}/r.yaml: {said}"


def test_a_missing_file_a_folder_and_an_impossible_name_are_refused(tmp_path):
    for path, said in [
        (tmp_path / "none.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path("a\0b"), "embedded null byte"),
    ]:
        with pytest.raises(RecipeError, match=f"{said}. `peft-whisper recipes` lists"):
            load_recipe(path)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("recipes/lora", "recipes/lora.yaml"),
        ("lora", "recipes/lora.yaml"),
        ("lora.yaml", "recipes/lora.yaml"),
        ("own", "own.yaml"),
        ("recipes/none", None),
        ("x" * 252, None),  # its name with .yaml is longer than a file's can be
    ],
)
def test_a_recipe_written_without_its_ending_or_folder_is_pointed_at(
    tmp_path, monkeypatch, written, meant
):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "lora.yaml").write_text(SMALL)
    (tmp_path / "own.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    hint = f"; did you mean {meant}?" if meant else ". `peft-whisper recipes` lists the recipes"
    with pytest.raises(RecipeError) as caught:
        load_recipe(written)
    assert str(caught.value).startswith(f"{written}: No such file or directory{hint}")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    (tmp_path / "r.yaml").write_bytes(SMALL.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_recipe(tmp_path / "r.yaml") == loaded(tmp_path, SMALL)


# Overrides


def test_overrides_replace_add_and_the_last_one_wins(tmp_path):
    recipe = loaded(
        tmp_path,
        SMALL,
        "training.learning_rate=1e-4",
        "seed=2",
        "seed=3",
        "adapter={rank: 4, modules: [v, q]}",
        "adapter.alpha=8",
        "data.note= with = and spaces ",
        "evaluation.every=20",
    )
    assert recipe.training.learning_rate == 1e-4
    assert recipe.seed == 3
    assert (recipe.adapter.rank, recipe.adapter.alpha) == (4, 8)
    assert recipe.data.note == "with = and spaces"
    assert recipe.evaluation.every == 20


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.batsh=3", "training.batsh: unknown key; did you mean batch?"),
        ("bath=3", "bath: unknown key here|bath: unknown key"),
        ("seed", "expected key.sub=value"),
        ("=3", "expected key.sub=value"),
        ("data..test=3", "expected key.sub=value"),
        ("seed=x", "seed: found 'x', expected a valid integer"),
        ("seed=", "seed: found None, expected a valid integer"),
        ("seed=-1", "seed: found -1, expected greater than or equal to 0"),
        ("seed=[", "not YAML"),
        ("seed=!!int 3", "tags are refused"),
        ("seed=&a 3", "anchors (&) and aliases"),
        ("seed.x=3", "seed.x: seed holds a value, not a section"),
        ("name=007", "name: found 7, expected a valid string"),
        ("context={margin_positions: 8, margin_positions: 9}", "margin_positions: is given twice"),
        ("output=" + "[" * 5_000, "nested too deeply"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, said):
    report = refusal(tmp_path, SMALL + "seed: 1\n", override)
    assert report[0] == "r.yaml: 1 problem"
    assert report[1].startswith(f"override {override[:40]!r}"[:40])
    assert any(one in report[1] for one in said.split("|"))
    assert len(report[1]) < 300


def test_wrong_overrides_are_reported_after_the_files_own_mistakes(tmp_path):
    report = refusal(tmp_path, SMALL + "seed: x\n", "sed=1", "training.warmup=x")
    assert [line.split(":")[0] for line in report[1:]] == [
        "r.yaml",
        "override 'sed=1'",
        "override 'training.warmup=x'",
    ]
    broken = refusal(tmp_path, "base: [\n", "seed")  # even where the file can't be read
    assert [line.split(":")[0] for line in broken[1:]] == ["r.yaml", "override 'seed'"]


def test_an_override_of_updates_or_epochs_displaces_the_other(tmp_path):
    training = loaded(tmp_path, SMALL, "training.updates=9").training
    assert (training.updates, training.epochs) == (9, None)
    back = loaded(tmp_path, SMALL, "training.updates=9", "training.epochs=2").training
    assert (back.updates, back.epochs) == (None, 2.0)
    assert loaded(tmp_path, SMALL, "training.updates=null").training.epochs == 3.0


def test_an_override_of_a_source_displaces_what_the_file_said_about_it(tmp_path):
    text = text_of(FULL)
    manifest = loaded(tmp_path, text, "data.train.manifest=m.csv").data.train
    assert (manifest.manifest, manifest.hub, manifest.config) == ("m.csv", None, None)
    assert (manifest.limit, manifest.columns.audio) == (9, "sound")
    hub = loaded(tmp_path, text, "data.validation.hub=a/b", "data.validation.split=dev").data
    assert (hub.validation.hub, hub.validation.split) == ("a/b", "dev")
    assert hub.validation.manifest is None
    cut = loaded(tmp_path, text, "data.test.hub=a/b", "data.test.columns.text=t")
    assert cut.data.test.columns.text == "t"
    cut = loaded(
        tmp_path, text, "data.test.hub=a/b", "data.test.columns.text=t", "data.test.from_train=0.3"
    )
    assert (cut.data.test.from_train, cut.data.test.hub) == (0.3, None)


def test_training_every_weight_displaces_the_adapters_sizes(tmp_path):
    overrides = ["adapter.method=none", "base.quantize=null", "training.up_ratio=1"]
    recipe = loaded(tmp_path, text_of(FULL), *overrides)
    assert settings(recipe)["adapter"] == {"method": "none"}
    report = refusal(tmp_path, text_of(FULL), *overrides, "adapter.rank=4")
    assert "adapter.rank: method: none trains every weight" in report[1]


# Round trip, hash, schema

# What a dump must quote: these look like numbers, words of YAML, or its punctuation.
TRICKY = ["007", "1e5", "null", "true", "no", "0x1f", "1_0", "12-30", "-", "~", "1.", "a: b", "# c"]
NAMES = st.one_of(
    st.sampled_from(["007", "1e5", "null", "true", "no", "0x1f", "1_0", "2024-01-01"]),
    st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True),
)
TEXTS = st.one_of(st.sampled_from(TRICKY), st.text(st.characters(codec="utf-8"), min_size=1))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    kind = st.sampled_from(["hub", "folder", "manifest", "parquet"])
    test = draw(st.one_of(kind, st.just("from_train")))
    rank = st.integers(1, 1280)
    modules = st.lists(st.sampled_from(["q", "k", "v", "out", "fc1"]), min_size=1, unique=True)
    lora = st.fixed_dictionaries(
        {"rank": rank, "dropout": st.floats(0, 0.99), "modules": st.just("all") | modules}
    )
    share = st.floats(0, 1, exclude_min=True, exclude_max=True)
    tree = {
        "name": draw(NAMES),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "output": draw(TEXTS),
        "base": {"model": draw(NAMES), "revision": draw(st.none() | TEXTS)},
        "data": {
            "train": {draw(kind): draw(TEXTS), "columns": {"text": draw(TEXTS)}},
            "validation": {"from_train": draw(share)},
            "test": {test: draw(share if test == "from_train" else TEXTS)},
            "note": draw(st.none() | TEXTS),
            "language": draw(st.none() | st.sampled_from(["no", "en", "yue"])),
        },
        "adapter": draw(st.just({"method": "none"}) | lora),
        "training": {
            draw(st.sampled_from(["updates", "epochs"])): draw(st.integers(1, 10_000)),
            "learning_rate": draw(st.floats(0, 0.1, exclude_min=True)),
        },
        "evaluation": {"every": draw(st.integers(1))},
    }
    return Recipe.model_validate(tree)


@given(recipes())
@hypothesis_settings(max_examples=100, deadline=None)
def test_a_dumped_recipe_loads_as_the_same(tmp_path_factory, recipe):
    path = written(tmp_path_factory.getbasetemp(), dump_recipe(recipe))
    again = load_recipe(path)
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


@pytest.mark.parametrize(
    "text",
    [
        *TRICKY,
        "a\nb",
        "\n",
        "\t",
        " x ",
        "\x85",
        "\u2028",
        "\ufeff",
        "\0",
        "'",
        '"',
        "\\",
        "!x",
        "&x",
    ],
)
def test_a_text_that_yaml_would_read_otherwise_survives_a_dump(tmp_path, text):
    tree = settings(loaded(tmp_path, SMALL))
    tree["data"]["note"] = tree["output"] = text
    recipe = Recipe.model_validate(tree)
    again = load_recipe(written(tmp_path, dump_recipe(recipe)))
    assert (again.data.note, again.output) == (text, text)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_recipe_loads_is_short_and_begins_with_its_command(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert load_recipe(written(tmp_path, dump_recipe(recipe))) == recipe
    assert len(text.splitlines()) <= 40
    command = f"# accelerate launch -m peft_whisper.train recipes/{path.name}"
    assert text.splitlines()[0] == command


def test_recipes_are_shipped():
    assert SHIPPED


def test_equal_meaning_has_one_hash(tmp_path):
    first = recipe_hash(loaded(tmp_path, SMALL))
    assert re.fullmatch("[0-9a-f]{64}", first)
    same = [
        "# a comment\n" + SMALL.replace("1e-5", "0.00001").replace("epochs: 3", "epochs: 3.0"),
        "\n".join(reversed(re.split(r"\n(?! )", SMALL))) + "\n",
        SMALL + "name: r\nseed: 1\nadapter: {rank: 32}\ncheckpoints: {}\ncontext: {}\n",
        SMALL + "adapter: {modules: [fc2, q, k, v, out, fc1]}\n",
        dump_recipe(loaded(tmp_path, SMALL)),
    ]
    assert {recipe_hash(loaded(tmp_path, text)) for text in same} == {first}
    assert recipe_hash(loaded(tmp_path, SMALL, "seed=1", "training.epochs=3")) == first
    ways = [f"adapter.modules=[{kinds}]" for kinds in ("q, v", "v, q")]
    assert len({recipe_hash(loaded(tmp_path, SMALL, way)) for way in ways}) == 1


def another(field: FieldInfo, value: str) -> str:
    """Another valid value for a field that holds `value`."""
    kind = options(field.annotation)[0]
    if get_origin(kind) is Literal:
        return next(str(one) for one in get_args(kind) if str(one) != value)
    if kind is bool:
        return "false" if value == "true" else "true"
    if kind is int:
        return str(int(value) + 1)
    if kind is float:
        return str(float(value) / 2)
    return {"top 8": "top 7", "0-7": "1-7", "2/3": "1/3"}.get(value, f"{value}x")


def test_every_key_changes_the_hash(tmp_path):
    hashes = set()
    for path in LEAVES:
        tree = full_with(path)
        before = recipe_hash(loaded(tmp_path, text_of(tree)))
        parent, overrides = at(tree, path[:-1]), []
        if path == ("adapter", "method"):  # which takes the adapter's sizes with it
            plain = ["base.quantize=null", "training.up_ratio=1", "seed=7"]
            overrides = ["adapter={method: none}", *plain]
        elif path == ("adapter", "start"):
            overrides = ["adapter.start=pissa", "base.quantize=null"]
        elif path == ("training", "precision"):
            overrides = ["training.precision=fp32", "base.dtype=float32"]
        elif path == ("training", "compile"):
            plain = ["training.recompute=none", "training.attention=torch", "base.quantize=null"]
            overrides = ["training.compile=true", *plain]
        else:
            parent[path[-1]] = another(KEYS[path], parent[path[-1]])
        after = recipe_hash(loaded(tmp_path, text_of(tree), *overrides))
        assert before != after, path
        hashes.add(after)
    print(f"{len(LEAVES)}/{len(LEAVES)} keys change the hash")
    assert len(hashes) == len(LEAVES)


def test_a_recipe_is_frozen_all_the_way_down(tmp_path):
    recipe = loaded(tmp_path, text_of(FULL))
    for path in KEYS:
        owner: Any = recipe
        for part in path[:-1]:
            owner = getattr(owner, part)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, path[-1], getattr(owner, path[-1]))
    assert recipe.adapter.modules == ("q", "v")
    assert hash(recipe) == hash(loaded(tmp_path, text_of(FULL)))


def test_a_recipe_made_in_code_is_held_to_the_same_rules():
    tree = {
        "name": "x",
        "base": {"model": "m"},
        "data": {key: {"manifest": key} for key in ("train", "validation", "test")},
        "training": {"updates": 1, "epochs": 1.0, "learning_rate": 0.001},
        "evaluation": {"every": 1},
    }
    with pytest.raises(ValidationError, match="training: expected exactly one of updates, epochs"):
        Recipe.model_validate(tree)
    del tree["training"]["epochs"]  # type: ignore[attr-defined]
    assert Recipe.model_validate(tree).training.updates == 1


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """The part of JSON Schema that a recipe's schema uses."""
    if "$ref" in schema:
        return accepts(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "const" in schema:
        return bool(value == schema["const"])
    if "anyOf" in schema:
        return any(accepts(one, value, root) for one in schema["anyOf"])
    types_ = {"string": str, "integer": int, "boolean": bool, "null": type(None), "array": list}
    types_ |= {"number": int | float, "object": dict}
    kind = types_[schema["type"]] if "type" in schema else object
    if not isinstance(value, kind) or (isinstance(value, bool) and schema.get("type") != "boolean"):
        return False
    if isinstance(value, dict):
        known, required = schema["properties"], schema.get("required", ())
        is_closed = schema["additionalProperties"] is False
        return (
            is_closed
            and set(required) <= set(value) <= set(known)
            and all(accepts(known[key], one, root) for key, one in value.items())
        )
    if isinstance(value, list):
        is_unique = not schema.get("uniqueItems") or len(set(value)) == len(value)
        is_long = len(value) >= schema.get("minItems", 0)
        return is_unique and is_long and all(accepts(schema["items"], v, root) for v in value)
    if isinstance(value, int | float):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        above = schema.get("exclusiveMinimum", value - 1)
        below = schema.get("exclusiveMaximum", value + 1)
        return low <= value <= high and above < value < below
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    is_long = not isinstance(value, str) or len(value) >= schema.get("minLength", 0)
    return is_long and value in schema.get("enum", [value])


def plain(node: yaml.Node | str) -> Any:
    """A recipe's text as an editor sees it: YAML 1.2 scalars in lists and mappings."""
    if isinstance(node, str):
        node = yaml.compose(node, Loader=yaml.BaseLoader)
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(one) for one in node.value]
    return scalar(node.value) if node.style is None else node.value


def test_the_schema_accepts_what_loads_and_refuses_what_does_not(tmp_path):
    schema = recipe_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    for path in SHIPPED:
        assert accepts(schema, plain(path.read_text(encoding="utf-8")), schema), path.name
    assert accepts(schema, plain(SMALL), schema)
    for path in LEAVES:
        assert accepts(schema, plain(text_of(full_with(path))), schema), path
    kinds = ("misspelt", "range", "misplaced", "missing")
    wrong = [(kind, text) for kind, text, _ in mutants() if kind.startswith(kinds)]
    refused = sum(not accepts(schema, plain(text), schema) for _, text in wrong)
    print(f"the schema refuses {refused}/{len(wrong)} of the mutants that editors can see")
    assert refused == len(wrong)


def test_every_key_is_described_for_editors():
    schema = recipe_schema()
    sections = [schema, *schema["$defs"].values()]
    assert len(sections) == 10
    for section in sections:
        assert section["additionalProperties"] is False
        assert section["description"]
        for key, field in section["properties"].items():
            assert field.get("description") or "$ref" in field, key
    assert "name" not in schema["required"]


# What it costs

LOADING = """
import sys, time
from peft_whisper.errors import RecipeError
from peft_whisper.recipe import recipe_hash
from peft_whisper.recipe_yaml import dump_recipe, load_recipe
recipe = load_recipe(sys.argv[1])
dump_recipe(recipe), recipe_hash(recipe)
try:
    load_recipe(sys.argv[1], ["seed=x"])
except RecipeError:
    heavy = {"torch", "transformers", "peft", "numpy", "datasets", "accelerate"} & set(sys.modules)
    print(time.process_time(), *sorted(heavy))
"""


def test_loading_and_refusing_wait_for_no_library(tmp_path):
    path = written(tmp_path, SMALL)
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, *heavy = done.stdout.split()
    print(f"a recipe is loaded, dumped and refused in {float(seconds):.2f} s of process time")
    assert heavy == []
    assert float(seconds) < 1.0
