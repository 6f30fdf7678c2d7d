"""Studio: a prompt said into the page's microphone, in a real browser, with real weights."""

from __future__ import annotations

import time
from pathlib import Path

import browser
import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="gradio is not installed: it comes with the extra studio")

from test_studio import COLUMNS, REPOSITORY, words

from peft_whisper.systems import BASE, find_systems
from peft_whisper.trying import page as studio_page
from peft_whisper.trying.bench import Bench

DEMO = REPOSITORY / ".demo"
CLIP = DEMO / "speech" / "clips" / "conf-enteringno.flac"  # You are entering conference number
SHOWN = "return (document.querySelector(arguments[0])?.offsetHeight ?? 0) > 0"


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
@pytest.mark.skipif(not DEMO.is_dir(), reason="no .demo: `python -m peft_whisper.demo` makes it")
def test_a_prompt_said_into_the_microphone_is_transcribed(monkeypatch, tmp_path: Path) -> None:
    """The shipped adapter and its base hear what the page's own button recorded."""
    monkeypatch.chdir(REPOSITORY)
    bench = Bench(find_systems("adapters/throat-mic-tiny.en", [], True, None))
    recorded: list[Path] = []
    whole = Bench.hear

    def hear(self, name, strength, sound, language, progress):
        recorded.append(sound)
        return whole(self, name, strength, sound, language, progress)

    monkeypatch.setattr(Bench, "hear", hear)
    page = studio_page.built(bench)
    try:
        spoken = said_once(CLIP, tmp_path)
        with browser.browser(tmp_path / "profile", spoken) as tab:
            tab.open(studio_page.serve(page, None))
            tab.until(lambda: "Transcribe" in tab.text("#go"))
            tab.click("#sound button[aria-label='Record audio']")
            tab.until(lambda: tab.run(SHOWN, "#sound .record-button"))
            tab.click("#sound .record-button")
            tab.until(lambda: tab.run(SHOWN, "#sound .stop-button"))
            time.sleep(soundfile.info(spoken).duration)
            tab.click("#sound .stop-button")
            tab.until(lambda: tab.run("return !!document.querySelector('#picture svg')"))
            tab.click("#go")
            tab.until(lambda: " differ in " in tab.text("#texts"))
            seen = [" ".join(column.split()) for column in tab.run(COLUMNS)]
        names, sound = (BASE, bench.names[0]), str(recorded[0])
        assert soundfile.info(sound).duration > soundfile.info(CLIP).duration
        assert seen == [" ".join(words(bench, one, sound=sound).split()) for one in names]
        assert "entering conference number" in seen[1] and seen[0] != seen[1]
    finally:
        page.close(verbose=False)


def said_once(clip: Path, folder: Path) -> Path:
    """A WAV of the clip between silences, in which recording begins and ends."""
    wave, rate = soundfile.read(clip)
    silences = np.zeros(rate), np.zeros(2 * rate)
    soundfile.write(folder / "said.wav", np.concatenate([silences[0], wave, silences[1]]), rate)
    return folder / "said.wav"
