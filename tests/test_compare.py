"""A comparison's statistics against known answers; what it refuses; its table and its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import browser
import compared
import numpy as np
import pytest
from compare import QUICK, to_do
from comparing.general import general_speech
from comparing.methods import base_rates, make_methods
from comparing.methods import compared as pair
from comparing.page import write_page
from comparing.pictures import color, shape
from comparing.planned import Budget, plan_runs, speech_of
from comparing.processes import ending
from comparing.results import comparable, read_kept, write_result
from comparing.sitting import left_s
from comparing.statistics import Counts, difference, estimate, front, seed_spread, sentence
from comparing.table import Made, rows_of, show, write_readme
from comparing.tracing import Place, read_places
from rich.console import Console

from peft_whisper.errors import RecipeError
from peft_whisper.memory.cards import find_card
from peft_whisper.recipe_yaml import load_recipe

SIMULATED = 600
CLIPS = 80
RECIPE = """
base: {model: base}
data:
  train: {manifest: train.jsonl}
  validation: {manifest: validation.jsonl}
  test: {manifest: test.jsonl}
  language: en
adapter: {rank: 4, alpha: 8}
training: {updates: 4, batch: 4, learning_rate: 1e-3, warmup: 1}
evaluation: {every: 2, max_tokens: 8}
"""


def counts(
    rng: np.random.Generator, seeds: int, true: float, by_seed: float, by_clip: float, rest: float
) -> Counts:
    """Differences in errors whose truth is `true`, spread by seed, by clip and by both."""
    words = rng.integers(1, 15, CLIPS).astype(float)
    wrong = true * words + by_seed * rng.standard_normal((seeds, 1)) * words
    wrong = wrong + by_clip * rng.standard_normal(CLIPS)
    return Counts(
        wrong + rest * rng.standard_normal((seeds, CLIPS)), np.broadcast_to(words, wrong.shape)
    )


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_clip", "rest"),
    [
        (1, 0, 0.5, 0),
        (3, 0, 0.5, 0.1),
        (3, 0.02, 0.2, 0.2),
        (3, 0.02, 0.02, 0.02),
        (5, 0.01, 0.3, 0.3),
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, by_seed, by_clip, rest) -> None:
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(SIMULATED):
        found = estimate(counts(rng, seeds, 0.02, by_seed, by_clip, rest), resamples=500)
        held += found.low <= 0.02 <= found.high
    print(f"{seeds} seeds, spread {by_seed}, {by_clip}, {rest}: {100 * held / SIMULATED:.1f} %")
    assert 0.93 <= held / SIMULATED <= 0.97


def test_a_planted_difference_is_found_and_none_where_there_is_none() -> None:
    """Two points between methods that make mostly the same errors, as fine-tuned ones do."""
    rng = np.random.default_rng(3)
    words = np.broadcast_to(rng.integers(1, 15, 300).astype(float), (3, 300))
    hard = rng.beta(0.6, 1.6, 300)  # how hard each clip is, for both

    def errors(more: float) -> Counts:
        wrong = hard * words + more * words + 0.3 * rng.standard_normal(words.shape)
        return Counts(wrong, words)

    planted = [difference(errors(0.0), errors(-0.02), 500) for _ in range(40)]
    null = [difference(errors(0.0), errors(0.0), 500) for _ in range(200)]
    assert all(not one.holds_zero and one.value < 0 for one in planted)
    assert sum(one.holds_zero for one in null) >= 0.93 * 200
    assert "fewer word errors" in sentence("a", "b", planted[0], [1, 2, 3])
    quiet = next(one for one in null if one.holds_zero)
    assert re.fullmatch(
        r"b and a do not differ at this budget: [+-]0\.\d points, interval -0\.\d to \+0\.\d\.",
        sentence("a", "b", quiet, [1, 2, 3]),
    )
    assert "what another would change is not known" in sentence("a", "b", quiet, [1])


def test_one_seed_gives_the_bootstrap_that_the_product_reports() -> None:
    from peft_whisper.scoring.metrics import Utterance, summarize

    clips = compared.clips(0.3, 1)
    words, errors = clips["words"], clips["tuned"]["errors"]
    utterances = [
        Utterance(n, e, 0, 0, n - e, n, 0, ()) for n, e in zip(words, errors, strict=True)
    ]
    score = summarize(utterances, "raw", 2000, 1)
    found = estimate(Counts(np.array([errors], float), np.array([words], float)))
    assert (found.value, (found.low, found.high)) == (score.wer, score.wer_interval)


def test_the_spread_of_seeds_is_told_from_that_of_clips() -> None:
    rng = np.random.default_rng(5)
    found = [seed_spread(counts(rng, 5, 0.3, 0.02, 0.5, 0.1)) for _ in range(300)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(0.02, rel=0.1)
    assert seed_spread(counts(rng, 1, 0.3, 0.02, 0.5, 0.1)) == 0.0


def test_a_rate_is_not_below_nothing_where_two_seeds_disagree() -> None:
    words = np.full((2, 50), 10.0)
    wrong = np.array([np.full(50, 1.0), np.full(50, 5.0)])
    assert estimate(Counts(wrong, words)).low == 0.0
    assert estimate(Counts(wrong - 3, words)).low < 0


def test_what_nothing_beats_in_both_is_the_front() -> None:
    assert front([1, 2, 3, 2, 4], [30, 20, 10, 25, 10]) == [0, 1, 2]
    assert front([1, 1], [5, 5]) == [0, 1]  # equals do not beat each other


def test_a_difference_of_other_clips_is_refused() -> None:
    a, b = (Counts(np.ones((1, n)), np.ones((1, n))) for n in (3, 4))
    with pytest.raises(ValueError, match="same clips"):
        difference(a, b)


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """A folder with two recipes to plan runs of; nothing is run."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(RECIPE, encoding="utf-8")
    Path("b.yaml").write_text(RECIPE.replace("rank: 4", "rank: 8"), encoding="utf-8")
    return tmp_path


def test_recipes_sweeps_and_seeds_make_the_runs(here: Path) -> None:
    text = "recipe: a.yaml\nadapter.rank: [2, 16]\nadapter.modules: [all, [q, v]]\n"
    Path("sweep.yaml").write_text(text, encoding="utf-8")
    runs = plan_runs(["b.yaml", "sweep.yaml", "training.batch=2"], 3, Budget(updates=6))
    assert len(runs) == len({run.key for run in runs}) == 15
    assert len({run.method for run in runs}) == 5
    assert [run.recipe.seed for run in runs[:3]] == [1, 2, 3]
    assert {(run.recipe.training.updates, run.recipe.training.batch) for run in runs} == {(6, 2)}
    last = runs[-1].recipe.adapter
    assert (runs[-1].label, last.rank) == ("a adapter.rank=16 adapter.modules=[q, v]", 16)
    assert last.modules == ("q", "v")


def test_variants_are_called_as_they_say(here: Path) -> None:
    text = "recipe: a.yaml\nvariants:\n  itself: {}\n  q, v: {adapter.modules: [q, v], seed: 5}\n"
    Path("named.yaml").write_text(text, encoding="utf-8")
    runs = plan_runs(["named.yaml"], 2, Budget(updates=6))
    assert [(run.label, run.recipe.seed) for run in runs] == [
        ("itself", 1),
        ("itself", 2),
        ("q, v", 5),
        ("q, v", 6),
    ]
    assert runs[2].recipe.adapter.modules == ("q", "v")


def test_the_methods_that_ship_can_be_planned_on_the_demo(monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    runs = plan_runs(["benchmarks/methods.yaml", *QUICK], 1, Budget(updates=8))
    assert len(runs) == len({run.method for run in runs}) == 15
    assert [run.label for run in runs if run.rival] == ["LoRA by Seq2SeqTrainer and PEFT"]


def test_large_v3_s_recipes_can_be_compared_on_a_card(monkeypatch) -> None:
    """What `make bench-gpu` says, planned as far as a machine without a card can."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    said = re.search(r"^bench-gpu:.*\n(?:\t.*\n)+", Path("Makefile").read_text(), re.M)[0]
    methods, speech = re.findall(r"benchmarks/\w+\.yaml", said)
    runs = plan_runs([*speech_of(Path(speech)), methods], 3, Budget())
    assert len(runs) == 3 * len({run.method for run in runs}) == 45
    assert {run.recipe.base.model for run in runs} == {"openai/whisper-large-v3"}
    assert {run.recipe.data.test.manifest for run in runs} == {".demo/speech/test.jsonl"}


def test_recipes_of_other_speech_can_be_compared_on_one(here: Path) -> None:
    other = RECIPE.replace("test.jsonl", "other.jsonl").replace("model: base", "model: large")
    other = other.replace("rank: 4", "rank: 8")
    Path("other.yaml").write_text(other.replace("updates: 4", "updates: 9"), encoding="utf-8")
    runs = plan_runs([*speech_of(Path("a.yaml")), "a.yaml", "other.yaml"], 1, Budget())
    assert runs[0].held_equal == runs[1].held_equal
    assert runs[1].recipe.base.model == "base" and runs[1].recipe.training.updates == 4


def test_where_a_run_is_written_does_not_make_it_another(here: Path) -> None:
    (plain,) = plan_runs(["a.yaml"], 1, Budget())
    aside = ["name=another", "output=elsewhere", "data.license=mit", "data.workers=1"]
    (other,) = plan_runs(["a.yaml", *aside], 1, Budget())
    (longer,) = plan_runs(["a.yaml"], 1, Budget(updates=5))
    assert plain.key == other.key != longer.key


@pytest.mark.parametrize(
    ("words", "budget", "said"),
    [
        (["a.yaml", "c.yaml"], Budget(), r"evaluation.max_tokens: 8 and 16\n"),
        (["a.yaml", "d.yaml"], Budget(), r"training.updates: 4 and 9\n"),
        (["a.yaml", "e.yaml"], Budget(), r"data.test.manifest: test.jsonl and other.jsonl\n"),
        (["a.yaml", "f.yaml"], Budget(), r"base.model: base and large\n"),
        (["a.yaml", "g.yaml"], Budget(), r"evaluation.normalizer: english and basic\n"),
        (["a.yaml", "h.yaml"], Budget(), r"context.margin_positions: 8 and 64\n"),
        (["dora.yaml"], Budget(), r"dora: rival: Seq2SeqTrainer with PEFT has no adapter.method"),
        (["usual.yaml"], Budget(minutes=1), "rival's updates are not timed"),
        (["a.yaml", "same.yaml"], Budget(), "same recipe but for the name"),
        (["a.yaml", "missing.yaml"], Budget(), "missing.yaml: No such file"),
        (["a.yaml"], Budget(updates=1), r"warmup \(1\) must be less than updates \(1\)"),
        (["training.batch=2"], Budget(), "name a recipe"),
        (["scalar.yaml"], Budget(), r"scalar.yaml:2: adapter.rank: expected a list"),
        (["twice.yaml"], Budget(), r"twice.yaml:2: adapter.rank: a value is given twice"),
        (["unknown.yaml"], Budget(), r"adapter.rnak"),
        (["both.yaml"], Budget(), r"both.yaml: variants stand alone; found \['seed=1'\]"),
        (["list.yaml"], Budget(), r"list.yaml:3: variants: expected names"),
        (["rival.yaml"], Budget(), r"rival.yaml:2: one: rival: found perhaps"),
        (["word.yaml"], Budget(), r"word.yaml:2: one: expected {key.sub: value}"),
        (["again.yaml"], Budget(), r"again.yaml:4: one: this name is given twice"),
    ],
)
def test_what_can_not_be_compared_is_refused_with_the_reason(here, words, budget, said) -> None:
    changed = {
        "c": ("max_tokens: 8", "max_tokens: 16"),
        "d": ("updates: 4", "updates: 9"),
        "e": ("test.jsonl", "other.jsonl"),
        "f": ("model: base", "model: large"),
        "g": ("every: 2", "every: 2, normalizer: basic"),
        "h": ("evaluation:", "context: {margin_positions: 64}\nevaluation:"),
        "same": ("\n", "\n"),
    }
    for name, (old, new) in changed.items():
        Path(f"{name}.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    for name, line in (
        ("scalar", "adapter.rank: 4"),
        ("twice", "adapter.rank: [4, 4]"),
        ("unknown", "adapter.rnak: [4, 8]"),
        ("both", "seed: [1]\nvariants: {one: {}}"),
        ("list", "variants:\n  [1, 2]"),
        ("rival", "variants: {one: {rival: perhaps}}"),
        ("dora", "variants: {dora: {rival: true, adapter.method: dora}}"),
        ("usual", "variants: {usual: {rival: true}}"),
        ("word", "variants: {one: two}"),
        ("again", "variants:\n  one: {}\n  one: {}"),
    ):
        Path(f"{name}.yaml").write_text(f"recipe: a.yaml\n{line}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        plan_runs(words, 1, budget)


def test_general_speech_is_the_clean_prompts_and_what_is_named(here: Path) -> None:
    Path("clean_test.jsonl").write_text("{}", encoding="utf-8")
    Path("mine.csv").write_text("audio,text", encoding="utf-8")
    hub = Path(__file__).parent.parent / "benchmarks" / "general"
    runs = plan_runs(["a.yaml"], 1, Budget())
    named = [Path("mine.csv"), hub / "librispeech_other.yaml", hub / "fleurs_en.yaml"]
    found = general_speech(named, runs, None)
    assert [one.name for one in found] == ["clean_test", "mine", "librispeech_other", "fleurs_en"]
    heard = [load_recipe(Path("a.yaml"), one.overrides).data.test for one in found]
    assert [one.manifest for one in heard[:2]] == ["clean_test.jsonl", "mine.csv"]
    assert [(one.hub, one.config, one.split) for one in heard[2:]] == [
        ("openslr/librispeech_asr", "other", "test"),
        ("google/fleurs", "en_us", "test"),
    ]
    fewer = general_speech([], runs, 16)
    assert fewer[0].source["limit"] == 16
    assert fewer[0].fingerprint != found[0].fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"--general: it.yaml: No such file"),
        ("[1, 2]", r"--general: it.yaml: expected what data.test of a recipe says"),
        ("a: {", r"--general: it.yaml: while parsing"),
        ("hbu: a/b", r"data.test.hbu"),
    ],
)
def test_general_speech_that_can_not_be_meant_is_refused(here: Path, text, said) -> None:
    if text is not None:
        Path("it.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        general_speech([Path("it.yaml")], plan_runs(["a.yaml"], 1, Budget()), None)


def test_the_budget_can_be_made_equal_for_all(here: Path) -> None:
    Path("d.yaml").write_text(RECIPE.replace("updates: 4", "updates: 9"), encoding="utf-8")
    runs = plan_runs(["b.yaml", "d.yaml"], 1, Budget(updates=5))
    assert {run.recipe.training.updates for run in runs} == {5}


def test_clips_heard_make_updates_by_the_batch_of_each_recipe(here: Path) -> None:
    batches = "recipe: a.yaml\ntraining.batch: [2, 8]\n"
    Path("batches.yaml").write_text(batches, encoding="utf-8")
    runs = plan_runs(["batches.yaml"], 1, Budget(clips=64))
    assert [run.recipe.training.updates for run in runs] == [32, 8]
    assert all(run.held_equal["budget.clips"] == 64 for run in runs)


def test_half_written_and_foreign_files_are_named_and_not_counted(tmp_path: Path) -> None:
    whole = compared.result("a")
    write_result(tmp_path, whole)
    text = json.dumps(whole)
    (tmp_path / "half.json").write_text(text[: len(text) // 2], encoding="utf-8")
    (tmp_path / "foreign.json").write_text('{"rows": []}', encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "renamed.json").write_text(text, encoding="utf-8")
    lacking = compared.result("b")
    del lacking["measured"]["clips"]
    write_result(tmp_path, lacking)
    untimed = compared.result("c") | {"wall_s": None}
    write_result(tmp_path, untimed)
    lacking = compared.result("d")
    del lacking["wall_s"]
    write_result(tmp_path, lacking)
    kept = read_kept(tmp_path)
    assert list(kept.results) == ["a-1", "c-1"]
    said = {re.match(r".*/(\S+)\.json: (.*)", one)[1]: one for one in kept.problems}  # type: ignore[index]
    assert said.keys() == {"half", "foreign", "list", "renamed", "b-1", "d-1"}
    assert "not JSON" in said["half"]
    assert "measured.clips" in said["b-1"]
    assert "wall_s" in said["d-1"]
    assert read_kept(tmp_path / "nothing").results == {}


def test_a_result_on_other_speech_is_left_out_and_named(here: Path) -> None:
    (run,) = plan_runs(["a.yaml"], 1, Budget())
    rules = {"held_equal": run.held_equal}
    own = compared.result("a", 2) | rules | {"key": run.key}
    other = compared.result("b", 1) | rules
    other["measured"]["data"]["test"]["fingerprint"] = "changed"
    foreign = compared.result("c") | {"held_equal": {"training.updates": 9}}
    lost = compared.failed("d") | rules
    shown, said = comparable([own, other, foreign, lost], [run])
    assert [one["label"] for one in shown] == ["a", "d"]
    assert "data.test: test and changed" in " ".join(said)
    assert "1 kept results of other" in " ".join(said)


def test_time_left_is_by_the_runs_that_were_timed(here: Path) -> None:
    """One that was read from a folder left behind took nobody knows how long."""
    runs = plan_runs(["a.yaml", "b.yaml"], 3, Budget())
    took = {runs[0].key: 60.0, runs[1].key: None, runs[3].key: 100.0}
    results = {
        run.key: compared.result(run.label, run.recipe.seed)
        | {"key": run.key, "method": run.method, "wall_s": took[run.key]}
        for run in runs
        if run.key in took
    }
    assert left_s(runs, results) == 60.0 + 2 * 100.0
    assert left_s(runs, {runs[1].key: results[runs[1].key]}) is None


def test_what_is_missing_is_said(here: Path) -> None:
    runs = plan_runs(["a.yaml"], 3, Budget())
    assert to_do(runs, {}, []) == ["of 3 runs, 3 are to be made"]
    results = {run.key: compared.result("a", run.recipe.seed) for run in runs}
    assert to_do(runs, results, [compared.HEARD]) == []
    results[runs[0].key]["general"] = {}
    del results[runs[2].key]
    said = "of 3 runs, 1 are to be made and 1 are to hear general speech"
    assert to_do(runs, results, [compared.HEARD]) == [said]


def test_endings_are_told_from_the_launcher_s_own_words() -> None:
    launcher = (
        "Traceback (most recent call last):\n  File x\nsubprocess.CalledProcessError: Command "
    )
    room = ending(
        1, f"memory is too small\n{launcher}'[..]' returned non-zero exit status 75.\n", 2.0
    )
    assert (room.outcome, room.exit, room.said) == ("no room", "75", ("memory is too small",))
    stop = ending(1, f"no clip\n{launcher}'[..]' returned non-zero exit status 3.\n", 2.0)
    assert (stop.outcome, stop.exit) == ("stopped", "3")
    died = ending(1, f"{launcher}'[..]' died with <Signals.SIGKILL: 9>.\n", 2.0)
    assert (died.outcome, died.exit) == ("crashed", "SIGKILL")
    assert "where memory runs out" in died.said[-1]
    for code, exit_ in ((143, "143"), (130, "130"), (-15, "SIGTERM")):
        asked = ending(code, "stopped by SIGTERM\n", 2.0)
        assert (asked.outcome, asked.exit) == ("ended", exit_)
    own = ending(1, '\x1b[31mTraceback\n  File "/home/me/x/y.py", line 3\nValueError: no', 2.0)
    assert own.outcome == "crashed"
    assert own.said == ("Traceback", '  File "y.py", line 3', "ValueError: no")


class Page(HTMLParser):
    """Every tag with its attributes, and the cells of the table."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.cells = "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        self.text += data
        if self.cells:
            self.cells[-1] += data


@pytest.fixture
def results() -> list[compared.Facts]:
    """Three recipes with three seeds each; memory was too small for one run of the last."""
    found = [
        compared.result(label, seed, wer, peak, speed)
        for label, wer, peak, speed in (
            ("small", 0.40, 1.0, 40.0),
            ("large <b>", 0.25, 3.0, 20.0),
            ("beaten", 0.45, 2.0, 10.0),
        )
        for seed in (1, 2, 3)
    ]
    return [*found[:-1], compared.failed("beaten", 3)]


def test_the_page_shows_every_run_and_fetches_nothing(results, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Path(results[0]["run"]) / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("a report", encoding="utf-8")
    methods = make_methods(results, {"small": "small"})
    html = write_page(Path("results"), methods, Made([], [compared.HEARD], ["one note"])).read_text(
        encoding="utf-8"
    )
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("svg") == 8  # four pictures, wide and narrow
    reports = {
        attributes[name]
        for _, attributes in page.tags
        for name in ("src", "href", "xlink:href")
        if not (attributes.get(name) or "#").startswith("#")
    }
    assert reports == {"../outputs/compare/small-1/report.html"}  # the one that is there
    assert not {"link", "iframe", "img", "b>"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org|purl\.org|creative)", html)
    assert "script-src 'sha256-" in html
    fronts = re.findall(r'class="front">(.*?)</p>', html)
    assert len(fronts) == 2
    assert all("1 small, 2 large &lt;b&gt;." in one for one in fronts)
    assert "beaten, seed 3: no room (exit 75)" in page.text
    assert "memory is too small: <none> left" in page.text
    assert re.search(
        r"small makes more word errors than large <b> at this budget: \+1\d", page.text
    )
    columns = page.text[page.text.index("#recipe") :]
    assert columns.startswith("#recipeWERpaddedpeak, GiB")
    assert page.cells[:2] == ["0", "base, not trained"]
    assert "1" in page.cells and "small" in page.cells
    assert [tag for tag, _ in page.tags].count("tr") == 5
    assert "one note" in page.text
    print(f"the page of a comparison: {len(html):,} characters, nothing fetched")


WIDTH = "return document.documentElement.scrollWidth"
COLORS = """
const style = name => getComputedStyle(document.querySelector(name));
return [style("body").backgroundColor, style("body").color]
"""


@pytest.mark.skipif(browser.missing() is not None, reason=f"{browser.missing()}")
def test_in_a_browser_the_page_sorts_filters_and_fits(results, tmp_path: Path) -> None:
    """At 1280 and 390 pixels, light and dark, and it asks nobody for anything."""
    page = write_page(tmp_path, make_methods(results, {}), Made([], [compared.HEARD]))
    with browser.browser(tmp_path / "profile") as tab:

        def names() -> list[str]:
            shown = "[...document.querySelectorAll('#methods tbody tr')].filter(row => !row.hidden)"
            return tab.run(f"return {shown}.map(row => row.cells[1].textContent)")

        tab.open(page.as_uri())
        asked = tab.addresses()
        assert {one for one in asked if not one.startswith("data:")} == {page.as_uri()}
        assert names() == ["base, not trained", "small", "large <b>", "beaten"]
        tab.click("#methods th:nth-child(3)")  # WER
        assert names() == ["large <b>", "small", "beaten", "base, not trained"]
        tab.click("#methods th:nth-child(3)")
        assert names() == ["base, not trained", "beaten", "small", "large <b>"]
        tab.run(
            "const field = document.querySelector('.filter'); field.value = 'SMALL';"
            "field.dispatchEvent(new Event('input'))"
        )
        assert names() == ["small"]
        seen = set()
        for width, hidden in ((1280, ".narrow"), (390, ".wide")):
            for scheme in ("light", "dark"):
                metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                tab.devtools("Emulation.setDeviceMetricsOverride", metrics)
                wanted = [{"name": "prefers-color-scheme", "value": scheme}]
                tab.devtools("Emulation.setEmulatedMedia", {"features": wanted})
                assert tab.run(WIDTH) <= width  # nothing sticks out: the table scrolls in itself
                seen.add(tuple(tab.run(COLORS)))
                drawn = f"return [...document.querySelectorAll('{hidden}')]"
                assert tab.run(f"{drawn}.every(one => !one.offsetWidth)")
        assert len(seen) == 2  # a light page and a dark one


def test_terminal_and_readme_say_the_same_of_every_method(results, tmp_path: Path, capsys) -> None:
    methods, made = make_methods(results, {}), Made([], [compared.HEARD])
    show(methods, made, Console(width=80, soft_wrap=False))
    printed = capsys.readouterr().out
    table = printed[: printed.index("base, not trained")]
    write_readme(tmp_path, methods, made)
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    for method in methods:
        wer = f"{100 * method.wer.value:.1f}"
        assert re.search(rf"{re.escape(method.label)} .*{wer}", table)
        assert re.search(rf"\| {re.escape(method.label)} \| {wer} \(", readme)
    assert "| 2/3 |" in readme
    assert "beaten, seed 3: no room" in readme
    assert "\u2026" not in table  # nothing was cut


def test_what_was_traced_for_a_card_stands_beside_what_was_measured(results, capsys) -> None:
    found = {"reserved_bytes": 19 * 2**30, "fits": True}
    results[0]["traced"][f"a10: {results[0]['method']}"] = found
    results[3]["traced"][f"a10: {results[3]['method']}"] = found | {"fits": False}
    show(make_methods(results, {}), Made([Place(find_card("a10"))]), Console(width=80))
    printed = capsys.readouterr().out
    assert re.search(r"1 small .* 1\.00 +19\.0 ", printed)
    assert re.search(r"2 large .* 3\.00 +19\.0! ", printed)
    assert re.search(r"3 beaten .* 2\.00 +\u2013 ", printed)


def test_cards_are_traced_with_the_recipes_of_the_same_names(here: Path) -> None:
    """A small recipe is what was run; its namesake for the card is what is traced."""
    Path("large.yaml").write_text("recipe: b.yaml\nvariants: {a: {}}", encoding="utf-8")
    card, runs = find_card("a10"), plan_runs(["a.yaml"], 2, Budget())
    (place,) = read_places([card], ["large.yaml"], runs)
    assert (place.name, place.recipes["a"].recipe.adapter.rank) == ("base on a10", 8)
    assert "the recipe of that name in large" in place.what
    (own,) = read_places([card], [], runs)
    key, own_key = (one.key("a", runs[0].method) for one in (place, own))
    assert own_key == f"a10: {runs[0].method}"
    assert own_key != key == place.key("a", "whatever was run")
    other = compared.result("b") | {"method": "other"}  # of another call, traced as it was run
    other["traced"]["a10: other"] = {"reserved_bytes": 2**30, "fits": True}
    kept = compared.result("a") | {"method": runs[0].method}
    kept["traced"][key] = {"reserved_bytes": 19 * 2**30, "fits": True}
    rows = rows_of(make_methods([kept, other], {}), Made([place]))
    assert [row["traced, base on a10, GiB"] for row in rows] == ["\u2013", "19.0", "\u2013"]
    rows = rows_of(make_methods([other], {}), Made([own]))
    assert [row["traced, a10, GiB"] for row in rows] == ["\u2013", "1.0"]
    both = plan_runs(["a.yaml", "b.yaml"], 1, Budget())
    with pytest.raises(RecipeError, match=r"nothing in large\.yaml is called b; found a"):
        read_places([card], ["large.yaml"], both)
    with pytest.raises(RecipeError, match="name it too, --card a10"):
        read_places([], ["large.yaml"], runs)


def test_methods_with_other_seeds_are_compared_by_their_clips() -> None:
    a, b = (compared.result("a", 1, 0.40), compared.result("b", 2, 0.20))
    first, second = make_methods([a, b], {})
    found, said = pair(first, second)
    assert found.high < 0
    assert "no seed in common" in said
    forgotten = first.forgotten("f")
    assert forgotten is not None
    assert forgotten.low <= 0.01 <= forgotten.high
    assert first.forgotten("other speech") is None


def test_energy_has_a_column_for_all_or_for_none(results, tmp_path: Path) -> None:
    """A rival's is not counted; where ours is, its row has a dash."""
    results[0]["measured"]["training"]["joules"] = 5e3
    methods = make_methods(results[:1] + results[3:4], {})
    rows = rows_of(methods, Made(has_energy=True))
    assert [row["energy, kJ"] for row in rows] == ["\u2013", "5.0", "\u2013"]
    write_readme(tmp_path, methods, Made(has_energy=True))
    assert (tmp_path / "README.md").read_text(encoding="utf-8").count("energy, kJ") == 1


def test_a_method_that_never_finished_has_a_row(results) -> None:
    lost = compared.failed("too large", 1)
    lost["traced"]["a10: too large"] = {"reserved_bytes": 30 * 2**30, "fits": False}
    methods = make_methods([*results, lost], {})
    row = rows_of(methods, Made([Place(find_card("a10"))]))[-1]
    assert (row["recipe"], row["WER"]) == ("too large", "no room")
    assert (row["traced, a10, GiB"], row["seeds"]) == ("30.0, too large", "0/1")


def test_what_is_lost_is_counted_from_the_base_as_it_is(results) -> None:
    """An int8 base has lost something before it is trained, and a rival decodes otherwise."""
    whole, held = compared.result("whole"), compared.result("held in int8")
    held["recipe"]["base"]["quantize"] = "int8"
    held["general"]["f"]["clips"]["base"] = compared.clips(0.9, 9, 0.9)["base"]
    first, second = make_methods([held, whole], {})
    assert first.reference is second.reference is whole
    assert first.forgotten("f").value > -0.1
    assert base_rates([first, second])["WER"] == estimate(second.counts("errors", "base"))
    held["rival"] = True
    (alone,) = make_methods([held], {})
    assert alone.reference is None
    assert alone.padded is None
    assert alone.forgotten("f").value < -0.5


def test_frozen_layers_that_ran_before_training_count_as_training() -> None:
    cached = compared.result("cached", speed=20.0)
    cached["measured"]["frozen_s"] = 300.0  # as long as the training itself
    (method,) = make_methods([cached], {})
    assert method.speeds("audio_s_per_s") == [10.0]
    assert method.best_s == 240.0 + 300.0


def test_the_pictures_of_fifteen_methods_tell_them_apart(tmp_path: Path) -> None:
    many = [compared.result(f"method {n}", 1, 0.2 + n / 30, n / 5, 5 * n) for n in range(1, 16)]
    methods = make_methods(many, {})
    assert len({(color(one), shape(one)) for one in methods}) == 15
    html = write_page(tmp_path, methods, Made()).read_text(encoding="utf-8")
    drawn = re.findall(r'class="wide">(.*?)</svg>', html, re.S)
    assert len(drawn) == 4
    for picture in drawn:
        numbers = re.findall(r">(\d+)(?: method \d+)?</text>", picture)
        assert set(map(str, range(1, 16))) <= set(numbers)
    assert html.count('xlink:href="#m') >= 3 * 15  # reports are elsewhere: to the table's rows
