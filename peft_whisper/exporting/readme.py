"""README.md of an export: what it is, how near it is to its model, and how to use it."""

from __future__ import annotations

from typing import Any

import yaml

from peft_whisper.exporting.runtimes import RUNTIMES

CTRANSLATE2 = """import numpy
from faster_whisper import WhisperModel, decode_audio

model = WhisperModel("FOLDER", device="cpu")
wave = decode_audio("clip.wav")
wave = numpy.pad(wave, (0, -len(wave) % 480_000))  # silence up to 30 s
segments, _ = model.transcribe(wave, language="LANGUAGE")
print("".join(segment.text for segment in segments))
"""
WHISPERCPP = """from pywhispercpp.model import Model

model = Model("FOLDER/ggml-model.bin", language="LANGUAGE")
print(" ".join(segment.text for segment in model.transcribe("clip.wav")))
"""
OPENAI = """import soundfile
import whisper

model = whisper.load_model("FOLDER/model.pt", device="cpu")
wave, rate = soundfile.read("clip.wav", dtype="float32")  # mono, 16 kHz
print(model.transcribe(whisper.pad_or_trim(wave), language="LANGUAGE")["text"])
"""
USE = {"ctranslate2": CTRANSLATE2, "whispercpp": WHISPERCPP, "openai": OPENAI}
FILLED = (
    "{program} fills what a clip lacks of 30 s with zeros in its features, which is no silence; "
    "the model was tuned with silence there. The right-hand WER is that of clips given as they "
    "are; pad their sound, as below, for the other one."
)
PICKLED = (
    "model.pt is torch's own format, an archive with a pickled index, because openai-whisper reads "
    "nothing else; it loads it with `weights_only=True`, which runs no code. Do likewise."
)


def readme(facts: dict[str, Any]) -> str:
    """The page of one variant; `facts` are those of peft_whisper_export.json."""
    runtime = RUNTIMES[facts["to"]]
    parts = [
        _front_matter(facts),
        f"# {facts['name']} for {runtime.program}\n",
        f"{_origin(facts)} Written for {runtime.program} as {facts['kind']}.\n",
        f"## Measured\n\n{_figures(facts)}",
    ]
    if any(row["wer_filled"] is not None for row in facts["rows"]):
        parts.append(FILLED.format(program=runtime.program) + "\n")
    parts.append(f"## Use\n\n```python\n{_use(facts)}```\n")
    if facts["to"] == "openai":
        parts.append(PICKLED + "\n")
    parts.append(
        "## Terms\n\nThe licence of the base, and the terms of the speech that it was tuned on, "
        "hold for this model too.\n"
    )
    return "\n".join(parts)


def _front_matter(facts: dict[str, Any]) -> str:
    known = {
        "pipeline_tag": "automatic-speech-recognition",
        "base_model": facts["base"] if facts["revision"] else None,
        "language": facts["language"],
        "tags": ["whisper", "peft_whisper", facts["to"]],
    }
    shown = {key: value for key, value in known.items() if value is not None}
    return f"---\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}---\n"


def _origin(facts: dict[str, Any]) -> str:
    revision = f" at {facts['revision']}" if facts["revision"] else ""
    kinds = {"none": "a full fine-tune of {base}", "base": "{base}, not tuned"}
    of = kinds.get(facts["method"], "an adapter merged into {base}")
    whole = of.format(base=facts["base"] + revision)
    return f"{whole[0].upper()}{whole[1:]} (base fingerprint {facts['fingerprint'][:23]}...)."


def _figures(facts: dict[str, Any]) -> str:
    runtime, rows = RUNTIMES[facts["to"]], facts["rows"]
    first = rows[0]
    filled = " WER, clips as they are |" if runtime.pads_features else ""
    lines = [
        f"| decoded by | size | WER | words unlike the merged model's |{filled}",
        "|---|--:|--:|--:|" + ("--:|" if filled else ""),
        f"| the merged model, float32 | | {_percent(facts['wer_merged'])} | |"
        + (" |" if filled else ""),
    ]
    for row in rows:
        here = " (this one)" if row["kind"] == facts["kind"] and len(rows) > 1 else ""
        cells = [
            f"{runtime.program}, {row['kind']}{here}",
            f"{row['file_bytes'] / 1e6:.1f} MB",
            _percent(row["wer"]),
            f"{row['words_differ']} of {row['words']}",
        ]
        if filled:
            cells.append(_percent(row["wer_filled"]))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(
        f"\nOn {first['clips']} clips ({facts['speech']}), each padded with silence to 30 s, "
        "greedily in one pass, without timestamps, on a CPU: a sample, so its WER is rougher than "
        "the model's own score.\n"
    )
    return "\n".join(lines)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _use(facts: dict[str, Any]) -> str:
    return USE[facts["to"]].replace("LANGUAGE", facts["language"] or "en")
