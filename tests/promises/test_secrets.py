"""P10: no token or password in anything that a command writes or prints, errors included."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from killed_runs import ARGUMENTS, FULL, Runs

from peft_whisper.masking import MASK, TOKENS, masked
from peft_whisper.publishing.scan import findings

# Made up, and put together here so that no scanner takes this file for a leak.
HUB, OTHER_HUB = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNmQwErTyUi", "hf_" + "aB3dE6gH9" * 4
AMAZON, WEIGHTS_AND_BIASES = "AKIA" + "QX7ZP2LM9KD4WS6T", "c0ffee5eed" * 4
PASSWORD, LOGIN = "S3cr3t-Pa55-Of-The-Proxy", "correct-horse-battery"
ENVIRONMENT = {
    "HF_TOKEN": HUB,
    "HUGGING_FACE_HUB_TOKEN": HUB,
    "WANDB_API_KEY": WEIGHTS_AND_BIASES,
    "AWS_ACCESS_KEY_ID": AMAZON,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY" + "zQ" * 5,
    "HTTPS_PROXY": f"http://me:{PASSWORD}@proxy.invalid:3128",
}
OF_THE_ENVIRONMENT = [value for name, value in ENVIRONMENT.items() if name != "HTTPS_PROXY"]
SECRETS = tuple(dict.fromkeys([*OF_THE_ENVIRONMENT, PASSWORD, OTHER_HUB, LOGIN]))
ADDRESS = f"https://me:{LOGIN}@hub.invalid/owner/data"

NO_RECIPE = "train, a token for a recipe"
# What is done with all of that about; the last of each is whether it must go well.
COMMANDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "train": ((*ARGUMENTS, "name=told", "track=tensorboard"), True),
    "evaluate": (("outputs/told", "--into", "told/scores"), True),
    "explore": (("tiny.yaml", "--into", "told/look.html"), True),
    "merge": (("outputs/told/adapter", "--into", "told/merged"), True),
    "transcribe": (("outputs/told/adapter", "25.wav", "--to", "told/texts", "--compare"), True),
    "plan": (("tiny.yaml", "--card", "8"), True),
    "train, a token in an override": (("tiny.yaml", f"hub_token={OTHER_HUB}"), False),
    "train, a token as a value": (("tiny.yaml", f"seed={OTHER_HUB}"), False),
    "train, a token in the name": (("tiny.yaml", f"name={OTHER_HUB}"), False),
    "train, an address with a password": (("tiny.yaml", f"data.train.hub={ADDRESS}"), False),
    "train, a base with a password": (("tiny.yaml", f"base.model={ADDRESS}"), False),
    "train, a recipe with a token": (("told.yaml",), False),
    NO_RECIPE: ((f"{OTHER_HUB}.yaml",), False),
    "merge, a base with a password": (
        ("outputs/told/adapter", "--into", "told/m", "--base", ADDRESS),
        False,
    ),
    "transcribe, an address": ((ADDRESS, "25.wav"), False),
    "transcribe, a token for a file": (("base", OTHER_HUB), False),
    "evaluate, a token for a run": ((OTHER_HUB,), False),
}
SLOW = ("plan",)

# One of each shape, made up in halves as those above.
SHAPED = {
    "a Hugging Face token": HUB,
    "a GitHub token": "ghp_" + "x7" * 18,
    "a GitLab token": "glpat-" + "x7-_" * 5,
    "an API key": "sk-" + "proj-x7" * 4,
    "an access key of a cloud": AMAZON,
    "a JSON web token": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3In0.x7-_x7",
    "a private key": "-----BEGIN " + "PRIVATE KEY-----\nMIIEvQ/x7+x7==\n",
}


def spellings(secret: str) -> Iterator[bytes]:
    """As it is, percent-encoded, and in base64 wherever it begins in a group of three bytes."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    for before in range(3):
        coded = base64.b64encode(b"x" * before + secret.encode())
        yield coded[4 if before else 0 : len(coded) - len(coded) % 4 - 4]


def hits(written: bytes) -> list[str]:
    return [one for one in SECRETS if any(form in written for form in spellings(one))]


def files(place: Path, known: set[Path]) -> list[Path]:
    """All that has been written since, but for the token where a user keeps it."""
    return [one for one in place.rglob("*") if one.is_file() and one not in known]


@pytest.fixture
def planted(runs: Runs) -> Iterator[set[Path]]:
    """Secrets where users have them; all files that were there before."""
    home = runs.place / "home"
    home.mkdir()
    (runs.place / "hub").mkdir(exist_ok=True)
    (runs.place / "hub" / "token").write_text(HUB)
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {WEIGHTS_AND_BIASES}")
    recipe = (runs.place / "tiny.yaml").read_text(encoding="utf-8")
    (runs.place / "told.yaml").write_text(f"{recipe}hub_token: {OTHER_HUB}\noutput: {ADDRESS}\n")
    yield {one for one in runs.place.rglob("*") if one.is_file()}
    (runs.place / "hub" / "token").unlink()
    for path in (home, runs.place / "told", runs.folder("told"), *runs.place.glob("outputs/bro*")):
        shutil.rmtree(path)  # what other tests would find


def test_the_scan_finds_what_is_there() -> None:
    for secret in SECRETS:
        for form in (secret.encode(), quote(secret, safe="").encode()):
            assert hits(b"before" + form + b"after") == [secret]
        for before in range(3):
            assert hits(base64.b64encode(b"x" * before + secret.encode() + b"and on")) == [secret]
    assert hits(b"nothing of it") == []


def test_what_is_masked_in_messages_is_found_in_files() -> None:
    assert set(SHAPED) == set(TOKENS)
    for what, secret in SHAPED.items():
        assert masked(f"before {secret}") == f"before {MASK}"
        for data in (secret.encode(), b"\0" + secret.encode() + b"\0"):  # a text, another file
            assert [one.what for one in findings("file", data)] == [what]


def test_no_secret_is_written_or_printed(runs: Runs, planted: set[Path]) -> None:
    environ = ENVIRONMENT | {"HOME": str(runs.place / "home")}
    found, said, done = 0, 0, 0
    for name, (words, goes_well) in COMMANDS.items():
        if name in SLOW and not FULL:
            continue
        command = name.partition(",")[0]
        ended = runs.command(f"peft_whisper.{command}", *words, environ=environ)
        assert (ended["code"] == 0) is goes_well, (name, ended["said"])
        assert "Traceback" not in ended["said"], ended["said"]
        assert not hits(ended["said"].encode()), (name, ended["said"])
        in_recipe = name.startswith("train,") and name != NO_RECIPE
        assert ("holds a token or a password" in ended["said"]) is in_recipe
        said, done = said + len(ended["said"]), done + 1
    for number in range(20 if FULL else 1):
        at = 11 + 6 * number
        broken = runs(f"broken{number}", "checkpoints.minutes=0.0001", environ=environ, fault=at)
        assert broken["code"] == 1 and "RuntimeError: injected" in broken["said"]
        assert "HTTPS_PROXY" in broken["said"] and not hits(broken["said"].encode())
        said, done = said + len(broken["said"]), done + 1
    written = files(runs.place, planted)
    for path in written:
        found += len(hits(path.read_bytes()))
    size = sum(path.stat().st_size for path in written)
    assert found == 0 and len(written) > 40
    print(
        f"\n{done} commands, {len(SECRETS)} secrets: {found} hits in {len(written)} files "
        f"({size / 1e6:.1f} MB) and {said:,} printed characters, raw, base64 or percent-encoded"
    )
