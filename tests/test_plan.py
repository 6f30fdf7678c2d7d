"""plan: whether a recipe fits a card, what would make it fit, and what it says of bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from whispers import config

from peft_whisper import plan as command
from peft_whisper.errors import UserError
from peft_whisper.memory.cards import CARDS, find_card
from peft_whisper.planning import jobs
from peft_whisper.planning.explain import standing
from peft_whisper.planning.plans import Plan, job_of, make_plans
from peft_whisper.planning.report import show
from peft_whisper.recipe import with_training
from peft_whisper.recipe_yaml import load_recipe

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = """
base: {{model: {base}}}
data:
  train: {{manifest: none.jsonl}}
  validation: {{manifest: none.jsonl}}
  test: {{manifest: none.jsonl}}
  language: en
adapter: {{rank: 4}}
training: {{updates: 9, batch: {batch}, learning_rate: 1e-4, optimizer: adamw8bit}}
evaluation: {{every: 3, batch: {decoded}}}
"""
ROOMY, SCARCE = "1", "0.8"  # GiB; half of one is CUDA's own
LABELS = 24


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two recipes over a Whisper that is 16 wide, and a memory of answers for this file alone."""
    here = tmp_path_factory.mktemp("plan")
    config().save_pretrained(here / "small")
    for name, batch, decoded in (("modest", 2, 2), ("greedy", 24, 16)):
        text = RECIPE.format(base=here / "small", batch=batch, decoded=decoded)
        (here / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(here / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("COLUMNS", "140")
        patch.chdir(here)
        yield here


def python(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def planned(*words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    return python("-m", "peft_whisper.plan", "--labels", f"{LABELS}", *words, expect=expect)


@pytest.fixture(scope="module")
def greedy(folder: Path) -> Plan:
    """The recipe that is too large for the scarce card."""
    (found,) = make_plans([load_recipe("greedy.yaml")], find_card(SCARCE), 30, LABELS)
    return found


def text_of(plans: list[Plan], width: int = 120) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    show(plans, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_table_json_picture_and_arithmetic_of_two_recipes(folder: Path) -> None:
    words = ("modest.yaml", "greedy.yaml", "--card", ROOMY, "--explain")
    said = planned(*words, "--json", "plan.json", "--picture", "new/plan.png").stdout
    rows = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert re.search(r"LoRA all r4 +fp32 +none +2 x 30 s", rows["modest"])
    assert "a card of 1 GiB: 0.50 GiB usable of 1.00" in said
    for promise in ("nothing was measured", "CUDA context (assumed)", "cuDNN"):
        assert promise in said
    for lesson in ("each further clip adds", "(1500 + 448) x 16 numbers", "size of the data set"):
        assert lesson in re.sub(r"\s+", " ", said)
    modest, large = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    assert (modest["recipe"], large["recipe"]) == ("modest", "greedy")
    assert modest["micro_batch"] == {"clips": 2, "positions": 1500, "labels": LABELS}
    assert modest["verdict"] == "fits" and modest["fits"] and modest["kind"] == "traced"
    assert sum(modest["parts"].values()) <= modest["peak_bytes"] <= modest["reserved_bytes"]
    assert modest["peak_bytes"] < large["peak_bytes"]
    from matplotlib.image import imread

    pixels = imread(folder / "new" / "plan.png")
    assert pixels.shape[1] == 1280 and 300 < pixels.shape[0] < 800
    colours = {tuple(pixel) for row in pixels[:, ::4, :3].round(2) for pixel in row}
    assert len(colours) > 50


def test_what_was_traced_is_told_at_once_and_without_torch(greedy: Plan) -> None:
    began = time.monotonic()
    words = ("greedy.yaml", "--card", SCARCE, "--json", "-")
    done = python("-X", "importtime", "-m", "peft_whisper.plan", "--labels", f"{LABELS}", *words)
    took = time.monotonic() - began
    imported = set(re.findall(r"import time:.*\| +(\w+)", done.stderr))
    assert len(imported) > 50
    assert not imported & {"torch", "transformers", "peft", "matplotlib"}
    assert json.loads(done.stdout)[0] == json.loads(json.dumps(greedy.as_dict()))
    print(f"a remembered plan: {took:.1f} s")
    assert took < 2 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_a_remembered_answer_starts_no_process(
    greedy: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs.subprocess, "Popen", None)  # a call would be a TypeError
    # Neither speech nor schedule takes memory.
    words = [
        "greedy.yaml",
        "--card",
        SCARCE,
        "--labels",
        f"{LABELS}",
        "training.updates=50",
        "data.language=de",
    ]
    assert command.main(words) == 0
    assert "too large" in capsys.readouterr().out


def test_each_change_that_is_offered_makes_it_fit(greedy: Plan) -> None:
    assert greedy.verdict == "too large"
    said = text_of([greedy])
    assert "is too large: training takes" in said
    offered = [
        change["overrides"]
        for change in greedy.found["changes"]
        if "too large" not in (change["cost"]["verdict"], change["decoding"]["verdict"])
    ]
    kinds = " ".join(key for overrides in offered for key in overrides)
    assert "training.micro_audio_s" in kinds and "training.recompute" in kinds
    for overrides in offered:
        assert " ".join(overrides) in said
    changed = [load_recipe("greedy.yaml", overrides) for overrides in offered]
    for overrides, one in zip(offered, make_plans(changed, greedy.card, 30, LABELS), strict=True):
        assert one.verdict != "too large", overrides


def test_the_largest_batch_fits_and_one_more_does_not(greedy: Plan) -> None:
    largest = greedy.found["largest"]
    assert 0 < largest["clips"] < 24
    assert largest["cost"]["verdict"] != "too large"
    assert largest["cost"]["allocated"] <= greedy.card.usable
    assert largest["next_cost"]["verdict"] == "too large"


def test_counts_times_bytes_are_what_was_traced(greedy: Plan) -> None:
    rows = list(standing(greedy))
    parts = greedy.training["parts"]
    traced = sum(parts[part] for part in ("weights", "adapters", "optimizer"))
    reckoned = sum(count * size for _, count, size in rows)
    assert {what.split()[0] for what, *_ in rows} >= {"frozen", "adapter,", "Adam's"}
    assert 0.97 < reckoned / traced <= 1  # rounded up to 512 bytes each


def test_a_narrow_terminal_loses_neither_names_nor_figures(greedy: Plan) -> None:
    said = text_of([greedy], width=80)
    assert re.search(r"^greedy +24 x 30 s +0\.\d+ +0\.\d+ +-0\.\d+ +too large +\d+ *$", said, re.M)
    assert "greedy: LoRA all r4 in fp32" in said
    assert "…" not in said


def test_a_card_without_bf16_is_said_with_the_way_out(greedy: Plan) -> None:
    training = greedy.recipe.training.model_copy(update={"precision": "bf16"})
    recipe = greedy.recipe.model_copy(update={"training": training})
    said = text_of([replace(greedy, recipe=recipe, card=CARDS["t4"])])
    assert "NVIDIA T4 has no bf16" in said
    assert "training.precision=fp16" in said
    assert "has no bf16" not in text_of([replace(greedy, recipe=recipe, card=CARDS["a10"])])


def test_a_compiled_step_is_traced_as_it_is_without_and_this_is_said(greedy: Plan) -> None:
    recipe = with_training(greedy.recipe, compile=True)
    assert "greedy: traced without training.compile" in text_of([replace(greedy, recipe=recipe)])
    assert "compile" not in text_of([greedy])
    assert job_of(recipe, greedy.card, greedy.ways, True).key() == (
        job_of(greedy.recipe, greedy.card, greedy.ways, True).key()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("modest.yaml --card b200", "expected one of t4, a10"),
        ("training.batch=2", "name a recipe file too"),
        ("modest.yaml --seconds 0", "above 0 and up to 30"),
        ("modest.yaml --seconds 31", "above 0 and up to 30"),
        ("modest.yaml --seconds nan", "found nan"),
        ("modest.yaml --labels 0", "expected 1 to 448"),
        ("modest.yaml --labels 449", "expected 1 to 448"),
        ("modest.yaml gone.yaml", "gone.yaml: No such file"),
        ("modest.yaml --picture cache", "is a folder"),
        ("modest.yaml --picture plan.svg", "should end in .png"),
        ("modest.yaml --picture modest.yaml/plan.png", "can't be written"),
        ("modest.yaml --json /proc/plan.json", "can't be written"),
        ("modest.yaml adapter={method: none} base.quantize=nf4", "can't be trained themselves"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.subprocess, "Popen", None)  # before anything is traced
    with pytest.raises(UserError) as refused:
        command.main(re.split(r" (?!none)", words))
    assert refused.value.exit_code == 2
    assert said in str(refused.value)


def test_no_recipe_at_all_is_refused() -> None:
    assert "RECIPE" in planned(expect=2).stderr


def test_a_base_that_cannot_be_had_is_named_with_its_recipe(folder: Path) -> None:
    (folder / "empty").mkdir()
    for name, base in (("unknown", "someone/unknown"), ("hollow", "empty")):
        text = RECIPE.format(base=base, batch=2, decoded=2)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    both = planned("unknown.yaml", "modest.yaml", "--card", ROOMY, expect=2)
    assert both.stderr.startswith("unknown: base.model: someone/unknown is not on this machine")
    hollow = planned("hollow.yaml", "--card", ROOMY, expect=2)
    assert "base.model: empty: has no config.json" in hollow.stderr
    assert len(hollow.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are listed by Linux")
def test_an_interrupt_leaves_no_process_behind() -> None:
    words = ("-m", "peft_whisper.plan", "greedy.yaml", "--card", "0.8", "--labels", "9")
    running = subprocess.Popen(
        [sys.executable, *words],
        stderr=subprocess.PIPE,
        text=True,
        # else the child of a shell's background job would not hear it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    children = Path(f"/proc/{running.pid}/task")
    workers: list[str] = []
    while not workers and running.poll() is None:
        time.sleep(0.05)
        workers = [pid for one in children.glob("*/children") for pid in one.read_text().split()]
    running.send_signal(signal.SIGINT)  # to it alone: a terminal tells its workers too
    _, complaints = running.communicate(timeout=20)
    assert running.returncode == 130
    assert complaints.strip().startswith("interrupted;")
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
