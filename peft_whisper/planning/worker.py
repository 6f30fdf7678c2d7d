"""Answers jobs: what a recipe takes of a card, the largest batch, what would make it fit.

Runs as a process of its own (`python -m peft_whisper.planning.worker`), since tracing changes
torch's insides: a job is a line of JSON on stdin, its answer a line on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from peft_whisper.errors import UserError
from peft_whisper.model.sizes import Blueprint, find_blueprint
from peft_whisper.planning.changes import Asked, changes, least_repeated
from peft_whisper.planning.costs import Limits, Tracer
from peft_whisper.planning.counts import counts
from peft_whisper.planning.largest import largest_batch
from peft_whisper.planning.selftest import check_tracer
from peft_whisper.planning.tracing import Shape, fake
from peft_whisper.recipe import Recipe


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
    found["model"] = counts(tracer.trace)
    if recipe.training.recompute == "auto":
        found["recompute"] = least_repeated(tracer, ways)
        tracer.trace.recompute(found["recompute"])
    traced = [tracer.training(steps) for steps in ways]
    worst = max(range(len(ways)), key=lambda n: traced[n][1].reserved)
    cost = traced[worst][1]
    decoded = tracer.decoding(decoding)
    found |= {"training": asdict(cost), "decoding": asdict(decoded), "way": worst}
    most = None
    if job["search"]:
        most = largest_batch(tracer, ways[worst], traced[worst])
        found["largest"] = asdict(most)
    if not (cost.fits and decoded.fits):
        less = most.clips if most else None
        ask = Asked(recipe, base, ways[worst], decoding, less)
        found["changes"] = list(changes(tracer, ask, traced[worst], decoded))
    return found


def _end_with(parent: int) -> None:
    """Leave when the process that asked is gone, killed: nobody reads the answer."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """For each job write {"answer": ...} or {"error": text, "code": exit code}."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not the answer
    import torch

    torch.set_num_threads(1)  # nothing is computed; several workers share the cores
    for line in sys.stdin:
        try:
            check_tracer()
            said: dict[str, Any] = {"answer": answer(json.loads(line))}
        except UserError as error:
            said = {"error": str(error), "code": error.exit_code}
        out.write(json.dumps(said) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
