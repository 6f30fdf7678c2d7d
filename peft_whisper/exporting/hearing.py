"""Decode in a process of its own: what another program does to it stays there.

whisper.cpp ends its process where a file is not what it expects, and each program brings its own
threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file, save_file

from peft_whisper.errors import StateError
from peft_whisper.exporting.runtimes import RUNTIMES, Languages, Waves

WAVES, ASKED, TEXTS = "waves.safetensors", "asked.json", "texts.json"
PACKAGE = Path(__file__).resolve().parents[2]


def hear(name: str, folder: Path, waves: Waves, languages: Languages, task: str) -> list[str]:
    """What the program that `name` exports are for hears with the model in `folder`.

    Raises StateError with the program's last words where it can't decode.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch)
        save_file({f"{at:06d}": wave for at, wave in enumerate(waves)}, job / WAVES)
        (job / ASKED).write_text(json.dumps({"languages": list(languages), "task": task}))
        path = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, name, str(folder.resolve()), str(job)],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise StateError(
                f"{RUNTIMES[name].program} could not decode what was written for it (exit code "
                f"{done.returncode}: {said[-1] if said else 'no message'}); nothing was kept"
            )
        return list(json.loads((job / TEXTS).read_text(encoding="utf-8")))


def main() -> None:
    """Answer one job: NAME FOLDER JOB."""
    name, folder, job = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    asked = json.loads((job / ASKED).read_text(encoding="utf-8"))
    waves = [wave for _, wave in sorted(load_file(job / WAVES).items())]
    texts = RUNTIMES[name].hear(folder, waves, asked["languages"], asked["task"])
    (job / TEXTS).write_text(json.dumps(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
