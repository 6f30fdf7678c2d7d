"""`explore` on planted faults: they are shown, escaped, and never stop it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import whispers
from rich.console import Console

from peft_whisper import explore
from peft_whisper.data.epochs import Context, Layout
from peft_whisper.data.labels import Labels
from peft_whisper.data.scripts import is_foreign, is_invisible, visible
from peft_whisper.data.survey import outlook
from peft_whisper.data.transcripts import spell
from peft_whisper.errors import DataError, RecipeError
from peft_whisper.positions import heard_positions
from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import open_session

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = """
base: {model: base}
data:
  train: {manifest: train.jsonl}
  validation: {manifest: validation.jsonl}
  test: {manifest: test.jsonl}
  language: en
  note: planted <b>faults</b>
adapter: {rank: 4, alpha: 8}
training: {epochs: 2, batch: 4, accumulation: 2, learning_rate: 1e-3, warmup: 1}
evaluation: {every: 2, batch: 4, bootstrap: 100, max_tokens: 8}
"""
TRAIN = {
    "plain": "Turn left at the gate.",
    "caps": "HOLD YOUR FIRE",
    "digits": "Move to 14 now.",
    "unicode": "Café “naïve” 中文 ☃",
    "script": "Say <script>alert('hi')</script> twice.",
    "escape": "red\u200b six [noise] \u001b[31m",
    "mojibake": "The cafÃ© is open.",
    "homoglyph": "Cover the \u0440ear.",  # a Cyrillic er
    "fast": "far too many words for so short a sound as this one is, word upon word " * 3,
    "bra[vo]": "Six.",
    "tachycardia": "Ventricular tachycardia.",
    "leaked": "Stop here.",
}


def sound(number: int, seconds: float) -> np.ndarray:
    rng = np.random.default_rng(number)
    time = np.arange(int(16_000 * seconds)) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 30 * number) * time)
    return (tone + 0.01 * rng.standard_normal(time.size)).astype(np.float32)


def write(folder: Path, split: str, waves: dict[str, np.ndarray], texts: dict[str, str]) -> None:
    rows = []
    for number, (clip, wave) in enumerate(waves.items()):
        name = f"{split}-{number}.wav"
        soundfile.write(folder / name, wave, 16_000)
        rows.append({"id": clip, "audio": name, "text": texts[clip], "speaker": "Ann"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny multilingual base and speech with one of every fault; clean.yaml has none."""
    folder = tmp_path_factory.mktemp("place")
    whispers.save_base(folder / "base", "multilingual", 80)
    waves = {clip: sound(at, 1 + at / 10) for at, clip in enumerate(TRAIN)}
    silent = {"silent <i>one</i>": np.zeros(16_000, np.float32)}
    texts = TRAIN | {"silent <i>one</i>": "nothing"}
    write(folder, "train", waves | silent, texts)
    held_out = {f"{number}": sound(40 + number, 1.5) for number in range(5)}
    said = dict(zip(held_out, ("One.", "Red two.", "Three.", "Go four.", "Five."), strict=True))
    write(folder, "validation", held_out, said)
    tested = {f"t{number}": sound(60 + number, 2) for number in range(5)}
    leak = {"t5": waves["leaked"]}
    write(
        folder,
        "test",
        tested | leak,
        {clip: f"Tested {word}." for clip, word in zip(tested | leak, "abcdef", strict=True)},
    )
    (folder / "faulty.yaml").write_text(RECIPE, encoding="utf-8")
    write(folder, "clean", waves, TRAIN)
    write(
        folder,
        "other",
        tested,
        {clip: f"Tested {word}." for clip, word in zip(tested, "abcde", strict=True)},
    )
    clean = RECIPE.replace("train.jsonl", "clean.jsonl").replace("test.jsonl", "other.jsonl")
    (folder / "clean.yaml").write_text(clean, encoding="utf-8")
    return folder


@pytest.fixture
def run(place: Path, monkeypatch, capsys):
    """Run the command in this process, wide; returns what the terminal shows."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "240")

    def command(*arguments: str) -> str:
        capsys.readouterr()
        assert explore.main(list(arguments)) == 0
        return capsys.readouterr().out

    return command


@pytest.fixture(scope="module")
def faulty(place: Path) -> tuple[str, str]:
    """The faulty recipe in a real process: what the terminal showed, and the page."""
    before = {path for path in place.rglob("*") if path.is_file()}
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "240",
    }
    done = subprocess.run(
        [sys.executable, "-m", "peft_whisper.explore", "faulty.yaml"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    page = place / "outputs" / "faulty-explore.html"
    assert {path for path in place.rglob("*") if path.is_file()} - before == {page}
    return done.stdout, page.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """What elements a page really has, and its visible text."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_faults_are_shown_and_do_not_stop_it(faulty: tuple[str, str]) -> None:
    terminal, page = faulty
    text = Tags(page).text
    for shown in (terminal, text):
        assert "train.jsonl:13" in shown
        assert "silent <i>one</i>" in shown
        assert "level 0.0e+00" in shown
        assert "the same samples" in shown
        assert "1 clip can't be used (1 silent)" in shown
        assert "Training would stop" in shown
    assert re.search(r"train leaked = test t5", terminal)
    last = terminal[terminal.rindex("Training would stop") :]
    assert "All are in the list of rejected clips" in last
    assert "1 recording in more than one split" in last
    assert "page: outputs/faulty-explore.html" in terminal


def test_every_oddity_of_the_transcripts_is_named(faulty: tuple[str, str]) -> None:
    terminal, page = faulty
    rows = {line[:33].strip(): line for line in terminal.splitlines()}
    for habit, example in {
        "ALL CAPS": "caps",
        "digits": "digits",
        "brackets or markup": "script",
        "symbols": "unicode",
        "invisible characters": "escape",
        "letters of another script": "unicode",
        "broken encoding": "mojibake",
    }.items():
        line = next(line for name, line in rows.items() if name.startswith(habit))
        assert f"{example}: " in line, line
    for name in ("U+200B zero width space", "U+0440 cyrillic small letter er", "U+2603 snowman"):
        assert name in terminal
        assert name in Tags(page).text
    word = next(line for line in terminal.splitlines() if line.startswith("tachycardia "))
    assert word.split(maxsplit=3)[1:3] == ["1", "5"]
    assert "\u2423t | ach | y | card | ia" in word
    fastest = next(line for line in terminal.splitlines() if line.startswith("fastest"))
    assert "fast (train)" in fastest


def test_nothing_hostile_reaches_terminal_or_page(faulty: tuple[str, str], place: Path) -> None:
    terminal, page = faulty
    for shown in (terminal, page):
        assert "\u200b" not in shown
        assert "\u27e8U+001B\u27e9" in shown
        assert "\u001b[31m" not in shown
    tags = Tags(page)
    assert not {"script", "i", "b"} & {tag for tag, _ in tags.found if tag != "b"}
    assert "Say <script>alert('hi')</script> twice." in tags.text
    assert "planted <b>faults</b>" in tags.text
    assert "planted <b>faults</b>" in terminal
    assert "bra[vo]" in terminal  # rich would read it as markup
    assert str(place) not in page
    assert str(Path.home()) + "/" not in page


def test_the_page_fetches_nothing(faulty: tuple[str, str]) -> None:
    tags = Tags(faulty[1])
    players = [attributes for tag, attributes in tags.found if tag == "audio"]
    assert len(players) == 5 + 5 + 2 + 3  # the longest in seconds is not the longest in tokens
    for _, attributes in tags.found:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("data:", "#")), value[:80]
    assert len([tag for tag, _ in tags.found if tag == "svg"]) == 3 + 3


def test_the_same_speech_gives_the_same_bytes(place: Path, run, faulty) -> None:
    run("faulty.yaml", "--into", "again.html")
    assert (place / "again.html").read_text(encoding="utf-8") == faulty[1]


def test_clean_speech_and_a_chosen_clip(place: Path, run) -> None:
    """Clean speech would train; the clip is fed and learned from as training does."""
    terminal = run("clean.yaml", "--into", "clean.html", "--rows", "plain")
    assert terminal.rstrip().endswith("Nothing in this speech would stop training.")
    assert "rejected clip" not in terminal
    assert "leaks" not in terminal
    page = (place / "clean.html").read_text(encoding="utf-8")
    assert re.findall(r'class="card steps"><p><code>([^<]*)</code>', page) == ["plain"]
    begin = terminal.index("for instance by plain")
    lines = [line.split() for line in terminal[begin:].splitlines()[2:]]
    steps = lines[: next(at for at, words in enumerate(lines) if not words[0].isdigit())]
    assert steps[0] == ["0", "50258", "<|startoftranscript|>", "50259", "<|en|>", "yes"]
    assert steps[1][2:5] == ["<|en|>", "50359", "<|transcribe|>"]
    assert steps[2][2:5] == ["<|transcribe|>", "50363", "<|notimestamps|>"]
    assert steps[3][2::2] == ["<|notimestamps|>", "\u2423Turn"]
    assert steps[-1][-3:] == ["50257", "<|endoftext|>", "yes"]
    assert sum("<|startoftranscript|>" in words for words in steps) == 1
    assert "<|startoftranscript|> is fed 1 x, <|endoftext|> is learned" in terminal


def test_rows_by_number_and_by_id(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    recipe = load_recipe("clean.yaml", ["data.timestamps=1.0"])
    session = open_session(recipe, Console(quiet=True), weights=False)

    def rows(*wanted: str) -> list[str]:
        return [one.clip.id for one in explore.chosen(wanted or None, session)]

    in_order = list(TRAIN)  # from the shortest to the longest
    assert rows() == [in_order[0], in_order[6], in_order[-1]]
    assert rows("2") == ["2"]  # there is a clip of that name
    assert rows("12") == rows("50") == in_order
    assert rows("7")[::6] == [in_order[0], in_order[-1]]
    assert rows("t2", "caps", "t2") == ["t2", "caps"]
    lesson = explore.taught(session, explore.chosen(["plain"], session)[0])
    assert [step.fed for step in lesson.steps][3] == "<|0.00|>"
    assert [step.target for step in lesson.steps][-2:] == ["<|1.00|>", "<|endoftext|>"]
    assert all(step.in_loss for step in lesson.steps)
    assert lesson.mel.shape == (80, 2 * heard_positions(192))


def test_a_clip_that_is_gone_since_it_was_checked_is_named(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    session = open_session(load_recipe("clean.yaml"), Console(quiet=True), weights=False)
    clip = next(clip for clip in session.splits.train if clip.id == "plain")
    gone = replace(clip, audio=replace(clip.audio, path="gone.wav"))
    said = "clip plain has changed since it was checked: unreadable: no such file"
    with pytest.raises(DataError, match=said):
        explore.sound(session, gone)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rows", "plian"), r"no clip plian; did you mean plain\?"),
        (("--rows", "silent <i>one</i>"), "of train was rejected: silent"),
        (("--rows", "plain", "seed=2"), "overrides stand before --rows"),
        (("--rows", "2", "training.updates=3"), "no clip training.updates=3; overrides stand"),
        (("--rows", "51"), "at most 50"),
        (("--into", "base"), "base is a folder"),
        (("--into", "outputs/faulty/look.html"), "in the run's own folder"),
        (("--into", "train.jsonl/look.html"), "train.jsonl is not a folder"),
    ],
)
def test_mistakes_are_explained(place: Path, run, arguments: tuple[str, ...], said: str) -> None:
    before = set(place.rglob("*"))
    with pytest.raises(RecipeError, match=said):
        run("faulty.yaml", *arguments)
    assert set(place.rglob("*")) == before


def test_a_page_that_can_not_be_written_is_a_sentence(run) -> None:
    with pytest.raises(RecipeError, match="can't be written"):
        run("clean.yaml", "--into", "/proc/look.html", "--rows", "plain")


def test_a_train_split_without_a_clip_is_still_shown(place: Path, run) -> None:
    text = (place / "train.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    (place / "nothing.jsonl").write_text(text + "\n", encoding="utf-8")
    terminal = run("faulty.yaml", "data.train.manifest=nothing.jsonl", "--into", "empty.html")
    assert "Training would stop" in terminal
    assert "There is nothing to train on." in (place / "empty.html").read_text(encoding="utf-8")


def test_the_outlook_is_what_training_does() -> None:
    """10 clips of 2 s in batches of 4: 2 updates an epoch, 3 micro-batches of 192 positions."""
    ahead = outlook([2.0] * 10, Layout(4, 2, 1), Context(3), seed=1, updates=6)
    assert (ahead.clips_per_update, ahead.updates_per_epoch, ahead.planned) == (8, 2, 6)
    assert ahead.batches == ((192, 9),)
    assert ahead.mean_positions == 192
    assert ahead.saved == pytest.approx(1 - 192 / 1500)
    assert ahead.padding == pytest.approx(1 - 100 / 192)
    assert ahead.padding_at_30_s == pytest.approx(1 - 2 / 30)
    whole = outlook([2.0] * 10, Layout(4, 2, 1), Context(1500), seed=1, updates=6)
    assert whole.batches == ((1500, 9),)
    assert whole.saved == 0


def test_scripts_and_spelling() -> None:
    assert not is_foreign("é", "en")
    assert is_foreign("\u0440", "en")
    assert not is_foreign("\u0440", "ru")
    assert not any(is_foreign(c, "ja") for c in "日本のカー")
    assert is_invisible("\u200c", "en")
    assert not is_invisible("\u200c", "fa")
    assert visible("a\u202eb\n") == "a\u27e8U+202E\u27e9b\u27e8U+000A\u27e9"
    labels = Labels(whispers.tokenizer("multilingual"), 51_865)
    pieces = [spell(token, labels) for token in labels.text("☃ ok", None)]
    assert "\u2423ok" in pieces
    assert any(re.fullmatch("\u27e8[0-9A-F ]+\u27e9", piece) for piece in pieces)


def test_help_answers_at_once() -> None:
    code = (
        "import sys, peft_whisper.explore as command; command.parser().format_help(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
