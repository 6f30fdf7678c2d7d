"""Report and card: true to the run's records, safe to open, the same every time."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from peft_whisper.scoring.card import write_card
from peft_whisper.scoring.metrics import difference, measure, summarize
from peft_whisper.scoring.normalize import normalizer
from peft_whisper.scoring.report import Differences, chosen_clips, print_scores, write_report

CLIPS = {  # id: (said, base, tuned)
    "a": ("the quick brown fox", "fox fox fox fox fox fox fox", "the quick brown fox"),
    "b": ("press <one> & wait", "", "Press. Wait!"),
    "c": ("good morning", "good morning", "good mourning"),
    "d": ("nothing is lost", "thanks for watching", "nothing is lost at all"),
}
RECIPE = """
name: trial
base: {model: openai/whisper-tiny.en}
data:
  train: {manifest: train.jsonl}
  validation: {from_train: 0.1}
  test: {from_train: 0.1}
  language: en
  note: simulated <throat> microphone
training: {updates: 3, learning_rate: 1e-3}
evaluation: {every: 1}
"""


def sound(clip: str) -> np.ndarray:
    return 0.1 * np.sin(np.arange(8000) * 0.05 * (1 + ord(clip) % 7)).astype(np.float32)


def record(folder: Path) -> Path:
    """A run's records, as train leaves them, with real counts of made-up transcripts."""
    clean = normalizer("english")
    systems = {"base": 1, "tuned": 2, "base_full_context": 1, "tuned_full_context": 2}
    counted = {
        system: [measure(texts[0], texts[at], clean) for texts in CLIPS.values()]
        for system, at in systems.items()
    }
    names = ("words", "substitutions", "deletions", "insertions")
    rows = [
        {"id": clip, "reference": texts[0], "duration_s": 0.5}
        | {system: texts[at] for system, at in systems.items()}
        | {
            "counts": {s: {n: getattr(counted[s][k], n) for n in names} for s in systems},
            "flags": {s: list(counted[s][k].flags) for s in systems},
        }
        for k, (clip, texts) in enumerate(CLIPS.items())
    ]
    metrics = {s: summarize(us, "english", 200, 1).as_dict() for s, us in counted.items()}
    metrics["difference"] = difference(counted["base"], counted["tuned"], 200, 1)
    speed = {"updates": 3, "clips_per_s": 9.5, "audio_s_per_s": 21.0, "seconds": 90.0}
    metrics["training"] = speed | {"peak_bytes": 3 * 2**30, "peak_kind": "resident, measured"}
    held = {"clips": 4, "hours": 0.01, "fingerprint": "f", "speakers": 1}
    facts = {
        "versions": {"peft_whisper": "0.1.0", "torch": "2"},
        "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None},
        "base": {
            "model": "openai/whisper-tiny.en",
            "revision": "abc",
            "fingerprint": "sha256:" + "0" * 64,
            "parameters": 37_760_256,
            "multilingual": False,
        },
        "data": dict.fromkeys(("train", "validation", "test"), held),
        "trainable_parameters": 1000,
        "best": {"update": 2, "metric": "mer", "value": 0.25},
    }
    events = [{"event": "start", "updates": 3, "per_epoch": 3}]
    for update in range(4):
        rates = {"wer": 1.2 - 0.2 * update, "mer": 0.9 - 0.1 * update, "loops": 0, "empties": 0}
        rates["loss"] = 2.1 - 0.3 * update
        events.append({"event": "validation", "update": update, "best": True} | rates)
        events.append({"event": "train", "update": update + 1, "loss": 2.0 - 0.3 * update})
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    for name, listed in (("predictions", rows), ("log", events)):
        text = "".join(json.dumps(row) + "\n" for row in listed)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    return record(tmp_path)


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside of them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_says_what_the_records_say_and_fetches_nothing(scored: Path) -> None:
    write_report(scored, sound, "english")
    html = (scored / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    metrics = json.loads((scored / "metrics.json").read_text(encoding="utf-8"))
    for system in ("base", "tuned"):
        assert f"{100 * metrics[system]['wer']:.1f} %" in page.text
    assert "All test clips are of one speaker" in page.text
    assert "press <one> & wait" in page.text  # escaped in the file, so it is text here
    assert not {tag for tag, _ in page.tags} & {"script", "one", "throat", "link", "iframe"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), f"<{tag}> fetches {value[:40]}"
    players = [attributes for tag, attributes in page.tags if tag == "audio"]
    assert len(players) == 4
    print(f"report.html: {len(players)} players, {len(html):,} characters, nothing fetched")


def test_the_same_records_give_the_same_bytes(scored: Path) -> None:
    made = []
    for _ in range(2):
        write_report(scored, sound, "english")
        write_card(scored)
        made.append([(scored / name).read_bytes() for name in ("report.html", "README.md")])
    assert made[0] == made[1]


def test_worst_and_most_improved_clips_are_chosen_once(scored: Path) -> None:
    lines = (scored / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    worst, improved = chosen_clips([json.loads(line) for line in lines])
    assert [row["id"] for row in worst] == ["d", "c"]
    assert [row["id"] for row in improved] == ["a", "b"]


def test_differences_mark_each_kind_of_error() -> None:
    marked = Differences("basic").html("a b c", "a x c d")
    assert marked == ('a <span class="sub" title="said: b">x</span> c <span class="ins">d</span>')
    assert Differences("basic").html("a b", "a") == "a <del>b</del>"
    assert "(nothing)" in Differences("basic").html("", "")


def test_the_terminal_table_fits_80_columns(scored: Path, capsys) -> None:
    metrics = json.loads((scored / "metrics.json").read_text(encoding="utf-8"))
    print_scores(metrics, Console(width=80, soft_wrap=False))
    table = capsys.readouterr().out
    for system in ("base", "tuned", "base, full 30 s", "tuned, full 30 s"):
        assert re.search(rf"^{system} +\d", table, re.MULTILINE), table
    low, high = metrics["tuned"]["wer_interval"]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in table
    assert "\u2026" not in table  # nothing was cut


def test_the_card_holds_recorded_facts_and_metadata_that_the_hub_reads(scored: Path) -> None:
    write_card(scored)
    text = (scored / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    known = yaml.safe_load(front)
    metrics = json.loads((scored / "metrics.json").read_text(encoding="utf-8"))
    assert known["base_model"] == "openai/whisper-tiny.en"
    assert known["library_name"] == "peft"
    (result,) = known["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(100 * metrics["tuned"]["wer"], 2)
    assert "9.5 clips/s, measured" in body
    assert "one speaker" in body
    assert "Forgetting of general speech was not measured." in body
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")
    assert len(code[1].splitlines()) <= 10
    assert "{" not in code[1]


def test_what_was_forgotten_stands_in_the_card_where_it_was_measured(scored: Path) -> None:
    """`evaluate RUN --into RUN/general` leaves a folder that is scored as the run is."""
    shutil.copytree(scored, scored / "general")
    path = scored / "general" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["base"]["wer"], metrics["tuned"]["wer"] = 0.05, 0.065
    metrics["difference"] = {"wer": 0.015, "interval": [0.001, 0.03]}
    path.write_text(json.dumps(metrics), encoding="utf-8")
    write_card(scored)
    body = (scored / "README.md").read_text(encoding="utf-8")
    assert "6.5 % word errors, the base 5.0 %: +1.5 points (95 % interval +0.1 to +3.0" in body
    assert "was not measured" not in body.partition("## Limits")[2].partition("Energy")[0]


def test_a_local_base_is_no_hub_id_in_the_card(scored: Path) -> None:
    path = scored / "environment.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["base"] |= {"model": ".demo/whisper-tiny.en", "revision": None}
    path.write_text(json.dumps(facts), encoding="utf-8")
    write_card(scored)
    text = (scored / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])
