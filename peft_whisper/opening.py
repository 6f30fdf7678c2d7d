"""What training does before its first update: audit, choose, plan, and record all of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.environment import machine, versions
from peft_whisper.files import write_json, write_text
from peft_whisper.recipe import Recipe, on_card, with_training
from peft_whisper.recipe_yaml import dump_recipe
from peft_whisper.resume import check_same
from peft_whisper.run_folder import make_way
from peft_whisper.session import Session, check_splits, data_facts, open_session

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.console import Console

Facts = dict[str, Any]  # as environment.json holds them


def open_everywhere(
    recipe: Recipe, folder: Path, begun: Path | None, accelerator: Accelerator, console: Console
) -> tuple[Session, Facts, Path | None]:
    """Audit, choose and plan in the main process; hand all to the others; refuse what can't train.

    The folder's recipe.yaml holds what was chosen, so that a run of that file is the same run. A
    run that had `begun` goes on from that checkpoint, with the same data and base.
    """
    from accelerate.utils import broadcast_object_list

    from peft_whisper.planning.preflight import check_memory

    box: list[Any] = [None]
    if accelerator.is_main_process:
        session = open_session(recipe, console)
        if begun:
            check_same(session, accelerator.num_processes, begun, console)
        else:
            make_way(folder)
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
        check_splits(session, folder, console)
        session, found = choose_fastest(session, accelerator.device.type, console)
        session, memory = check_memory(session, accelerator.num_processes, console)
        write_text(folder / "recipe.yaml", dump_recipe(session.recipe))
        box = [(session, found | ({"memory": memory} if memory else {}), begun)]
    broadcast_object_list(box)
    return box[0]


def choose_fastest(session: Session, device: str, console: Console) -> tuple[Session, Facts]:
    """Resolve what the recipe leaves to this computer and torch device, and say what it is.

    These are `auto` of training.precision and training.attention. Returns the session, and what
    environment.json records of each that the recipe had not chosen.
    """
    session, precision = _choose_precision(session, device, console)
    session, attention = _choose_attention(session, device, console)
    found = {"precision": precision, "attention": attention}
    return session, {name: facts for name, facts in found.items() if facts}


def _choose_precision(session: Session, device: str, console: Console) -> tuple[Session, Facts]:
    if session.recipe.training.precision != "auto":
        return session, {}
    facts: Facts = {}
    if device == "cpu":
        from peft_whisper.training.fastest import PAYS, bf16_times_as_fast

        times = bf16_times_as_fast(session.base.config())
        recipe = with_training(session.recipe, precision="bf16" if times >= PAYS else "fp32")
        facts = {"bf16_times_fp32": round(times, 2)}
        why = f"a layer trains {times:.1f}x as fast in bf16 as in fp32 here (measured)"
    else:
        from peft_whisper.memory.cards import this_card

        card = this_card()
        recipe = on_card(session.recipe, card.device, card.bf16)
        why = f"the best that {card.title} has"
    chosen = recipe.training.precision
    console.print(f"precision: {chosen}; {why}")
    return replace(session, recipe=recipe), {"chosen": chosen} | facts


def _choose_attention(session: Session, device: str, console: Console) -> tuple[Session, Facts]:
    training = session.recipe.training
    if training.attention != "auto":
        return session, {}
    facts: Facts = {}
    chosen = "torch"
    if device == "cpu":
        from peft_whisper.training.fastest import PAYS, tiles_times_as_fast
        from peft_whisper.training.precision import DTYPES

        times = tiles_times_as_fast(session.base.config(), DTYPES[training.precision])
        facts = {"tiled_times_torch": round(times, 2)}
        chosen = "tiled" if times >= PAYS else "torch"
        why = f"tiles are {times:.1f}x as fast as torch's kernel here in {training.precision}"
        console.print(f"attention: {chosen}; {why} (measured)")
    recipe = with_training(session.recipe, attention=chosen)
    return replace(session, recipe=recipe), {"chosen": chosen} | facts


def record_start(
    session: Session, found: Facts, folder: Path, model: Any, console: Console | None
) -> None:
    """Write environment.json, and say what is about to be trained on what.

    `found` is what `open_everywhere` gave; only the main process has a `console`.
    """
    if console is None:
        return
    from peft_whisper.model.adapters import trainable_count
    from peft_whisper.model.quantized import parameter_count

    base, splits = session.base, session.splits
    total = parameter_count(model)
    trained = trainable_count(model)
    data: dict[str, Any] = {name: data_facts(clips) for name, clips in splits.items()}
    if session.recipe.data.note:
        data["note"] = session.recipe.data.note
    frozen = 0 if session.recipe.adapter.method == "none" else trained
    facts = {
        "versions": versions(),
        "machine": machine(),
        "base": {
            "model": base.public_name,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            "parameters": total - frozen,
            "multilingual": session.labels.multilingual,
        },
        "data": data,
        "trainable_parameters": trained,
        "seed": session.recipe.seed,
    }
    record = folder / "environment.json"
    began = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    write_json(record, began | facts | found)  # a run that goes on chose before
    counts = ", ".join(f"{len(clips)} {name}" for name, clips in splits.items())
    console.print(f"clips: {counts}; training {trained:,} of {total:,} parameters")
