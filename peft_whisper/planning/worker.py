"""Answers one job: what a recipe takes of a card, the largest batch, what would make it fit.

Runs as a process of its own (`python -m peft_whisper.planning.worker`), since tracing changes
torch's insides: the job is read from stdin as JSON, the answer written to stdout.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from peft_whisper.errors import UserError
from peft_whisper.model.recompute import LADDER
from peft_whisper.model.sizes import Blueprint, find_blueprint
from peft_whisper.planning.costs import Cost, Limits, Tracer
from peft_whisper.planning.largest import largest_batch
from peft_whisper.planning.selftest import check_tracer
from peft_whisper.planning.tracing import Shape, fake
from peft_whisper.recipe import Recipe

Steps = tuple[Shape, ...]


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What `job` asks: see `planning.jobs.Job`, whose fields it has."""
    recipe = Recipe.model_validate(job["recipe"])
    base = find_blueprint(recipe.base.model, recipe.base.revision)
    limits = Limits(**job["limits"])
    with fake(limits.device, limits.flash):
        return _answer(job, recipe, base, limits)


def _answer(job: dict[str, Any], recipe: Recipe, base: Blueprint, limits: Limits) -> dict[str, Any]:
    ways = [tuple(Shape(*one) for one in steps) for steps in job["ways"]]
    decoding = Shape(*job["decoding"])
    tracer = Tracer(recipe, base, limits)
    found: dict[str, Any] = {"recompute": recipe.training.recompute}
    if recipe.training.recompute == "auto":
        found["recompute"] = _least_repeated(tracer, ways)
        tracer.recompute(found["recompute"])
    traced = [tracer.training(steps) for steps in ways]
    worst = max(range(len(ways)), key=lambda n: traced[n][1].reserved)
    cost = traced[worst][1]
    found |= {"training": asdict(cost), "decoding": asdict(tracer.decoding(decoding))}
    found["way"] = worst
    most = None
    if job["search"]:
        most = largest_batch(tracer, ways[worst], traced[worst])
        found["largest"] = asdict(most)
    if not cost.fits:
        less = most.clips if most else None
        found["changes"] = list(_changes(recipe, base, tracer, ways[worst], cost, less))
    return found


def _least_repeated(tracer: Tracer, ways: list[Steps], above: str = "") -> str:
    """The first rung of the ladder whose work fits well, or else just fits; `all` if none does."""
    rungs = list(LADDER[LADDER.index(above) + 1 :] if above else LADDER)
    costs: dict[str, list[Cost]] = {}

    def verdicts(rung: str) -> set[str]:
        if rung not in costs:
            tracer.recompute(rung)
            costs[rung] = [tracer.training(steps)[1] for steps in ways]
        return {cost.verdict for cost in costs[rung]}

    low, high = 0, len(rungs) - 1  # each rung takes less than the one before
    while low < high:
        middle = (low + high) // 2
        if verdicts(rungs[middle]) == {"fits"}:
            high = middle
        else:
            low = middle + 1
    return rungs[low]


def _changes(
    recipe: Recipe, base: Blueprint, tracer: Tracer, steps: Steps, cost: Cost, less: int | None
) -> Iterator[dict[str, Any]]:
    """What would make too large a recipe fit, the cheapest first, each with its traced cost."""
    if cost.expandable_fits:
        yield _change(["PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"], cost, "free")
    clips = steps[0].clips
    if less is None and clips > 1:
        less = largest_batch(tracer, steps, tracer.training(steps)).clips
    if less:
        smaller = tuple(Shape(less, one.positions, one.labels) for one in steps[:1]) * 2
        seconds = less * steps[0].positions * 0.02
        one = tracer.training(smaller)[1]
        yield _change([f"training.micro_audio_s={seconds:g}"], one, "same result, more micro-steps")
    now = recipe.training.recompute
    if now not in ("all", "auto"):
        rung = _least_repeated(tracer, [steps], above=_rung(now))
        tracer.recompute(rung)
        one = tracer.training(steps)[1]
        why = f"same result, {one.repeated:.0%} of the step's FLOPs repeated"
        yield _change([f"training.recompute={rung}"], one, why)
        tracer.recompute(now)
    for overrides, changed, why in _smaller(recipe):
        other = Tracer(changed, base, tracer.limits)
        one = other.training(steps)[1]
        if not one.fits:
            other.recompute("all")
            one, overrides = other.training(steps)[1], [*overrides, "training.recompute=all"]
        yield _change(overrides, one, why)


def _rung(choice: str) -> str:
    """The last rung of the ladder that repeats no more than `choice`."""
    if choice in LADDER:
        return choice
    part, of = map(int, choice.split("/"))
    shares = [rung for rung in LADDER if "/" in rung and _share(rung) <= part / of]
    return shares[-1] if shares else "cheap"


def _share(rung: str) -> float:
    part, of = map(int, rung.split("/"))
    return part / of


def _change(overrides: list[str], cost: Cost, why: str) -> dict[str, Any]:
    return {"overrides": overrides, "cost": asdict(cost), "why": why}


def _smaller(recipe: Recipe) -> Iterator[tuple[list[str], Recipe, str]]:
    """The same training with weights held in fewer bits."""
    base, training = recipe.base, recipe.training
    everything = recipe.adapter.method == "none"
    short = {"dtype": "bfloat16"} if base.dtype == "float32" else {}
    if everything and (short or "8bit" not in training.optimizer):
        made = _with(recipe, short, {"precision": "bf16", "optimizer": "adamw8bit"})
        said = ["base.dtype=bfloat16", "training.precision=bf16", "training.optimizer=adamw8bit"]
        yield (
            said,
            made,
            "weights in bf16, their other digits beside them; 8-bit optimizer",
        )
    if not everything and short:
        said = ["base.dtype=bfloat16", "training.precision=bf16"]
        yield said, _with(recipe, short, {"precision": "bf16"}), "frozen weights in half the bytes"
    if not everything and base.quantize is None:
        kind = {"quantize": "nf4"}
        if short:
            made = _with(recipe, short | kind, {"precision": "bf16"})
            said = ["base.dtype=bfloat16", "training.precision=bf16", "base.quantize=nf4"]
        else:
            made, said = _with(recipe, kind, {}), ["base.quantize=nf4"]
        yield said, made, "frozen weights in a quarter of bf16's bytes, slower"


def _with(recipe: Recipe, base: dict[str, Any], training: dict[str, Any]) -> Recipe:
    return recipe.model_copy(
        update={
            "base": recipe.base.model_copy(update=base),
            "training": recipe.training.model_copy(update=training),
        }
    )


def main() -> None:
    """Read a job, write {"answer": ...} or {"error": text, "code": exit code}."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not the answer
    try:
        import torch

        torch.set_num_threads(1)  # nothing is computed; several workers share the cores
        check_tracer()
        said: dict[str, Any] = {"answer": answer(json.load(sys.stdin))}
    except UserError as error:
        said = {"error": str(error), "code": error.exit_code}
    json.dump(said, out)
    out.flush()


if __name__ == "__main__":
    main()
