"""The card (README.md) of a run: made from its records, in the form the Hub reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from peft_whisper.files import write_text
from peft_whisper.scoring.record import (
    CONTEXTS,
    SYSTEMS,
    Record,
    interval,
    percent,
    read_record,
    verdict,
)

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

USE_ADAPTER = """import soundfile
from peft import PeftModel
from transformers import WhisperForConditionalGeneration, WhisperProcessor

base = WhisperForConditionalGeneration.from_pretrained({base!r}, dtype="float32")
model = PeftModel.from_pretrained(base, "adapter")
processor = WhisperProcessor.from_pretrained("adapter")
wave, rate = soundfile.read("clip.wav")  # mono, 16 kHz
features = processor(wave, sampling_rate=rate, return_tensors="pt").input_features
print(processor.batch_decode(model.generate({call}), skip_special_tokens=True)[0])
"""
USE_MODEL = """import soundfile
from transformers import WhisperForConditionalGeneration, WhisperProcessor

model = WhisperForConditionalGeneration.from_pretrained("model")
processor = WhisperProcessor.from_pretrained("model")
wave, rate = soundfile.read("clip.wav")  # mono, 16 kHz
features = processor(wave, sampling_rate=rate, return_tensors="pt").input_features
print(processor.batch_decode(model.generate({call}), skip_special_tokens=True)[0])
"""


def write_card(run: Path) -> None:
    """Write README.md into a scored run's folder."""
    record = read_record(run)
    write_text(run / "README.md", "\n".join((_front_matter(record), *_body(record))))


def _front_matter(record: Record) -> str:
    """Metadata as the Hub's model cards have it; what is not known is left out."""
    data, metrics = record.recipe["data"], record.metrics
    base = record.environment["base"]["model"]
    test = data["test"] if "hub" in data["test"] else data["train"]
    dataset = {"name": test.get("hub") or data.get("note") or "local speech", "split": "test"}
    dataset["type"] = test.get("hub") or "local"
    scores = [
        {"type": name, "value": round(100 * metrics["tuned"][name], 2), "name": name.upper()}
        for name in ("wer", "cer")
    ]
    full = record.recipe["adapter"]["method"] == "none"
    known: dict[str, Any] = {
        "library_name": "transformers" if full else "peft",
        "pipeline_tag": "automatic-speech-recognition",
        "base_model": base if HUB_ID.fullmatch(base) else None,
        "language": data.get("language"),
        "datasets": [test["hub"]] if "hub" in test else None,
        "metrics": ["wer", "cer"],
        "tags": ["whisper", "peft_whisper", *([] if full else ["lora"])],
        "model-index": [
            {
                "name": record.name,
                "results": [
                    {
                        "task": {"type": "automatic-speech-recognition"},
                        "dataset": dataset,
                        "metrics": scores,
                    }
                ],
            }
        ],
    }
    shown = {key: value for key, value in known.items() if value is not None}
    return f"---\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}---\n"


def _body(record: Record) -> list[str]:
    test = record.environment["data"]["test"]
    limits = [f"Scored on {test['clips']} clips ({test['hours']:.2f} h); other speech may differ."]
    if record.one_speaker:
        limits.append("All test clips are of one speaker: nothing is known about other voices.")
    if record.note:
        limits.append(f"The speech: {record.note}.")
    limits.append("Forgetting of general speech was not measured.")
    return [
        f"# {record.name}\n",
        f"{record.environment['base']['model']}, {record.trained}. {verdict(record.metrics)}\n",
        "## Scores (measured)\n",
        _scores(record),
        f"Normaliser: {record.metrics['tuned']['normalizer']}. {CONTEXTS}\n",
        "## Use\n",
        f"```python\n{_use(record)}```\n",
        "## Limits\n",
        *(f"- {limit}" for limit in limits),
        "\n## How it was made\n",
        "| | |\n|---|---|",
        *(f"| {name} | {_plain(value)} |" for name, value in record.training_facts()),
        "\nrecipe.yaml is the whole recipe; report.html lets you listen.\n",
    ]


def _scores(record: Record) -> str:
    head = "| | WER | 95 % interval | MER | CER | S | D | I | loops | empty |\n"
    lines = [head + "|---|" + "--:|" * 9]
    for system, title in SYSTEMS.items():
        score = record.metrics[system]
        names = ("substitutions", "deletions", "insertions", "loops", "empties")
        cells = [percent(score["wer"]), interval(score["wer_interval"])]
        cells += [percent(score[name]) for name in ("mer", "cer")]
        cells += [str(score[name]) for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _use(record: Record) -> str:
    """Ten lines of plain transformers (and peft) that transcribe a file."""
    data, call = record.recipe["data"], "input_features=features"
    base = record.environment["base"]["model"]
    if record.environment["base"]["multilingual"]:
        call += f", language={data.get('language')!r}, task={data['task']!r}"
    code = USE_MODEL if record.recipe["adapter"]["method"] == "none" else USE_ADAPTER
    return code.replace("{base!r}", repr(base)).replace("{call}", call)


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
