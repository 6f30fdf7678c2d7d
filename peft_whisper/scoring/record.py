"""What a run's folder records, read back: the report and the card say nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_whisper.recipe import settings
from peft_whisper.recipe_yaml import load_recipe

SYSTEMS = {  # keys of metrics.json and of a row of predictions.jsonl
    "base": "base",
    "tuned": "tuned",
    "base_full_context": "base, full 30 s",
    "tuned_full_context": "tuned, full 30 s",
}
GENERAL = "general"  # a folder in a run's: `evaluate RUN --into RUN/general data.test...`
CONTEXTS = (
    "The first two rows hear each clip at its own length, the others padded to 30 s, as most other "
    "programs do."
)


@dataclass(frozen=True)
class Record:
    """A scored run; the fields hold the contents of the files that DESIGN calls by these names.

    `general` are its scores on general speech, in GENERAL of its folder, for what it forgot.
    """

    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    metrics: dict[str, Any]
    events: list[dict[str, Any]]  # log.jsonl
    predictions: list[dict[str, Any]]
    general: Record | None = None

    @property
    def name(self) -> str:
        return str(self.recipe["name"])

    @property
    def trained(self) -> str:
        """What was trained, in words."""
        adapter = self.recipe["adapter"]
        if adapter["method"] == "none":
            return "full fine-tune"
        layers = {part: adapter[f"{part}_layers"] for part in ("encoder", "decoder")}
        parts = " and ".join(
            part if chosen == "all" else f"{part} layers {chosen}"
            for part, chosen in layers.items()
            if chosen != "none"
        )
        if adapter["method"] == "layernorm":
            return f"the layer norms of {parts}"
        kinds = adapter["modules"]
        where = "all linear layers" if kinds == "all" else ", ".join(kinds)
        kind = {"adalora": "AdaLoRA", "dora": "DoRA"}.get(adapter["method"], "LoRA")
        begun = ", begun as PiSSA" if adapter.get("start") == "pissa" else ""
        stable = "rank-stabilised " if adapter.get("rank_stabilized") else ""
        return f"{stable}{kind} rank {adapter['rank']} on {where} of {parts}{begun}"

    @property
    def note(self) -> str | None:
        """What the recipe says about the speech, to stand beside every result."""
        return self.recipe["data"].get("note")

    @property
    def one_speaker(self) -> bool:
        """Whether every test clip is known to be of the same person."""
        return self.environment["data"]["test"].get("speakers") == 1

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """The log's events of one kind: train, validation, ..."""
        return [event for event in self.events if event["event"] == kind]

    def training_facts(self) -> list[tuple[str, str]]:
        """Pairs of a name and a value; every figure says whether it was measured."""
        facts, training = self.environment, self.metrics.get("training")
        rows = [
            ("trained", f"{self.trained}: {facts['trainable_parameters']:,} parameters"),
            ("base", f"{facts['base']['model']} ({facts['base']['parameters']:,} parameters)"),
            ("base revision", facts["base"]["revision"] or "a local folder"),
            ("base fingerprint", facts["base"]["fingerprint"][:23] + "..."),
        ]
        quantized = self.recipe["base"].get("quantize")
        if quantized:
            rows.append(("base held in", f"{quantized}, in training and for these scores"))
        for split in ("train", "validation", "test"):
            held = facts["data"][split]
            rows.append((f"{split} speech", f"{held['clips']:,} clips, {held['hours']:.2f} h"))
        if "best" in facts:
            best = facts["best"]
            chosen = f"update {best['update']}, {best['metric'].upper()} {percent(best['value'])}"
            rows.append(("best checkpoint on validation", chosen))
        if training:
            rows += _measured(training)
        rows += self._memory()
        card = facts["machine"]["gpu"]
        rows.append(("machine", card["name"] if card else _processor(facts["machine"])))
        rows.append(("versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())))
        return rows

    def _memory(self) -> list[tuple[str, str]]:
        """What had been traced, where the run was; and whether the card said otherwise."""
        traced = self.environment.get("memory")
        if traced is None:
            return []
        said = f"{traced['peak_bytes'] / 2**30:.2f} GiB, traced"
        for event in self.events_of("memory"):
            said += f"; {event['difference']:+.1%} from the measured peak"
            if event["warning"]:
                said += " (WARNING: more than 5 % apart)"
        return [("peak memory expected", said)]


def _measured(training: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("updates", f"{training['updates']:,}")]
    if training["clips_per_s"]:
        speed = f"{training['audio_s_per_s']:.1f} s of audio per second"
        rows.append(("training speed", f"{speed}, {training['clips_per_s']:.1f} clips/s, measured"))
        rows.append(("training time", f"{training['seconds'] / 60:.1f} min, measured"))
    if training.get("joules"):
        said = f"{training['joules'] / 3.6e6:.3g} kWh by the machine's own counters, measured"
        rows.append(("energy of training", said))
    rows.append(
        ("peak memory", f"{training['peak_bytes'] / 2**30:.2f} GiB {training['peak_kind']}")
    )
    return rows


def _processor(facts: dict[str, Any]) -> str:
    return f"{facts['cpu']}, {facts['cores']} cores, no GPU"


def read_record(run: Path) -> Record:
    """Read a scored run's folder; raises OSError where one of its files is missing."""
    general = read_record(run / GENERAL) if (run / GENERAL / "metrics.json").is_file() else None

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / name).read_text("utf-8").splitlines()]

    def whole(name: str) -> dict[str, Any]:
        return json.loads((run / name).read_text(encoding="utf-8"))

    return Record(
        recipe=settings(load_recipe(run / "recipe.yaml")),
        recipe_text=(run / "recipe.yaml").read_text(encoding="utf-8"),
        environment=whole("environment.json"),
        metrics=whole("metrics.json"),
        events=lines("log.jsonl"),
        predictions=lines("predictions.jsonl"),
        general=general,
    )


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def interval(ends: list[float] | None) -> str:
    """A 95 % interval of a rate, in percent."""
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else "not computed"


def verdict(metrics: dict[str, Any]) -> str:
    """One sentence on base and tuned model, with the paired difference and its interval."""
    base, tuned, change = metrics["base"], metrics["tuned"], metrics["difference"]
    found = (
        f"On {tuned['clips']} held-out clips ({tuned['words']} words) the tuned model makes "
        f"{percent(tuned['wer'])} word errors, the base {percent(base['wer'])}: "
        f"{100 * change['wer']:+.1f} points"
    )
    if not change["interval"]:
        return found + "."
    low, high = change["interval"]
    surely = "" if low > 0 or high < 0 else " This interval holds 0: the two may not differ."
    return f"{found} (95 % interval {100 * low:+.1f} to {100 * high:+.1f}, paired).{surely}"
