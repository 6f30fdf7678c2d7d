"""Fine-tune Whisper as a recipe says: audit, train, choose the best, score it, report.

accelerate launch -m peft_whisper.train recipes/lora_a10.yaml [key.sub=value ...]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from peft_whisper.assembly import make_updater
from peft_whisper.environment import cores, keep_freed_memory, one_machine, peak_memory
from peft_whisper.errors import RecipeError, run
from peft_whisper.files import write_json
from peft_whisper.final_test import transcripts, write_pages, write_scores
from peft_whisper.opening import Facts, open_everywhere, record_start
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.resume import resumable, same_facts
from peft_whisper.run_folder import RunLog, check_tracker, lock, rewind, start_tracker
from peft_whisper.session import (
    Session,
    enough_memory,
)
from peft_whisper.signals import Stop, held
from peft_whisper.terminal import Terminal, progress

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from peft_whisper.training.loop import Result
    from peft_whisper.training.optim import Masters
    from peft_whisper.training.standing import Standing
    from peft_whisper.training.stream import Course
    from peft_whisper.training.updater import Updater

CHECKPOINTS = "checkpoints"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.train",
        description="Fine-tune Whisper as a recipe says. Every clip is checked first; the best "
        "checkpoint is chosen by decoding the validation split; base and tuned model are then "
        "scored on the test split.",
        epilog="The run is written to outputs/<recipe name>/: start with its report.html. "
        "Overrides change single keys, for instance: training.epochs=2 data.test.limit=50",
    )
    made.add_argument("recipe", help="a recipe file; `peft-whisper recipes` lists those that ship")
    made.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    made.add_argument(
        "--fresh", action="store_true", help="start over; an earlier run is moved aside, not lost"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parser().parse_intermixed_args(argv)
    recipe = load_recipe(args.recipe, args.overrides)
    folder = Path(recipe.output) / recipe.name
    check_tracker(recipe)
    one_machine()
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        # Else up to 2 GiB of a full card lie in pieces that fit nothing; plans count on it too.
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    console, begun, stop = Terminal(), None, Stop()
    if os.environ.get("RANK", "0") == "0":
        lock(folder)
        recipe, begun = resumable(recipe, folder, args.fresh, console)
    stop.listen()
    accelerator = start_accelerator(recipe.track, folder)
    console.quiet = not accelerator.is_main_process
    console.print(f"{recipe.name}: {recipe.base.model} -> {folder}", style="bold")
    session, found, begun = open_everywhere(recipe, folder, begun, accelerator, console)
    start_tracker(accelerator, session.recipe)
    with enough_memory():
        result, tuned = train(session, found, folder, begun, accelerator, stop, console)
        if accelerator.is_main_process:
            finish(session, folder, tuned, result, accelerator.device, stop, console)
    accelerator.end_training()
    return 0


def start_accelerator(track: str | None = None, folder: Path | None = None) -> Accelerator:
    """One process per device; on a CPU torch gets the cores that `accelerate launch` withholds."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    # Precision is the recipe's. Unless told that there is no card, accelerate would let several
    # processes on a CPU each believe to be the only one.
    accelerator = Accelerator(
        mixed_precision="no",
        cpu=not torch.accelerator.is_available(),
        log_with=track,
        project_dir=folder,
        # The other processes wait while the first downloads and listens to every clip.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if accelerator.device.type == "cpu":
        # `accelerate launch` sets OMP_NUM_THREADS=1, which would halve the speed of two cores.
        torch.set_num_threads(max(1, cores() // accelerator.num_processes))
        keep_freed_memory()
    return accelerator


def train(
    session: Session,
    found: Facts,
    folder: Path,
    begun: Path | None,
    accelerator: Accelerator,
    stop: Stop,
    console: Console,
) -> tuple[Result, Path]:
    """Train, from where it had `begun`, and publish the best checkpoint; returns how it went."""
    from peft_whisper.planning.preflight import measured_beside
    from peft_whisper.training.frozen import run_frozen_layers
    from peft_whisper.training.loop import Run, fit
    from peft_whisper.training.standing import read_standing

    recipe = session.recipe
    course = make_course(session, accelerator.num_processes)
    updater, model = make_updater(session, accelerator)
    record_start(session, found, folder, model, console if accelerator.is_main_process else None)
    if updater.first_layer is not None:
        where = recipe.training.frozen_cache
        course = run_frozen_layers(course, updater, where, folder, console)
    standing = read_standing(begun, updater) if begun else None
    if accelerator.is_main_process:
        make_ready(folder, updater, standing)
    with progress(console, "training", course.updates) as task, stop.waiting(console.print):
        log = RunLog(folder / "log.jsonl", task, console, accelerator)
        if course.frozen and not begun:
            log(course.frozen.event)
        result = fit(
            updater,
            course,
            recipe.evaluation,
            recipe.checkpoints.minutes,
            Run(
                lambda: validate(session, model, updater.masters, accelerator, stop),
                keeper(session, folder, updater),
                stop.check if accelerator.num_processes == 1 else agreed(stop, accelerator),
                log,
            ),
            standing,
        )
        if "memory" in found and accelerator.device.type == "cuda":
            log(measured_beside(found["memory"]))
    target = folder / ("model" if recipe.adapter.method == "none" else "adapter")
    if accelerator.is_main_process:
        publish_best(session, folder / CHECKPOINTS, result.best.update, target)
    model.to("cpu")  # the final test loads from disk and wants the card's memory
    return result, target


def make_ready(folder: Path, updater: Updater, standing: Standing | None) -> None:
    """See that checkpoints have room; what the log holds beyond where the run stands is cut."""
    from peft_whisper.training.checkpoint import check_space

    check_space(folder / CHECKPOINTS, updater)
    if standing:
        rewind(folder / "log.jsonl", standing.update, standing.due)


def keeper(session: Session, folder: Path, updater: Updater) -> Callable[[Standing], None]:
    """What stores a checkpoint and lets go of those that are no longer needed."""
    from peft_whisper.training.checkpoint import rotate, save_run

    accelerator = updater.accelerator
    facts = same_facts(session, accelerator.num_processes)

    def keep(at: Standing) -> None:
        if accelerator.is_main_process:
            save_run(folder / CHECKPOINTS, at, updater, facts)
            rotate(folder / CHECKPOINTS, session.recipe.checkpoints.keep_last, at)

    return keep


def publish_best(session: Session, checkpoints: Path, update: int, target: Path) -> None:
    """Copy the chosen checkpoint to `target`, with what using it elsewhere needs."""
    from peft_whisper.training.checkpoint import publish

    recipe = session.recipe
    facts: dict[str, Any] = {"method": recipe.adapter.method, "update": update}
    if recipe.base.quantize is not None:
        facts["quantize"] = recipe.base.quantize
    publish(checkpoints, update, target, session.base, facts)


def agreed(stop: Stop, accelerator: Accelerator) -> Callable[[], None]:
    """`stop.check` at the same update in every process, wherever the signal came."""
    import torch

    def check() -> None:
        heard = torch.tensor(stop.signum or 0, device=accelerator.device)
        told = int(accelerator.gather(heard.reshape(1)).max())
        if told:  # a signal that came meanwhile is told at the next update, not forgotten
            stop.signum = told
            stop.check()

    return check


def make_course(session: Session, processes: int) -> Course:
    """Lay out the run: which clips, in which batches, how many updates."""
    from peft_whisper.training.loop import updates_of
    from peft_whisper.training.stream import Course

    recipe, layout = session.recipe, session.layout(processes)
    updates = updates_of(recipe.training, layout, len(session.splits.train))
    if recipe.training.warmup >= updates:
        raise RecipeError(
            f"training.warmup ({recipe.training.warmup}) must be less than the run's updates "
            f"({updates}, from {len(session.splits.train)} clips), or the learning rate never "
            "arrives"
        )
    return Course(
        clips=session.splits.train,
        labels=session.labels,
        n_mels=session.n_mels,
        context=session.context,
        data=recipe.data,
        layout=layout,
        updates=updates,
        seed=recipe.seed,
    )


def validate(
    session: Session, model: Any, masters: Masters, accelerator: Accelerator, stop: Stop
) -> dict[str, Any]:
    """Decode the validation split as the test will be decoded; rates, loops, empties and loss.

    The adapter is folded in from its fp32 masters, as it will be once it is saved and loaded.
    Raises Stopped between two batches, where there is no other process to wait in vain.
    """
    from accelerate.utils import gather_object

    from peft_whisper.model.adapters import merged
    from peft_whisper.scoring.metrics import measure, summarize
    from peft_whisper.scoring.normalize import normalizer

    began = time.perf_counter()
    rank, world = accelerator.process_index, accelerator.num_processes
    clips = sorted(session.splits.validation, key=lambda clip: clip.duration_s)
    model.eval()
    with masters.exposed(), merged(model):
        decoder, check = session.decoder(model), stop.check if world == 1 else None
        found = decoder.graded(clips[rank::world], session.context, check)
    texts: dict[str, str] = {}
    total, tokens = 0.0, 0
    for heard, loss, count in gather_object([found]):
        texts, total, tokens = texts | heard, total + loss, tokens + count
    clean = normalizer(session.recipe.evaluation.normalizer)
    utterances = [measure(clip.text, texts[clip.id], clean) for clip in clips]
    score = summarize(utterances, session.recipe.evaluation.normalizer, 0, session.recipe.seed)
    rates = {name: getattr(score, name) for name in ("wer", "mer", "cer", "loops", "empties")}
    return rates | {"loss": total / tokens, "seconds": time.perf_counter() - began}


def finish(
    session: Session,
    folder: Path,
    tuned: Path,
    result: Result,
    device: torch.device,
    stop: Stop,
    console: Console,
) -> None:
    """Read the test split once: score base and tuned model, write report and card."""
    from peft_whisper.scoring.report import print_scores

    facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    best = {"update": result.best.update, "metric": result.best.metric, "value": result.best.value}
    write_json(folder / "environment.json", facts | {"best": best})
    training = {"updates": result.updates} | result.speed | peak_memory()
    texts = transcripts(session, tuned, str(device), console)
    metrics = write_scores(folder, session, texts, training)
    with held():  # the report and the card together, and then the run is finished
        write_pages(folder, session.test_wave, session.recipe.evaluation.normalizer)
        stop.over = True
    print_scores(metrics, console)
    console.print(f"report: {folder / 'report.html'}   trained weights: {tuned}")


if __name__ == "__main__":
    run(main)
