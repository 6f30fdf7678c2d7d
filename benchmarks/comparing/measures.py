"""What a finished run's folder says of it: costs, rates, and the counts of each clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_whisper.scoring.record import Record, read_record

SYSTEMS = ("base", "tuned", "base_full_context", "tuned_full_context")
RATES = ("wer", "mer", "cer", "insertions", "loops", "empties")
Facts = dict[str, Any]


def measured(folder: Path) -> Facts:
    """A run as its result holds it; raises OSError where a file of the run is missing."""
    record = read_record(folder)
    facts, training = record.environment, record.metrics["training"]
    speech = {name: facts["data"][name] for name in ("train", "validation", "test")}
    return {
        "versions": facts["versions"],
        "machine": facts["machine"],
        "base": facts["base"],
        "data": speech,
        "trainable_parameters": facts["trainable_parameters"],
        "chosen": {name: record.recipe["training"][name] for name in ("precision", "attention")},
        "training": training,
        "resumed": bool(record.events_of("resume")),
        "frozen_s": sum(one["seconds"] for one in record.events_of("frozen_layers")),
        "clips_heard": sum(
            round(one["clips_per_s"] * one["seconds"]) for one in record.events_of("train")
        ),
        "best": facts["best"] | {"training_s": _time_to(record, facts["best"]["update"])},
        "curve": _curve(record),
        "decoding": {"clips_per_s": _decoding(record)},
        **scores(record),
    }


def scores(record: Record) -> Facts:
    """Rates of base and tuned model, and each clip's counts, in the order of predictions.jsonl."""
    from peft_whisper.scoring.metrics import measure
    from peft_whisper.scoring.normalize import normalizer

    clean = normalizer(record.recipe["evaluation"]["normalizer"])
    rates = {s: {name: record.metrics[s][name] for name in RATES} for s in SYSTEMS}
    # The folder counts words; an interval of the CER needs each clip's characters too.
    counted = {
        system: [measure(row["reference"], row[system], clean) for row in record.predictions]
        for system in SYSTEMS
    }
    clips: Facts = {
        "words": [one.words for one in counted["base"]],
        "chars": [one.chars for one in counted["base"]],
    }
    for system, utterances in counted.items():
        clips[system] = {
            "errors": [one.errors for one in utterances],
            "insertions": [one.insertions for one in utterances],
            "char_errors": [one.char_errors for one in utterances],
        }
    return {"scores": rates, "clips": clips}


def _time_to(record: Record, update: int) -> float:
    """Seconds of training alone up to and with an update."""
    return sum(one["seconds"] for one in record.events_of("train") if one["update"] <= update)


def _decoding(record: Record) -> float | None:
    """Clips a second of the last validation, reading and mel included."""
    clips = record.environment["data"]["validation"]["clips"]
    spent = [one["seconds"] for one in record.events_of("validation") if "seconds" in one]
    return clips / spent[-1] if spent else None


def _curve(record: Record) -> list[Facts]:
    """Validations by update."""
    return [
        {name: one[name] for name in ("update", "wer")} for one in record.events_of("validation")
    ]
