"""The comparison as a table: in a terminal, and as the README of a folder of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from comparing.general import General
from comparing.methods import Method, against_best, base_rates, changes
from comparing.processes import FINISHED
from comparing.statistics import Estimate
from comparing.tracing import Place
from rich.console import Console
from rich.table import Table

from peft_whisper.files import write_text

LACKING = "–"


@dataclass(frozen=True)
class Made:
    """What a table shows besides its methods: cards traced on, general speech, what to know."""

    places: Sequence[Place] = ()
    speeches: Sequence[General] = ()
    notes: Sequence[str] = ()
    has_energy: bool = False
    has_reserved: bool = False  # by CUDA's allocator


READING = (
    "WER, MER and CER in percent, on the test split, mean over the seeds; intervals are 95 %, "
    "over clips and seeds. Padded: what decoding at the full 30 s, as other programs do, adds "
    "in points (a rival always does). Forgetting: change of WER, in points, against the base as "
    "it is (a rival's as it decodes) on general speech that no recipe trained on. Peak: largest "
    "of the runs, of training, measured ({kinds}). Speed: training alone, median of the seeds, "
    "without warm-up and evaluation, with what frozen layers took that were run once; "
    "decoded/s: clips of the last validation. To best: training up to the checkpoint that was "
    "kept. Insertions, loops and empty transcripts: on average over the seeds. Differences are "
    "paired, each at 95 %, and not corrected for how many there are, nor for the best one "
    "having been found on the same clips. Two that do not differ can't be told apart by these "
    "runs: the interval holds 0."
)


def rate(found: Estimate | None, signed: bool = False) -> str:
    """A rate or difference in percent with its interval, or a dash."""
    if found is None:
        return LACKING
    sign = "+" if signed else ""
    value, low, high = (f"{100 * end:{sign}.1f}" for end in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def number(value: float | None, digits: int = 1) -> str:
    return LACKING if value is None else f"{value:,.{digits}f}"


def traced(method: Method, place: Place) -> str:
    """GiB that the tracer found for it there."""
    key = place.key(method.label, method.runs[0]["method"])
    found = next((one["traced"][key] for one in method.runs if key and key in one["traced"]), None)
    if found is None:
        return LACKING
    said = f"{found['reserved_bytes'] / 2**30:.1f}"
    return said if found["fits"] else f"{said}, too large"


def cells(method: Method, made: Made) -> dict[str, str]:
    """Every column of a method; where no run finished, how it ended and what was traced."""
    done = method.done
    scores = [one["measured"]["scores"]["tuned"] for one in done]
    clips, audio = (_median(method.speeds(name)) for name in ("clips_per_s", "audio_s_per_s"))
    shown = {
        "recipe": method.label,
        "WER": rate(method.wer) if done else method.failed[0]["outcome"],
        "padded": rate(method.padded, signed=True) if done else LACKING,
        "peak, GiB": number(max(method.peaks_gib, default=None), 2),
    }
    for place in made.places:
        shown[f"traced, {place.name}, GiB"] = traced(method, place)
    shown |= {
        "clips/s": number(clips, 2),
        "audio s/s": number(audio),
        "decoded/s": number(method.mean_of("decoding", "clips_per_s")),
    }
    if made.has_reserved:
        reserved = method.mean_of("training", "peak_reserved_bytes")
        shown["reserved, GiB"] = number(None if reserved is None else reserved / 2**30, 2)
    if made.has_energy:
        joules = method.mean_of("training", "joules")
        shown["energy, kJ"] = number(None if joules is None else joules / 1e3)
    shown |= {
        "to best, min": number(method.best_s / 60 if done else None),
        "clips heard": number(method.mean_of("clips_heard"), 0),
    }
    for one in made.speeches:
        title = "forgetting" if len(made.speeches) == 1 else f"forgetting, {one.name}"
        shown[title] = rate(method.forgotten(one.fingerprint), signed=True)
    shown |= {"MER": rate(method.mer) if done else LACKING}
    shown |= {"CER": rate(method.cer) if done else LACKING}
    for name in ("insertions", "loops", "empties"):
        shown[name] = number(mean(one[name] for one in scores) if done else None)
    trained = method.mean_of("trainable_parameters")
    return shown | {
        "trained, M": number(None if trained is None else trained / 1e6, 2),
        "seeds": f"{len(done)}/{len(method.runs)}",
    }


def rows_of(methods: Sequence[Method], made: Made) -> list[dict[str, str]]:
    """The table, all of its rows with the same columns: the base, then each method."""
    rows = [cells(method, made) for method in methods]
    base = base_rates(methods)
    if base is None:
        return rows
    rates = {name: rate(found) for name, found in base.items()}
    untrained = {"recipe": "base, not trained", **rates}
    return [{name: untrained.get(name, LACKING) for name in rows[0]}, *rows]


def _median(found: Sequence[float]) -> float | None:
    return median(found) if found else None


def short(method: Method, made: Made) -> dict[str, str]:
    """The columns that a terminal of 80 has room for."""
    whole = cells(method, made)
    shown = {
        "recipe": f"{method.number} {method.label}",
        "WER": whole["WER"],
        "95 %": LACKING,
        "forgot": LACKING,
        "GiB": whole["peak, GiB"],
    }
    if method.done:
        ends = f"{100 * method.wer.low:.1f} to {100 * method.wer.high:.1f}"
        shown |= {"WER": f"{100 * method.wer.value:.1f}", "95 %": ends}
    if made.speeches:
        forgotten = method.forgotten(made.speeches[0].fingerprint)
        shown["forgot"] = LACKING if forgotten is None else f"{100 * forgotten.value:+.1f}"
    for place in made.places:
        shown[place.card.name] = traced(method, place).replace(", too large", "!")
    return shown | {"clips/s": whole["clips/s"], "min": whole["to best, min"]}


def base_line(methods: Sequence[Method]) -> str | None:
    """What the model made of the test before any training."""
    found = base_rates(methods)
    if found is None:
        return None
    return "base, not trained: " + ", ".join(f"{name} {rate(one)} %" for name, one in found.items())


def failures(methods: Sequence[Method], made: Made) -> list[str]:
    """A sentence for each run that did not finish in one go, or did not decode general speech."""
    said = []
    for one in (run for method in methods for run in method.runs):
        title = f"{one['label']}, seed {one['seed']}"
        if one["outcome"] != FINISHED:
            last = f": {one['said'][-1]}" if one["said"] else ""
            said.append(f"{title}: {one['outcome']} (exit {one['exit']}){last}")
        elif one["measured"]["resumed"]:
            said.append(f"{title}: it was ended and went on; its peak is of what came after")
        said += [
            f"{title}: {heard['speech']} was not decoded: {heard['failed'][-1]}"
            for heard in one["general"].values()
            if "failed" in heard
        ]
    return [*said, *made.notes]


def show(methods: Sequence[Method], made: Made, console: Console) -> None:
    """Print the table, what follows from it, and what did not finish."""
    rows = [short(method, made) for method in methods]
    drawn = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        left = name == "recipe"
        drawn.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        drawn.add_row(*row.values())
    console.print()
    console.print(drawn)
    if made.places:
        named = "; ".join(f"{one.card.name}: {one.name}, traced" for one in made.places)
        console.print(f"GiB: measured here; {named} (!: too large)", style="dim")
    for line in (base_line(methods), *against_best(methods)):
        console.print(line or "no run has finished yet")
    for line in failures(methods, made):
        console.print(f"note: {line}", style="yellow")


def write_readme(into: Path, methods: Sequence[Method], made: Made) -> None:
    """README.md of a folder of results."""
    lines = ["# Recipes compared\n", "Made by `benchmarks/compare.py`; the page is index.html.\n"]
    if methods:
        about = [*about_runs(methods), *about_speech(made)]
        lines += [" ".join(about), "", *_markdown(rows_of(methods, made)), ""]
        lines += [reading(methods, made), "", "What follows:", ""]
    for line in (base_line(methods), *against_best(methods), *failures(methods, made)):
        lines.append(f"- {line or 'no run has finished yet'}")
    lines += ["", "What each says that most others do not:", ""]
    lines += [
        f"- {one.label}: `{said}`" if said else f"- {one.label}: nothing else"
        for one, said in zip(methods, changes(methods), strict=True)
    ]
    write_text(into / "README.md", "\n".join((*lines, "")))


def reading(methods: Sequence[Method], made: Made) -> str:
    """How the table is to be read."""
    done = (one["measured"]["training"] for method in methods for one in method.done)
    kinds = dict.fromkeys(one["peak_kind"].removesuffix(", measured") for one in done)
    said = READING.format(kinds="; ".join(kinds) or "of none yet")
    if made.places:
        said += f" Traced, {', '.join(one.name for one in made.places)}: {made.places[0].what}."
    return said


def _markdown(rows: Sequence[dict[str, str]]) -> list[str]:
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|---|" + "--:|" * (len(names) - 1)]
    for row in rows:
        lines.append(f"| {' | '.join(_plain(row[name]) for name in names)} |")
    return lines


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def about_speech(made: Made) -> list[str]:
    """What is heard for forgetting."""
    names = ", ".join(one.name for one in made.speeches)
    return [f"General speech: {names}."] if names else []


def about_runs(methods: Sequence[Method]) -> list[str]:
    """Sentences on what all finished runs share: base, budget, speech, machine, versions."""
    done = [one for method in methods for one in method.done]
    if not done:
        return []
    first = done[0]["measured"]
    spent = [
        f"{value:g} {key.rpartition('.')[2]}"
        for key, value in done[0]["held_equal"].items()
        if key in ("training.updates", "training.epochs", "budget.clips", "budget.minutes")
    ]
    test, note = first["data"]["test"], done[0]["recipe"]["data"].get("note")
    speech = f"{test['clips']} clips, {test['hours']:.2f} h" + (f", {note}" if note else "")
    names = ("peft_whisper", "torch", "peft")
    made = (one["measured"]["versions"] for one in done)
    made_with = (", ".join(f"{name} {one[name]}" for name in names if name in one) for one in made)
    machines = [one["measured"]["machine"] for one in done]
    places = (m["gpu"]["name"] if m["gpu"] else f"{m['cpu']}, {m['cores']} cores" for m in machines)
    return [
        f"Base: {first['base']['model']}.",
        f"Budget of each run: {', '.join(spent)}.",
        f"Test: {speech}.",
        f"Machine: {'; '.join(dict.fromkeys(places))}.",
        f"Made with {'; '.join(dict.fromkeys(made_with))}.",
    ]
