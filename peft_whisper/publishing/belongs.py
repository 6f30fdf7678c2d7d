"""What of a folder belongs in a repository, and what kind of model it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from peft_whisper.errors import StateError
from peft_whisper.files import sha256
from peft_whisper.scoring.card_use import ADAPTER, CTRANSLATE2, MODEL, OPENAI, WHISPER_CPP

CARD, FACTS, CONFIG = "README.md", "peft_whisper.json", "adapter_config.json"
EXPORTED = "peft_whisper_export.json"  # in its place, of an exported model
ADAPTER_WEIGHTS = "adapter_model.safetensors"
RUN = ("recipe.yaml", "metrics.json", "environment.json")  # of the run, beside what it trained
SAMPLES = "samples/"
TRAINED = ("adapter", "model")  # in a run's folder


@dataclass(frozen=True)
class Kind:
    """A kind of model: what it is called, the file that tells it, and its own files."""

    name: str
    mark: str
    files: tuple[str, ...]


# The first whose mark is there; all are patterns.
KINDS = (
    Kind(ADAPTER, CONFIG, (CONFIG, ADAPTER_WEIGHTS)),
    Kind(CTRANSLATE2, "model.bin", ("model.bin", "config.json", "vocabulary.*")),
    Kind(WHISPER_CPP, "ggml*.bin", ("ggml*.bin",)),
    Kind(OPENAI, "*.pt", ("*.pt",)),
    Kind(
        MODEL, "config.json", ("config.json", "model*.safetensors", "model.safetensors.index.json")
    ),
)


@dataclass(frozen=True)
class Outgoing:
    """A file to send: what it is called in the repository, and where its bytes are."""

    path: str
    source: Path | bytes

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Of its content, as the Hub gives it for large files."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return sha256(self.source)

    @cached_property
    def blob(self) -> str:
        """Its SHA-1 as git has it, which the Hub gives for the other files."""
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Package:
    """A folder to publish: what it is, and the run that it came from, where that is known."""

    kind: Kind
    folder: Path
    run: Path | None
    facts: dict[str, Any]  # as peft_whisper.json has them

    @property
    def base(self) -> str:
        return str(self.facts["base"]["model"])

    @property
    def base_is_local(self) -> bool:
        """Whether training read the base from a folder: one of the Hub has a revision."""
        return self.facts["base"].get("revision") is None

    @property
    def name(self) -> str:
        """What the run is called, as far as that is known, or else the folder."""
        return str(self.facts.get("name") or (self.run or self.folder).resolve().name)

    def files(self) -> list[Path]:
        """Those of the folder that belong, in the order of their names."""
        return [path for path in _files(self.folder) if belongs(self.kind, path.name)]

    def left_out(self) -> list[str]:
        """Names of what lies in the folder and does not belong."""
        return [path.name for path in _files(self.folder) if not belongs(self.kind, path.name)]


def belongs(kind: Kind, path: str) -> bool:
    """Whether a repository of this kind holds `path` by our hand."""
    from peft_whisper.training.checkpoint import PROCESSOR_FILES

    if path.startswith(SAMPLES):
        return path.endswith(".flac")
    known = (*kind.files, *PROCESSOR_FILES, "generation_config.json", FACTS, EXPORTED, CARD, *RUN)
    return any(fnmatchcase(path, pattern) for pattern in known)


def kind_of(names: Sequence[str]) -> Kind | None:
    """What kind of model files of these names are; None for none."""
    return next(
        (kind for kind in KINDS if any(fnmatchcase(name, kind.mark) for name in names)), None
    )


def package(folder: Path) -> Package:
    """What `folder` holds: a finished run, its adapter/ or model/, a merged or exported model.

    Raises StateError where it holds none of these, or where that is unfinished or damaged.
    """
    from peft_whisper.model.base import tensor_shapes
    from peft_whisper.model.trained import read_facts

    if not folder.is_dir():
        raise StateError(f"{folder} is not a folder; give a finished run, or a model's folder")
    inner = next((folder / name for name in TRAINED if (folder / name).is_dir()), None)
    held = inner or folder
    names = [path.name for path in _files(held)]
    kind = kind_of(names)
    if kind is None and {"recipe.yaml", "log.jsonl"} <= set(names):
        raise StateError(f"{folder} is a run without adapter/ or model/: let it finish first")
    if kind is None:
        raise StateError(
            f"{folder} holds no model: expected a finished run, an adapter (adapter_config.json), "
            "a merged model (config.json) or an exported one"
        )
    facts = exported_facts(held) if (held / EXPORTED).is_file() else read_facts(held)
    run = folder if inner else held.resolve().parent if held.resolve().name in TRAINED else None
    if run is not None and not all((run / name).is_file() for name in (CARD, *RUN)):
        if inner is not None:
            raise StateError(f"{folder} is a run that has not finished: it has no scores yet")
        run = None
    for path in held.glob("*.safetensors"):
        try:
            tensor_shapes(path)
        except ValueError as error:
            raise StateError(f"{path} is damaged ({error}). Make the folder again.") from error
    if kind.name == ADAPTER and ADAPTER_WEIGHTS not in names:
        raise StateError(f"{held} has no {ADAPTER_WEIGHTS}. Make the folder again.")
    return Package(kind, held, run, facts)


def exported_facts(folder: Path) -> dict[str, Any]:
    """What an export says of its base; raises StateError where it does not."""
    path = folder / EXPORTED
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        base = {"model": str(found["base"]), "revision": found["revision"]}
        base["fingerprint"] = found["fingerprint"]
        return {"method": found["method"], "base": base, "name": str(found["name"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is damaged ({error}). Export again.") from error


def with_base(name: str, content: bytes, base: str) -> bytes:
    """A trained folder's JSON file with another name for its base, where it names one."""
    found = json.loads(content)
    if name == FACTS:
        found["base"] |= {"model": base, "revision": None}
    elif name == EXPORTED:
        found |= {"base": base, "revision": None}
    elif name == CONFIG:
        found |= {"base_model_name_or_path": base, "revision": None}
    elif found.get("_name_or_path"):
        found["_name_or_path"] = base
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
