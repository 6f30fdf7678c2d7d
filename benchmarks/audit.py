"""What the audit of a large corpus takes: clips a second, cores, and memory at its peak.

    python benchmarks/audit.py [--clips 100000] [--base .demo/whisper-tiny.en]

500 sounds of 1 to 6 s (half of them 16 kHz WAV, half 22.05 kHz FLAC, which has to be decoded and
resampled) are linked under as many names as there are clips, and listed in a manifest. The audit
that comes before every training runs on them in a process of its own, with all that a training
process has loaded by then.
The figures are measured; they are printed and written to benchmarks/results/<machine>/audit.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile

from peft_whisper.environment import cores, machine, machine_name, versions
from peft_whisper.errors import StateError, run
from peft_whisper.files import write_json

RESULTS = Path(__file__).parent / "results"
SOUNDS = 500
KINDS = (("wav", 16_000), ("flac", 22_050))
LOOK_EVERY_S = 0.05
GIB = 1 << 30
PAGE = os.sysconf("SC_PAGE_SIZE")
AUDIT = """
import sys
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import open_session
from peft_whisper.terminal import Terminal
from peft_whisper.train import start_accelerator
start_accelerator()
session = open_session(load_recipe(sys.argv[1], []), Terminal())
print(*(len(clips) for _, clips in session.splits.items()))
"""


def main(argv: list[str] | None = None) -> int:
    """Make the corpus, audit it, print and store what that took."""
    made = argparse.ArgumentParser(prog="benchmarks/audit.py", description=__doc__)
    made.add_argument("--clips", type=int, default=100_000)
    made.add_argument("--base", default=".demo/whisper-tiny.en", help="for its tokenizer")
    args = made.parse_args(argv)
    with TemporaryDirectory() as folder:
        recipe = corpus(Path(folder), args.clips, args.base)
        found = watched([sys.executable, "-c", AUDIT, str(recipe)])
    found |= {"clips": args.clips, "clips_per_s": args.clips / found["seconds"]}
    print(
        f"{args.clips:,} clips in {found['seconds']:.0f} s, imports included: "
        f"{found['clips_per_s']:,.0f} a second on {found['cores']:.2f} of {cores()} cores, "
        f"{found['peak_bytes'] / GIB:.2f} GiB at its peak, of all its processes together"
    )
    facts = {"kind": "measured", "machine": machine(), "versions": versions()}
    write_json(RESULTS / machine_name() / "audit.json", facts | found)
    return 0


def corpus(folder: Path, clips: int, base: str) -> Path:
    """Write sounds, links to them, a manifest and a recipe; return the recipe's path.

    Clips of one sound share their transcript, so that they fall into the same split.
    """
    rng = np.random.default_rng(1)
    sounds = []
    for number in range(SOUNDS):
        kind, rate = KINDS[number % len(KINDS)]
        path = folder / f"sound-{number}.{kind}"
        soundfile.write(path, 0.1 * rng.standard_normal(int(rng.uniform(1, 6) * rate)), rate)
        sounds.append(path)
    with (folder / "train.jsonl").open("w") as manifest:
        for number in range(clips):
            sound = sounds[number % SOUNDS]
            name = f"{number // 1000:03d}/clip-{number:06d}{sound.suffix}"
            (folder / name).parent.mkdir(exist_ok=True)
            os.link(sound, folder / name)
            text = f"this is what is said in sound {number % SOUNDS} and in no other one of them"
            manifest.write(json.dumps({"audio": name, "text": text, "speaker": "one"}) + "\n")
    recipe = folder / "corpus.yaml"
    recipe.write_text(
        f"base: {{model: {Path(base).resolve()}}}\n"
        f"data:\n  train: {{manifest: {folder}/train.jsonl}}\n"
        "  validation: {from_train: 0.1}\n  test: {from_train: 0.1}\n  language: en\n"
        "training: {epochs: 1, learning_rate: 1e-3}\nevaluation: {every: 100}\n"
    )
    return recipe


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command; its seconds, mean cores, and the most resident memory of all its processes."""
    began, peak = time.perf_counter(), 0
    before = os.times()
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(LOOK_EVERY_S)
    if process.returncode:
        raise StateError(f"the audit ended with exit code {process.returncode}")
    seconds, after = time.perf_counter() - began, os.times()
    used = sum(after[2:4]) - sum(before[2:4])  # of children that have ended
    return {"seconds": seconds, "cores": used / seconds, "peak_bytes": peak}


def resident(session: int) -> int:
    """Bytes that the processes of a session hold, what they share counted for each of them."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            total += int(fields[21]) * PAGE
    return total


if __name__ == "__main__":
    run(main)
