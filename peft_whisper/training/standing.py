"""Where a run stands after an update: all that decides its future, beside recipe and data.

Randomness is a function of the seed and the update, so no generator's state is among it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from peft_whisper.errors import StateError, first_line
from peft_whisper.files import write_json
from peft_whisper.model.pissa import START, begin_again
from peft_whisper.training.ranks import SCORES
from peft_whisper.training.tally import Meter, Selection

if TYPE_CHECKING:
    from peft_whisper.training.updater import Updater

PAGED = {"state1", "state2"}  # what bitsandbytes calls the moments
OPTIMIZER, RANKS, STATE = "optimizer.safetensors", "ranks.safetensors", "state.json"


@dataclass
class Standing:
    """The update that was made last; whether it is yet to be judged; the best one; the speed."""

    update: int
    due: bool
    best: Selection
    meter: Meter


def write_standing(folder: Path, standing: Standing, updater: Updater) -> None:
    """Put beside the weights what else a run needs to go on: safetensors and JSON."""
    tensors, numbers = _optimizer_state(updater)
    save_file(tensors, folder / OPTIMIZER)
    if updater.start:
        save_file(updater.start, folder / START)
    scale = updater.loss_scale
    ranks: dict[str, Any] = {}
    if updater.ranks:
        scores, ranks = updater.ranks.state()
        save_file(scores, folder / RANKS)
    state = {
        "update": standing.update,
        "due": standing.due,
        "best": asdict(standing.best),
        "meter": asdict(standing.meter),
        "loss_scale": asdict(scale) if scale else None,
        "room": updater.room.limit,
        "optimizer": numbers,
        "ranks": ranks,
    }
    write_json(folder / STATE, state)


def read_standing(folder: Path, updater: Updater) -> Standing:
    """Bring `updater` to where the checkpoint in `folder` left it, bit for bit.

    Raises StateError where the checkpoint is of other weights, or is none though it is sealed.
    """
    try:
        return _read(folder, updater)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise StateError(f"{folder} holds no checkpoint that this version reads ({why})") from error


def _read(folder: Path, updater: Updater) -> Standing:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if updater.start:
        begin_again(updater.model, updater.start, folder / START)
    _load_weights(folder, updater)
    _load_optimizer(folder, state["optimizer"], updater)
    if updater.loss_scale and state["loss_scale"]:
        updater.loss_scale.value = state["loss_scale"]["value"]
        updater.loss_scale.good = state["loss_scale"]["good"]
    if updater.ranks:
        updater.ranks.restore(load_file(folder / RANKS), state["ranks"])
    updater.room.limit = state["room"]
    best, meter = Selection(**state["best"]), Meter(**state["meter"])
    return Standing(state["update"], state["due"], best, meter)


def bytes_of(updater: Updater) -> int:
    """About what a checkpoint of this run takes on disk."""
    weights = sum(master.nbytes for master in updater.masters.fp32)
    states: Any = updater.optimizer.state.values()
    moments = sum(one.nbytes for state in states for one in state.values() if torch.is_tensor(one))
    beside = sum(one.nbytes for one in updater.start.values())
    beside += len(SCORES) * weights if updater.ranks else 0
    return weights + beside + max(moments, 2 * weights)  # before the first update: no moments


def _optimizer_state(updater: Updater) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The optimizer's tensors by `name/key`, and its plain numbers by name and key."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, master in updater.masters.named.items():
        for key, value in updater.optimizer.state.get(master, {}).items():
            if torch.is_tensor(value):
                # Tables are shared between weights, which safetensors does not write.
                tensors[f"{name}/{key}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                numbers.setdefault(name, {})[key] = value
    return tensors, numbers


def _load_weights(folder: Path, updater: Updater) -> None:
    """Copy the checkpoint's weights into the masters, and from there into the model."""
    held: dict[str, Path] = {}
    others = (OPTIMIZER, RANKS, START)
    for path in (one for one in folder.glob("*.safetensors") if one.name not in others):
        with safe_open(path, "pt") as file:
            held |= dict.fromkeys(file.keys(), path)
    named = {saved_name(name): one for name, one in updater.masters.named.items()}
    if missing := sorted(named.keys() - held.keys()):
        raise StateError(f"{folder} lacks {len(missing)} trained tensors, such as {missing[0]}")
    for path in sorted(set(held.values())):
        with safe_open(path, "pt") as file, torch.no_grad():
            for name in named.keys() & set(file.keys()):
                named[name].copy_(file.get_tensor(name))
    updater.masters.publish()


def saved_name(name: str) -> str:
    """The name that a parameter has in peft's file."""
    saved = name.replace(".default.", ".").removesuffix(".default")
    return saved.removesuffix(".weight") if ".lora_magnitude_vector." in saved else saved


def _load_optimizer(folder: Path, numbers: dict[str, Any], updater: Updater) -> None:
    """Give the optimizer its moments back."""
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in numbers.items()}
    with safe_open(folder / OPTIMIZER, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # not a dict
            owner, key = name.rsplit("/", 1)
            states.setdefault(owner, {})[key] = file.get_tensor(name)
    names = {id(master): name for name, master in updater.masters.named.items()}
    groups = updater.optimizer.param_groups
    order = [names[id(parameter)] for group in groups for parameter in group["params"]]
    if strangers := states.keys() - set(order):
        raise StateError(f"{folder} holds moments of {sorted(strangers)[0]}, which is not trained")
    updater.optimizer.load_state_dict(
        {
            "state": {index: states[name] for index, name in enumerate(order) if name in states},
            "param_groups": updater.optimizer.state_dict()["param_groups"],
        }
    )
    if getattr(updater.optimizer, "is_paged", False):
        _page(updater.optimizer)


def _page(optimizer: Any) -> None:
    """Put moments that were read onto the card where bitsandbytes pages them, as it makes them."""
    for parameter, state in optimizer.state.items():
        for key in PAGED & state.keys():
            held = optimizer.get_state_buffer(parameter, dtype=state[key].dtype)
            state[key] = held.copy_(state[key])
