"""A base model found: in a folder, or on the Hub, from which what is missing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_whisper.errors import RecipeError
from peft_whisper.model.base import Base

# What a base needs; the pickled and the other frameworks' weights stay on the Hub.
SMALL_FILES = ["*.json", "merges.txt"]
WEIGHT_FILES = ["model.safetensors", "model-0*.safetensors"]


def find_base(name: str, revision: str | None = None, *, weights: bool = True) -> Base:
    """Resolve a Hub id or a local folder to a `Base`; downloads what is missing from the Hub.

    Without `weights` only configuration and tokenizer are fetched, for looking at data.
    Raises RecipeError where there is no such model, or where `Base.check` finds it unusable.
    """
    local = Path(name)
    if local.is_dir():
        found = Base(name, None, local)
    elif local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        made_by_demo = ".demo" in local.parts
        hint = "; `python -m peft_whisper.demo` makes it" if made_by_demo else ""
        raise RecipeError(f"base.model: {name} is not a folder{hint}")
    else:
        folder = download(name, revision, SMALL_FILES + WEIGHT_FILES * weights)
        found = Base(name, folder.name, folder)
    found.check(weights=weights)
    return found


def base_of(facts: dict[str, Any], moved_to: str | None) -> Base:
    """The base that an adapter's `facts` name, or the one given in its place.

    Raises RecipeError where it can't be found or used.
    """
    recorded = facts["base"]
    try:
        if moved_to is not None:
            return find_base(moved_to)
        return find_base(recorded["model"], recorded["revision"])
    except RecipeError as error:
        reason = str(error).removeprefix("base.model: ")
        if moved_to is not None:
            raise RecipeError(f"--base: {reason}") from error
        raise RecipeError(
            f"the adapter was trained on {recorded['model']}; if it has moved, give --base. "
            f"What was found: {reason}"
        ) from error


def download(name: str, revision: str | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    at = f"base.model: {name}" + (f" at revision {revision}" if revision else "")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise RecipeError(
            f"{at} is neither a folder here nor a Hub id (owner/name): {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise RecipeError(
            f"{at} is not on this machine and the Hub cannot be reached. Give a local folder, or "
            "download it once while online (`hf download " + name + "`)."
        ) from error
    except HfHubHTTPError as error:
        raise RecipeError(
            f"{at} could not be downloaded: {str(error).splitlines()[0]} "
            "(a gated model needs `hf auth login`)."
        ) from error
