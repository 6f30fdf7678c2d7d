"""The comparison as a table: in a terminal, and as the README of a folder of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comparing.methods import Method, against_best
from comparing.processes import FINISHED
from comparing.statistics import Estimate
from comparing.tracing import Place
from rich.console import Console
from rich.table import Table

from peft_whisper.files import write_text

LACKING = "–"
READING = (
    "WER, MER and CER in percent, on the test split, mean over the seeds; intervals are 95 %, over "
    "clips and seeds. Padded: what decoding at the full 30 s, as other programs do, adds in points "
    "(a rival always does). Forgetting: change of WER, in points, on general speech that no recipe "
    "trained on. Peak: largest of the runs, measured. Speed: training alone, without warm-up and "
    "evaluation; decoded/s: clips of the last validation. To best: training up to the checkpoint "
    "that was kept. Differences are paired, each at 95 %, and not corrected for how many there are."
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


def traced(method: Method, name: str) -> str:
    """GiB that the tracer found for the place of that name."""
    found = next((one["traced"][name] for one in method.runs if name in one["traced"]), None)
    if found is None:
        return LACKING
    if "failed" in found:
        return "failed"
    said = f"{found['reserved_bytes'] / 2**30:.1f}"
    return said if found["fits"] else f"{said}, too large"


def cells(method: Method, places: Sequence[Place]) -> dict[str, str]:
    """Every column of a method with at least one finished run."""
    best_s = method.mean_of("best", "training_s")
    scores = [one["measured"]["scores"]["tuned"] for one in method.done]
    shown = {
        "recipe": method.label,
        "WER": rate(method.wer),
        "padded": rate(method.padded, signed=True),
        "peak, GiB": number(method.peak_gib, 2),
    }
    for place in places:
        shown[f"traced, {place.name}, GiB"] = traced(method, place.name)
    shown |= {
        "clips/s": number(method.mean_of("training", "clips_per_s"), 2),
        "audio s/s": number(method.mean_of("training", "audio_s_per_s")),
        "decoded/s": number(method.mean_of("decoding", "clips_per_s")),
        **energy(method),
        "to best, min": number(None if best_s is None else best_s / 60),
        "clips heard": number(method.mean_of("clips_heard"), 0),
        "forgetting": rate(method.forgotten, signed=True),
        "MER": rate(method.mer),
        "CER": rate(method.cer),
    }
    for title, name in (("I", "insertions"), ("loops", "loops"), ("empty", "empties")):
        shown[title] = number(sum(one[name] for one in scores) / len(scores))
    trained = method.mean_of("trainable_parameters") or 0
    return shown | {
        "trained, M": number(trained / 1e6, 2),
        "seeds": f"{len(method.done)}/{len(method.runs)}",
    }


def energy(method: Method) -> dict[str, str]:
    """A column where the machine tells: its energy in training, without warm-up."""
    joules = method.mean_of("training", "joules")
    return {} if joules is None else {"energy, kJ": number(joules / 1e3)}


def short(method: Method, places: Sequence[Place]) -> dict[str, str]:
    """The columns that a terminal of 80 has room for."""
    whole = cells(method, places)
    forgotten = method.forgotten
    shown = {
        "recipe": f"{method.number} {method.label}",
        "seeds": whole["seeds"],
        "WER": f"{100 * method.wer.value:.1f}",
        "95 %": f"{100 * method.wer.low:.1f} to {100 * method.wer.high:.1f}",
        "forgot": LACKING if forgotten is None else f"{100 * forgotten.value:+.1f}",
        "GiB": whole["peak, GiB"],
    }
    for place in places:
        shown[place.card.name] = traced(method, place.name)
    return shown | {"clips/s": whole["clips/s"], "min": whole["to best, min"]}


def base_line(methods: Sequence[Method]) -> str | None:
    """What the model made of the test before any training."""
    done = next((one for one in methods if one.done), None)
    if done is None:
        return None
    base = done.done[0]["measured"]["scores"]["base"]
    rates = ", ".join(f"{name.upper()} {100 * base[name]:.1f} %" for name in ("wer", "mer", "cer"))
    counts = f"{base['insertions']} insertions, {base['loops']} loops, {base['empties']} empty"
    return f"base, not trained: {rates}, {counts}"


def failures(methods: Sequence[Method]) -> list[str]:
    """A sentence for each run that did not finish, or whose general speech was not decoded."""
    said = []
    for one in (run for method in methods for run in method.runs):
        title, heard = f"{one['label']}, seed {one['seed']}", one["general"] or {}
        if one["outcome"] != FINISHED:
            last = f": {one['said'][-1]}" if one["said"] else ""
            said.append(f"{title}: {one['outcome']} (exit {one['exit']}){last}")
        elif "failed" in heard:
            said.append(f"{title}: general speech was not decoded: {heard['failed'][-1]}")
    return said


def show(
    methods: Sequence[Method], places: Sequence[Place], notes: Sequence[str], console: Console
) -> None:
    """Print the table, what follows from it, and what did not finish."""
    rows = [short(method, places) for method in methods if method.done]
    made = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        left = name == "recipe"
        made.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        made.add_row(*row.values())
    console.print()
    console.print(made)
    for line in (base_line(methods), *against_best(methods)):
        console.print(line or "no run has finished yet")
    for line in (*failures(methods), *notes):
        console.print(f"note: {line}", style="yellow")


def write_readme(
    into: Path, methods: Sequence[Method], places: Sequence[Place], notes: Sequence[str]
) -> None:
    """README.md of a folder of results."""
    rows = [cells(method, places) for method in methods if method.done]
    lines = ["# Recipes compared\n", "Made by `benchmarks/compare.py`; the page is index.html.\n"]
    if rows:
        lines += [" ".join(about(methods)), "", *_markdown(rows), ""]
    for line in (base_line(methods), *against_best(methods), *failures(methods), *notes):
        lines.append(f"- {line or 'no run has finished yet'}")
    write_text(into / "README.md", "\n".join((*lines, "", READING, "")))


def _markdown(rows: Sequence[dict[str, str]]) -> list[str]:
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|---|" + "--:|" * (len(names) - 1)]
    for row in rows:
        lines.append(f"| {' | '.join(_plain(row[name]) for name in names)} |")
    return lines


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def about(methods: Sequence[Method]) -> list[str]:
    """Sentences on what all finished runs share: budget, speech, machine, versions."""
    done = [one for method in methods for one in method.done]
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
        f"Budget of each run: {', '.join(spent)}.",
        f"Test: {speech}.",
        f"Machine: {'; '.join(dict.fromkeys(places))}.",
        f"Made with {'; '.join(dict.fromkeys(made_with))}.",
    ]
