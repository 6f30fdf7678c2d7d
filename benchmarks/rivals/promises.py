"""P1 to P4 of README's table, asked of Seq2SeqTrainer and PEFT in the harness of tests/promises.

    python benchmarks/rivals/promises.py [--count 10]

The same base, clips, updates and saves (after updates 2, 4 and 6), the same process that forks,
kills and starts again with `resume_from_checkpoint=True`, and the same equality, bit for bit, with
the run that nothing happened to. Checkpoints of both kinds that Trainer has: as they come, and with
`enable_jit_checkpoint`, which saves on SIGTERM, and whose wait of 3 s before it is taken out here.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
ARGUMENTS = ("training.updates=6", "evaluation.every=2", "adapter.dropout=0.1")


def main(argv: list[str]) -> int:
    """In the forked process: train, or go on from the newest checkpoint where there is one."""
    from rich.console import Console
    from transformers import TrainerCallback

    from benchmarks.rivals import hf_trainer
    from peft_whisper.recipe_yaml import load_recipe
    from peft_whisper.session import open_session

    name, *flags = argv
    folder = Path("outputs") / name
    session = open_session(load_recipe("tiny.yaml", ARGUMENTS), Console(quiet=True))
    processor = hf_trainer.make_processor(session)
    model = hf_trainer.make_model(session)
    train = hf_trainer.prepare(session.splits.train, processor, session.recipe.data.channel)
    if "--nan" in flags:
        train[3]["input_features"][:] = np.nan
    trainer = hf_trainer.make_trainer(session, model, train, "fp32", 6, 4)
    rules = trainer.args
    rules.output_dir, rules.save_steps, rules.save_total_limit = str(folder), 2, 2
    rules.save_strategy, rules.logging_strategy, rules.logging_steps = "steps", "steps", 1

    class Counted(TrainerCallback):
        def on_step_end(self, *_args: Any, **_more: Any) -> None:
            print("made an update", flush=True)

    trainer.add_callback(Counted())
    if "--jit" in flags:
        from transformers.trainer_jit_checkpoint import JITCheckpointCallback

        rules.enable_jit_checkpoint = True
        callback = JITCheckpointCallback()
        trainer.add_callback(callback)
        callback.set_trainer(trainer)
        callback.jit_manager.kill_wait = 0  # of 3 s, which are more than such a run takes
    going_on = any(folder.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if going_on else None)
    print(f"ended after update {trainer.state.global_step}")
    model.save_pretrained(folder / "adapter")
    return 0


class Rival:
    """Its runs, through the server that forks ours."""

    def __init__(self, place: Path):
        from killed_runs import Runs

        self.runs, self.place = Runs(place), place

    def __call__(self, *argv: str, **faults: Any) -> dict[str, Any]:
        return self.runs.command("benchmarks.rivals.promises", *argv, **faults)

    def outcome(self, name: str) -> bytes:
        folder = self.runs.folder(name) / "adapter"
        return (folder / "adapter_model.safetensors").read_bytes()

    def ended(self, name: str, whole: bytes, *flags: str) -> str:
        """Start again what was killed: what comes of it, in a word."""
        again = self(name, *flags)
        said = "ends with an error"
        if again["code"] == 0:
            said = "bit-identical" if self.outcome(name) == whole else "silently different"
        shutil.rmtree(self.runs.folder(name), ignore_errors=True)
        return said


def kills(rival: Rival, whole: dict[str, Any], bits: bytes, count: int) -> str:
    """P1: killed before file operations, spread over all from the first checkpoint on."""
    told = whole["operations"]
    first = next(i for i, row in enumerate(told) if "checkpoint-" in row)
    points = np.linspace(first + 2, len(told), count).astype(int)
    found: Counter[str] = Counter()
    for point in points:
        rival("killed", operation=int(point))
        found[rival.ended("killed", bits)] += 1
    return f"P1  {count} kills at file operations, of {len(told) - first}: {_told(found)}"


def flips(rival: Rival, bits: bytes, count: int) -> str:
    """P2: one bit of the newest checkpoint, whose update is not the last."""
    draw, found = np.random.default_rng(3), Counter[str]()
    for number in range(count):
        shutil.copytree(rival.runs.folder("whole"), rival.runs.folder("flipped"))
        shutil.rmtree(rival.runs.folder("flipped") / "checkpoint-6")
        shutil.rmtree(rival.runs.folder("flipped") / "adapter")
        files = ("adapter_model.safetensors", "optimizer.pt")
        path = rival.runs.folder("flipped") / "checkpoint-4" / files[number % 2]
        data = bytearray(path.read_bytes())
        data[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
        path.write_bytes(data)
        found[rival.ended("flipped", bits)] += 1
    return f"P2  {count} bit flips in weights and optimizer of the newest: {_told(found)}"


def terms(rival: Rival, seconds: float, bits: bytes, count: int, *flags: str) -> str:
    """P3: SIGTERM at random moments; lost are updates that were made and not saved."""
    draw, found, codes, lost = np.random.default_rng(2), Counter[str](), Counter[int](), 0
    while sum(found.values()) < count:
        moment = [int(signal.SIGTERM), float(draw.uniform(0.3, 0.9) * seconds)]
        done = rival("termed", *flags, signal=moment)
        if "ended after update 6" in done["said"]:  # it was over before
            shutil.rmtree(rival.runs.folder("termed"))
            continue
        made = done["said"].count("made an update")
        kept = [int(one.name.split("-")[1]) for one in rival.runs.folder("termed").glob("ch*-*")]
        lost += made - max(kept, default=0)
        codes[done["code"]] += 1
        found[rival.ended("termed", bits, *flags)] += 1
    kind = "with jit checkpoints" if flags else "as it comes"
    exits = ", ".join(f"{code} ({times}x)" for code, times in codes.items())
    return f"P3  {count} SIGTERMs, {kind}: {_told(found)}; {lost} updates lost, exit codes {exits}"


def poison(rival: Rival) -> str:
    """P4: one clip of NaN."""
    from safetensors.torch import load_file

    done = rival("nan", "--nan")
    files = sorted(rival.runs.folder("nan").rglob("adapter_model.safetensors"))
    bad = [
        path for path in files if not all(one.isfinite().all() for one in load_file(path).values())
    ]
    return f"P4  one NaN clip of 20: exit {done['code']}, {len(bad)}/{len(files)} files poisoned"


def _told(found: Counter[str]) -> str:
    return ", ".join(f"{times} {what}" for what, times in found.most_common())


def ask(count: int) -> None:
    """Put the questions, and print a line for each answer."""
    sys.path[:0] = [str(HERE.parents[2] / "tests"), str(HERE.parents[2] / "tests" / "promises")]
    from test_train import make_place

    with tempfile.TemporaryDirectory() as scratch:
        rival = Rival(make_place(Path(scratch)))
        whole = rival("whole")
        assert whole["code"] == 0, whole["said"]
        bits = rival.outcome("whole")
        rival("again")
        assert rival.outcome("again") == bits, "two undisturbed runs differ"
        seconds = whole["seconds"]
        say = partial(print, flush=True)
        say(kills(rival, whole, bits, count))
        say(flips(rival, bits, count))
        say(terms(rival, seconds, bits, count))
        say(terms(rival, seconds, bits, count, "--jit"))
        say(poison(rival))
        rival.runs.server.kill()
        rival.runs.server.wait()


if __name__ == "__main__":
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--count", type=int, default=10, help="of each kind (default: 10)")
    ask(made.parse_args().count)
