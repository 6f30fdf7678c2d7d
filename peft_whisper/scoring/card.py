"""The card (README.md) of a run: made from its records, in the form the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from peft_whisper.files import write_text
from peft_whisper.scoring.card_use import (
    ADAPTER,
    CTRANSLATE2,
    MODEL,
    OPENAI,
    WHISPER_CPP,
    Shown,
    use,
)
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
ON_TEST = {  # of metrics.json, what the Hub's tables show
    "tuned": "clips at their own length",
    "tuned_full_context": "clips padded to 30 s, as most programs do",
}
# Licences of speech that let anybody pass its sound on.
SHARED = re.compile(r"cc0|cc-by(-sa)?(-\d\.\d)?|pddl|odc-by|public-domain|apache-2\.0|mit")
CONVERTED = {
    kind: f"Converted for {program}; the scores are those before it was.\n"
    for kind, program in (
        (CTRANSLATE2, "faster-whisper"),
        (WHISPER_CPP, "whisper.cpp"),
        (OPENAI, "openai-whisper"),
    )
}
STRICTER = re.compile(r"-(nc|nd|sa)\b")  # of a licence: it binds what is made from the work


def write_card(run: Path) -> None:
    """Write README.md into a scored run's folder."""
    record = read_record(run)
    kind = MODEL if record.recipe["adapter"]["method"] == "none" else ADAPTER
    base = record.environment["base"]
    write_text(run / "README.md", run_card(record, shown_of(record, kind, kind, base["model"])))


def shown_of(record: Record, kind: str, where: str, base: str, on_hub: bool = False) -> Shown:
    """What a run made, as its card shows it."""
    data, multilingual = record.recipe["data"], record.environment["base"]["multilingual"]
    language = data.get("language") if multilingual else None
    return Shown(kind, where, base, language, data["task"], on_hub)


def run_card(record: Record, shown: Shown, extra: Sequence[str] = ()) -> str:
    """The card of what a run made; `extra` are further sections, in Markdown."""
    about = f"{shown.base}, {record.trained}. {verdict(record.metrics)}\n"
    parts = [
        f"# {record.name}\n",
        about,
        *([CONVERTED[shown.kind]] if shown.kind in CONVERTED else []),
        "## Scores (measured)\n",
        _scores(record),
        f"Normaliser: {record.metrics['tuned']['normalizer']}. {CONTEXTS}\n",
        *use(shown),
        *_purpose(record),
        *extra,
        *licences(record.recipe, shown.base),
        "## How it was made\n",
        "| | |\n|---|---|",
        *(f"| {name} | {_plain(value)} |" for name, value in record.training_facts()),
        f"\nrecipe.yaml is the whole recipe{_report(shown)}.\n",
    ]
    return "\n".join((front_matter(_metadata(record, shown)), *parts))


def bare_card(name: str, shown: Shown, method: str, extra: Sequence[str]) -> str:
    """The card of a model whose run is not at hand: it says so, and has no scores."""
    known = _library(shown) | {"tags": ["whisper", "peft_whisper"]}
    parts = [
        f"# {name}\n",
        f"{shown.base}, {method}.\n",
        *use(shown),
        *extra,
        "## Limits\n",
        "- No scores: the run that it came from was not at hand when this was published.\n",
        *licences({"base": {}, "data": {}}, shown.base),
    ]
    return "\n".join((front_matter(known), *parts))


def front_matter(known: dict[str, Any]) -> str:
    """Metadata as the Hub's model cards have it; what is not known (None) is left out."""
    shown = {key: value for key, value in known.items() if value is not None}
    return f"---\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}---\n"


def _library(shown: Shown) -> dict[str, Any]:
    libraries = {ADAPTER: "peft", MODEL: "transformers", CTRANSLATE2: "ctranslate2"}
    public = HUB_ID.fullmatch(shown.base) is not None
    relation = "adapter" if shown.kind == ADAPTER else "finetune"
    return {
        "library_name": libraries.get(shown.kind),
        "pipeline_tag": "automatic-speech-recognition",
        "base_model": shown.base if public else None,
        "base_model_relation": relation if public else None,
    }


def _metadata(record: Record, shown: Shown) -> dict[str, Any]:
    data = record.recipe["data"]
    hubs = [data[split]["hub"] for split in ("train", "test") if "hub" in data[split]]
    method = record.recipe["adapter"]["method"]
    return _library(shown) | {
        "license": _inherited(record.recipe),
        "language": data.get("language"),
        "datasets": list(dict.fromkeys(hubs)) or None,
        "metrics": ["wer", "cer"],
        "tags": ["whisper", "peft_whisper", *([method] if method != "none" else [])],
        "model-index": [{"name": record.name, "results": [_result(record, shown)]}],
    }


def _result(record: Record, shown: Shown) -> dict[str, Any]:
    """What was scored, on which speech: with intervals, revisions and fingerprints."""
    data, base = record.recipe["data"], record.environment["base"]
    held = record.environment["data"]["test"]
    source = data["train"] if "from_train" in data["test"] else data["test"]
    hub = source.get("hub")
    dataset = {
        "name": hub or data.get("note") or "local speech",
        "type": hub or "local",
        "config": source.get("config"),
        "split": source.get("split", "train") if hub else "test",
        "revision": source.get("revision"),
        "args": {"clips": held["clips"], "fingerprint": held["fingerprint"]},
    }
    scored_on = {"base": shown.base, "base_revision": base["revision"]}
    scored_on["base_fingerprint"] = base["fingerprint"]
    return {
        "task": {"type": "automatic-speech-recognition", "name": "Speech recognition"},
        "dataset": {key: value for key, value in dataset.items() if value is not None},
        "metrics": [
            _metric(record.metrics, system, name, scored_on)
            for system in ON_TEST
            for name in ("wer", "cer")
        ],
    }


def _metric(metrics: dict[str, Any], system: str, name: str, about: dict[str, Any]) -> Any:
    """A rate in percent, with the base's own beside it and, for WER, its 95 % interval."""
    score, title = metrics[system], name.upper()
    args: dict[str, Any] = {"normalizer": score["normalizer"], "heard": ON_TEST[system]}
    if name == "wer" and score["wer_interval"]:
        args["interval_95"] = [round(100 * end, 2) for end in score["wer_interval"]]
        title += f" (95 % interval {interval(score['wer_interval'])})"
    args["base_value"] = round(100 * metrics[system.replace("tuned", "base")][name], 2)
    if name == "wer":
        args |= {key: value for key, value in about.items() if value is not None}
    title += ", 30 s" if system.endswith("full_context") else ""
    value = round(100 * score[name], 2)
    return {"type": name, "value": value, "name": title, "args": args}


def _purpose(record: Record) -> list[str]:
    data, test = record.recipe["data"], record.environment["data"]["test"]
    about = ", ".join(part for part in (data.get("language"), record.note) if part)
    work = "translating into English" if data["task"] == "translate" else "transcribing"
    limits = [f"Scored on {test['clips']} clips ({test['hours']:.2f} h); other speech may differ."]
    if record.one_speaker:
        limits.append("All test clips are of one speaker: nothing is known about other voices.")
    if record.note:
        limits.append(f"The speech: {record.note}.")
    limits.append(_forgotten(record.general))
    if not record.metrics.get("training", {}).get("joules"):
        limits.append("Energy and CO2 were not measured.")
    return [
        "## Intended use\n",
        f"For {work} speech like that which it learned from{f' ({about})' if about else ''}. A "
        "transcript can be wrong where it reads well, and say words that nobody said: let a person "
        "listen before anything is decided by it.\n",
        "## Limits\n",
        *(f"- {limit}" for limit in limits),
        "",
    ]


def _forgotten(general: Record | None) -> str:
    """What is known of speech that the model did not learn from, and may have become worse at."""
    if general is None:
        return "Forgetting of general speech was not measured."
    about = f" ({general.note})" if general.note else ""
    return f"General speech that it did not learn from{about}: {verdict(general.metrics)}"


def licences(recipe: dict[str, Any], base: str) -> list[str]:
    """What is known of the licences of base and speech, and whom to name."""
    speech, own = recipe["data"].get("license"), recipe["base"].get("license")
    lines = [f"- base {base}: {own or 'see its own page'}", f"- speech: {speech or 'not stated'}"]
    if recipe["data"].get("attribution"):
        lines[-1] += f"; {recipe['data']['attribution']}"
    told = "whether a model inherits the licence of its speech is not settled"
    if speech and STRICTER.search(speech):
        lines.append(f"- given on here under the speech's, the stricter of the two: {told}")
    return ["## Licence and attribution\n", *lines, ""]


def _inherited(recipe: dict[str, Any]) -> str | None:
    """The base's licence, or the speech's where that binds more; None where it is not known."""
    speech = recipe["data"].get("license")
    return speech if speech and STRICTER.search(speech) else recipe["base"].get("license")


def may_share(record: Record) -> bool:
    """Whether the licence of the speech, as the recipe states it, lets its sound be passed on."""
    return SHARED.fullmatch(record.recipe["data"].get("license") or "") is not None


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


def _report(shown: Shown) -> str:
    return "" if shown.on_hub else "; report.html lets you listen"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
