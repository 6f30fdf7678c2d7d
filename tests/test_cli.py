"""What a user types first: help, version, recipes, schema; fast, and clear when it is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = ("cli", "train", "evaluate", "explore", "plan", "merge", "demo", "transcribe")
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "matplotlib"}


def python(*arguments: str, folder: Path = REPOSITORY, expect: int = 0):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("name", MODULES)
def test_help_teaches_and_imports_nothing_heavy(name: str) -> None:
    done = python("-X", "importtime", "-m", f"peft_whisper.{name}", "--help")
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    assert len(rows) > 50
    heavy = {module.split(".")[0] for _, module in rows} & HEAVY
    assert not heavy, f"--help of {name} imports {heavy}"
    seconds = sum(int(own) for own, _ in rows) / 1e6
    print(f"{name} --help: {seconds:.2f} s of imports")
    assert seconds < 1.0
    assert "usage:" in done.stdout
    assert len(done.stdout.splitlines()) > 8


def test_a_wrong_recipe_is_refused_in_under_a_second_of_imports(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("base: {modle: x}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "peft_whisper.train", "bad.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean model?" in done.stderr
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    assert not {module.split(".")[0] for _, module in rows} & HEAVY
    assert sum(int(own) for own, _ in rows) / 1e6 < 1.0
    assert not (tmp_path / "outputs").exists()


def test_a_misspelt_command_names_those_that_exist() -> None:
    done = python("-m", "peft_whisper.cli", "trian", expect=2)
    for command in ("train", "evaluate", "explore", "merge", "recipes", "schema"):
        assert command in done.stderr


def test_recipes_are_listed_and_copied(tmp_path: Path) -> None:
    listed = python("-m", "peft_whisper.cli", "recipes", folder=tmp_path).stdout
    names = [line.split()[0] for line in listed.splitlines()]
    assert names == [
        "decoder_a10",
        "demo_cpu",
        "demo_hub",
        "full_8bit_a10",
        "full_h100",
        "lora_a10",
        "lora_int8_a10",
        "lora_turbo_a10",
        "qlora_t4",
    ]
    assert all(len(line.split()) > 5 for line in listed.splitlines())
    python("-m", "peft_whisper.cli", "recipes", "lora_a10", folder=tmp_path)
    copied = (tmp_path / "lora_a10.yaml").read_bytes()
    assert copied == (REPOSITORY / "recipes" / "lora_a10.yaml").read_bytes()
    (tmp_path / "lora_a10.yaml").write_text("mine", encoding="utf-8")
    refused = python("-m", "peft_whisper.cli", "recipes", "lora_a10", folder=tmp_path, expect=2)
    assert "--to" in refused.stderr
    assert (tmp_path / "lora_a10.yaml").read_text(encoding="utf-8") == "mine"
    unknown = python("-m", "peft_whisper.cli", "recipes", "lora_a11", folder=tmp_path, expect=2)
    assert "lora_a10" in unknown.stderr


def test_the_schema_is_printed_or_written(tmp_path: Path) -> None:
    printed = python("-m", "peft_whisper.cli", "schema").stdout
    python("-m", "peft_whisper.cli", "schema", "--to", "made.json", folder=tmp_path)
    schema = json.loads(printed)
    assert schema == json.loads((tmp_path / "made.json").read_text(encoding="utf-8"))
    assert set(schema["required"]) == {"base", "data", "training", "evaluation"}


def test_an_installed_package_brings_its_recipes(tmp_path: Path) -> None:
    built = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    python(*built, str(tmp_path), str(REPOSITORY))
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"peft_whisper/recipes/{path.name}" for path in REPOSITORY.glob("recipes/*.yaml")}
    assert len(shipped) == 9
    assert shipped <= names
    modules = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "peft_whisper").rglob("*.py")
    }
    assert len(modules) > 40
    assert modules <= names
