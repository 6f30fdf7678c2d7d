"""A comparison's runs, in real processes: made once, gone on with after a kill, never dropped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import compare
import pytest
import soundfile
import whispers
from comparing import tracing
from comparing.general import General
from comparing.methods import make_methods
from comparing.page import write_page
from comparing.planned import Budget, output, plan_runs
from comparing.processes import launched
from comparing.results import make_result, read_kept, write_result
from comparing.sitting import LEFT_BEHIND, budgeted, hear, pace_of, time_updates, train
from comparing.table import Made, show
from comparing.tracing import read_places, trace
from rich.console import Console
from test_train import REPOSITORY, make_place, sound, transcript

from peft_whisper.errors import RecipeError
from peft_whisper.memory.cards import find_card

SHORT = ("training.updates=2", "evaluation.max_tokens=4", "evaluation.bootstrap=20")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The tiny place, with other sound for the test's transcripts, to see what is forgotten."""
    folder = make_place(tmp_path_factory.mktemp("place"))
    rows = []
    for number in range(25, 32):
        soundfile.write(folder / f"clean{number}.wav", sound(number + 100), 16_000)
        rows.append({"audio": f"clean{number}.wav", "text": transcript(number)})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "clean_test.jsonl").write_text(text, encoding="utf-8")
    return folder


def start(place: Path, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    script = str(REPOSITORY / "benchmarks" / "compare.py")
    return subprocess.Popen(
        [sys.executable, script, "tiny.yaml", *SHORT, "--into", "results", *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(happened, seconds: float = 240) -> None:
    """Wait for it; a machine that is busy with other tests may take its time."""
    over = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < over, "it did not happen"
        time.sleep(0.1)


def end(process: subprocess.Popen, expect: int) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == expect, said
    assert "Traceback" not in said
    return said


def test_killed_twice_it_goes_on_with_nothing_lost_or_run_twice(place: Path) -> None:
    """Outright in the first run, which lives on and is read; with a word in the second."""
    runs, results = place / output(), place / "results"
    killed = start(place, "--seeds", "2")
    until(lambda: list(runs.glob("tiny-s1-*.log")))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    asked = start(place, "--seeds", "2")
    until(lambda: list(runs.glob("tiny-s2-*/log.jsonl")))
    (first,) = results.glob("[!.]*.json")
    before = first.stat().st_mtime_ns
    asked.send_signal(signal.SIGTERM)
    assert "is still writing to" in end(asked, expect=130)
    assert list(results.glob("[!.]*.json")) == [first]
    said = end(start(place, "--seeds", "2"), expect=0)
    assert "[1/1] tiny, seed 2" in said
    assert first.stat().st_mtime_ns == before
    kept = read_kept(results)
    assert kept.problems == ()
    by_seed = {one["seed"]: one for one in kept.results.values()}
    assert by_seed.keys() == {1, 2}
    assert by_seed[1]["wall_s"] is None  # nobody saw how long it took, though it was heard
    assert by_seed[2]["wall_s"] > 1
    for one in kept.results.values():
        check(one, place)
    assert not list(runs.glob("*.old-*"))
    assert "0 of 2 to do" in end(start(place, "--seeds", "2", "--dry-run"), expect=0)


def check(result: dict, place: Path) -> None:
    """What a result says is what its run's folder says, and no folder of this machine."""
    run = place / result["run"]
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert result["outcome"] == "finished"
    measured = result["measured"]
    assert measured["scores"]["tuned"]["wer"] == metrics["tuned"]["wer"]
    assert measured["training"] == metrics["training"]
    assert measured["clips_heard"] in (12, 16)  # updates of 8, and one of the 4 that are left
    clips = measured["clips"]
    assert sum(clips["tuned"]["errors"]) / sum(clips["words"]) == metrics["tuned"]["wer"]
    assert [row["update"] for row in measured["curve"]] == [0, 2]
    (heard,) = result["general"].values()
    assert heard["speech"] == "clean_test"
    assert len(heard["clips"]["words"]) == 7
    assert str(place) not in json.dumps(result)


def test_a_run_that_stops_is_a_result_and_is_not_made_again(
    place: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of this process, not of the command
    arguments = ["tiny.yaml", "data.train.manifest=gone.jsonl", "--into", "stopped"]
    assert compare.main(arguments) == 0
    assert "gone.jsonl" in capsys.readouterr().out
    (kept,) = read_kept(Path("stopped")).results.values()
    assert (kept["outcome"], kept["exit"]) == ("stopped", "3")
    assert any("gone.jsonl" in line for line in kept["said"])
    for name in ("README.md", "index.html"):
        assert "tiny, seed 1: stopped (exit 3)" in Path("stopped", name).read_text(encoding="utf-8")
    assert compare.main([*arguments, "--dry-run"]) == 0
    assert "0 of 1 to do" in capsys.readouterr().out


def test_a_card_is_traced_once_for_all_seeds(place: Path, monkeypatch) -> None:
    """The recipe's namesake for the card is, where one is named, and not again the next time."""
    monkeypatch.chdir(place)
    text = "recipe: tiny.yaml\nvariants: {tiny: {adapter.rank: 64, adapter.alpha: 64}}\n"
    Path("large.yaml").write_text(text, encoding="utf-8")
    runs = plan_runs(["tiny.yaml", *SHORT], 2, Budget())
    results = {run.key: make_result(run, LEFT_BEHIND, None) for run in runs}
    found, asked, plans = [], [], tracing.make_plans
    monkeypatch.setattr(tracing, "make_plans", lambda *of: asked.append(of) or plans(*of))
    for files in ([], ["large.yaml"], ["large.yaml"]):
        (there,) = read_places([find_card("a10")], files, runs)
        trace(runs, results, Path("traced"), there, Console())
        key = there.key(runs[0].label, runs[0].method)
        first, second = (results[run.key]["traced"][key] for run in runs)
        assert first == second
        assert first["fits"]
        found.append(first["reserved_bytes"])
    assert found[2] == found[1] > found[0]
    assert len(asked) == 2


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> Path:
    """The tiny place on a base that knows English alone, as the rival's `generate` needs here."""
    folder = make_place(tmp_path_factory.mktemp("english"))
    shutil.rmtree(folder / "base")
    whispers.save_base(folder / "base", ".en", 80)
    return folder


def test_the_rival_s_run_is_read_as_one_of_ours(english: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(english)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    run, ours = plan_runs(["tiny.yaml", *SHORT], 1, Budget(), rival=True)[::-1]
    assert (run.rival, ours.rival) == (True, False)
    assert run.key != ours.key
    result = train(run, Console(quiet=True))
    assert result["outcome"] == "finished", result["said"]
    test = Path(run.recipe.data.test.manifest)
    source = {"manifest": test.as_posix(), "limit": 3}
    heard = hear(run, General("test", source, "test"), Console(quiet=True))
    assert "failed" not in heard, heard
    first = {name: values[:3] for name, values in result["measured"]["clips"]["tuned"].items()}
    assert heard["clips"]["tuned"] == first  # the same clips, by the adapter that was kept
    write_result(Path("results"), result | {"general": {"test": heard}})
    kept = read_kept(Path("results"))
    assert kept.problems == ()
    (method,) = make_methods(list(kept.results.values()), {})
    assert method.wer.value == result["measured"]["scores"]["tuned"]["wer"]
    assert method.padded is None  # it knows nothing else
    assert method.forgotten("test") is not None
    show([method], Made(), Console(width=80))
    assert "rival" in capsys.readouterr().out
    assert write_page(Path("results"), [method], Made()).is_file()


def test_minutes_become_updates_by_the_pace_that_was_measured(english: Path, monkeypatch) -> None:
    monkeypatch.chdir(english)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (run,) = plan_runs(["tiny.yaml", *SHORT, "training.warmup=0"], 1, Budget(minutes=0.01))
    assert time_updates(run, Console(quiet=True)).outcome == "finished"
    timed = json.loads(pace_of(run).read_text(encoding="utf-8"))
    assert timed["updates"] >= 3
    assert budgeted(run) == (f"training.updates={max(1, int(0.6 / timed['update_s']))}",)
    (warming,) = plan_runs(["tiny.yaml", *SHORT, "training.warmup=1"], 1, Budget(minutes=1e-9))
    pace_of(warming).write_text('{"update_s": 1.0, "frozen_s": 0.5}', encoding="utf-8")
    with pytest.raises(RecipeError, match="makes 1 updates in that, and has a warm-up of 1"):
        budgeted(warming)
    before = pace_of(run).stat().st_mtime_ns
    assert time_updates(run, Console(quiet=True)).outcome == "finished"  # known already
    assert pace_of(run).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("ends", "outcome", "exit_"),
    [
        ("os.kill(os.getpid(), 9)", "crashed", "SIGKILL"),
        ("raise MemoryError('no word of ours')", "crashed", "1"),
        ("sys.exit(75)", "no room", "75"),
    ],
)
def test_what_ends_a_run_is_recorded(
    tmp_path: Path, monkeypatch, ends: str, outcome: str, exit_: str
) -> None:
    (tmp_path / "bad.py").write_text(
        f"import os, sys\nprint('its last words', flush=True)\n{ends}\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    found = launched("bad", (), tmp_path / "bad.log")
    assert (found.outcome, found.exit) == (outcome, exit_)
    assert "its last words" in found.said
    assert str(tmp_path) not in "".join(found.said)
