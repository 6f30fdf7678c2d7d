"""The rival of the speed benchmark is fair: from the same start it learns the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import whispers
from rich.console import Console
from test_train import make_place

from peft_whisper.recipe_yaml import load_recipe
from peft_whisper.session import Session, open_session

UPDATES = 3
SAME = (  # no randomness, all clips in every update, all of them at 30 s
    f"training.updates={UPDATES}",
    "training.warmup=2",
    "training.batch=20",
    "training.accumulation=1",
    "context.margin_positions=1500",
)


@pytest.fixture
def session(tmp_path: Path, monkeypatch) -> Session:
    """A tiny English base, which says of its prefix what the real ones say, and twenty clips."""
    make_place(tmp_path)
    whispers.save_base(tmp_path / "base", ".en", 80)
    path = tmp_path / "base" / "generation_config.json"
    plain = whispers.tokenizer(".en").convert_tokens_to_ids("<|notimestamps|>")
    said = {"is_multilingual": False, "no_timestamps_token_id": plain}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    monkeypatch.chdir(tmp_path)
    return open_session(load_recipe("tiny.yaml", SAME), Console(quiet=True))


def test_both_sides_learn_and_hear_the_same(session: Session) -> None:
    """Speed is compared on equal work: weights after equal updates, then texts, are the same."""
    from rivals.hf_trainer import make_processor, prepare
    from turns import Ours, Rival

    processor = make_processor(session)
    train, test = (
        prepare(clips, processor, session.recipe.data.channel)
        for clips in (session.splits.train, session.splits.test)
    )
    ours, rival = Ours(session, UPDATES), Rival(session, "fp32", 5, UPDATES, train)
    began = ours.weights()
    for _ in range(UPDATES):
        seconds, clips = ours.update()
        assert seconds > 0 and clips == len(train)
        assert rival.update() > 0
    theirs = {name: p for name, p in rival.model.named_parameters() if p.requires_grad}
    for name, weights in ours.weights().items():
        moved = (weights - began[name]).abs().max()
        assert moved > 0
        assert torch.allclose(theirs[name], weights, rtol=0, atol=0.02 * moved), name
    rival.take(ours.weights())
    heard = {clip: text.strip() for clip, text in rival.transcribe(test)[1].items()}
    assert heard == ours.transcribe(None)[1]


def test_a_rival_that_fails_says_so(session: Session) -> None:
    """What goes wrong in the Trainer's thread reaches the one who waits for it."""
    from turns import Rival

    rival = Rival(session, "fp32", 5, UPDATES, [{"labels": [1]}] * 20)
    with pytest.raises(KeyError, match="input_features"):
        rival.update()


def test_joined_clips_are_as_long_as_asked(session: Session, tmp_path: Path) -> None:
    from rivals.joined import joined

    folder = tmp_path / "joined"
    folder.mkdir()
    clips = joined(session, 10.0, 5, folder).splits.train
    assert len(clips) == 5
    assert all(8.5 <= clip.duration_s <= 10.0 for clip in clips)
    said = {clip.text for clip in session.splits.train}
    assert all(any(clip.text.startswith(text) for text in said) for clip in clips)


def test_the_speed_benchmark_measures_all_it_promises(session: Session, monkeypatch) -> None:
    """Training, evaluation and longer clips, each against its bar, and the error rates of both."""
    import speed

    monkeypatch.setattr(speed, "MICROS", (5,))
    monkeypatch.setattr(speed, "LENGTHS_S", (10.0,))
    known: dict[str, Any] = {"runs": [], "rows": []}
    *_, facts = speed.compare([session], known, 1, Console(quiet=True))
    bars = {row["what"]: row["bar"] for row in facts["rows"]}
    assert bars | {"training, 30 s": 1.2} == speed.BARS
    assert all(row["ours_s"] > 0 and row["rival_s"] > 0 for row in facts["rows"])
    assert [one["seed"] for one in facts["runs"]] == [session.recipe.seed]
    assert facts["runs"][0]["updates"] == UPDATES and len(facts["rival"]["tried"]) == 2
    assert len(facts["wer"]) == 4 and len(facts["apart"]) == 3
    assert not list(speed.compare([session], facts, 1, Console(quiet=True)))  # all is kept
    other = facts["runs"][0] | {"seed": 2}
    both = facts | speed.summary([*facts["runs"], other], facts["rows"])
    assert both["wer"]["ours"]["value"] == pytest.approx(facts["wer"]["ours"]["value"])
    speed.show(both | {"runs": [*facts["runs"], other]}, Console(quiet=True))


def test_the_margins_benchmark_scores_a_run_both_ways(session: Session) -> None:
    import margins

    for margin in margins.MARGINS:  # each is a recipe that can be read
        load_recipe("tiny.yaml", list(margins.overrides(margin, 2)))
    row = margins.train_and_score("tiny.yaml", SAME, Console(quiet=True))
    assert row["own"]["wer"] == row["full"]["wer"] > 0  # with this margin every clip is at 30 s
