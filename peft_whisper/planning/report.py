"""Plans in a terminal: a row for each recipe, and what would make those fit that do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from peft_whisper.memory.cards import CONTEXT, GIB, Card
from peft_whisper.planning.plans import SECONDS, UNCOMPILED, VERDICTS, Plan

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {"fits": "green", "tight": "yellow", "too large": "bold red"}
HEAD = {  # of each column: whether it holds numbers, and whether a narrow terminal has it too
    "recipe": (False, True),
    "trains": (False, False),
    "held in": (False, False),
    "recompute": (False, False),
    "micro-batch": (False, True),
    "largest\nwork": (False, False),
    "peak\nGiB": (True, True),
    "reserved\nGiB": (True, True),
    "margin\nGiB": (True, True),
    "verdict": (False, True),
    "largest\nbatch": (True, True),
    "repeated\nFLOPs": (True, False),
}
ENDLESS = 1000  # columns
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
FP16 = "base.dtype=float16 training.precision=fp16"
FP16_ALL = "base.dtype=float32 training.precision=fp16"  # float16 can't hold what is trained itself


def show(plans: Sequence[Plan], console: Console) -> None:
    """Print the table, what its figures mean, and what is to be said of single recipes."""
    card, first = plans[0].card, plans[0]
    head = f"{card.title}: {gib(card.usable)} GiB usable of {gib(card.visible)}"
    clips = f"clips of {first.seconds:g} s, transcripts of {first.labels} tokens"
    console.print(Text(f"{head}; {clips}", style="bold"))
    console.print()
    table = _table(plans, whole=True)
    endless = console.options.update(max_width=ENDLESS)  # what is measured is cut to it
    whole = console.measure(table, options=endless).maximum <= console.width
    console.print(table if whole else _table(plans, whole=False))
    for plan in plans if not whole else ():
        console.print(_settings(plan))
    console.print()
    console.print(_meaning(card))
    for plan in plans:
        for text in _remarks(plan):
            console.print(text, soft_wrap=True)


def gib(size: float) -> str:
    """Bytes as GiB: two digits behind the point below ten, else one."""
    number = size / GIB
    return f"{number:.2f}" if abs(number) < 9.995 else f"{number:.1f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def hourly_bytes(plan: Plan) -> int:
    """What training.frozen_cache keeps of an hour of sound, beside the card."""
    each = 4 if plan.recipe.base.dtype == "float32" else 2
    return round(3600 / SECONDS) * plan.found["model"]["d_model"] * each


def length(plan: Plan) -> str:
    """Seconds of encoder input that each clip of the largest micro-batch takes."""
    return f"{plan.shape[1] * SECONDS:g} s"


def _table(plans: Sequence[Plan], whole: bool) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold cyan", padding=(0, 1))
    for head, (is_number, always) in HEAD.items():
        if whole or always:
            made.add_column(head, justify="right" if is_number else "left", no_wrap=True)
    for plan in plans:
        shown = zip(_cells(plan), HEAD.values(), strict=True)
        made.add_row(*(cell for cell, (_, always) in shown if whole or always))
    return made


def _cells(plan: Plan) -> tuple[Text, ...]:
    cost, most = plan.larger, plan.largest_batch
    mark = " *" if plan.lacks_bf16 else ""
    colour = COLOURS["tight" if mark and plan.verdict == "fits" else plan.verdict]
    return (
        Text(plan.recipe.name),
        Text(trains(plan)),
        Text(held_in(plan)),
        Text(plan.found["recompute"]),
        Text(f"{plan.shape[0]} x {length(plan)}"),
        Text("decoding" if cost is plan.decoding else "training"),
        Text(gib(cost["allocated"])),
        Text(gib(cost["reserved"])),
        Text(gib(plan.margin)),
        Text(plan.verdict + mark, style=colour),
        Text("-" if most is None else "none" if most == 0 else f"{most}"),
        Text(percent(plan.training["repeated"])),
    )


def _settings(plan: Plan) -> Text:
    """What a narrow terminal's table leaves out."""
    cost, repeated = plan.larger, percent(plan.training["repeated"])
    work = "decoding" if cost is plan.decoding else "training"
    said = f"{plan.recipe.name}: {trains(plan)} in {held_in(plan)}; recompute "
    said += f"{plan.found['recompute']}, {repeated} of FLOPs repeated; {work} takes more"
    return Text(said, style="dim")


def trains(plan: Plan) -> str:
    adapter = plan.recipe.adapter
    if adapter.method == "none":
        return "all weights"
    kinds = "all" if adapter.modules == "all" else ",".join(adapter.modules)
    layers = {adapter.encoder_layers, adapter.decoder_layers} != {"all"}
    some = " some layers" if layers else ""
    if adapter.method == "layernorm":
        return f"layer norms{some}"
    name = {"adalora": "AdaLoRA", "dora": "DoRA"}.get(adapter.method, "LoRA")
    return f"{name} {kinds} r{adapter.rank}{some}"


def held_in(plan: Plan) -> str:
    base = plan.recipe.base
    short = SHORT[base.dtype]
    return f"{base.quantize}, {short}" if base.quantize else short


def _meaning(card: Card) -> Table:
    """What the figures are, a line each."""
    counted = "1 GiB for Python and the libraries (assumed)"
    if card.device == "cuda":
        counted = (
            f"{CONTEXT / GIB:g} GiB of CUDA context (assumed), cuBLAS's workspaces, the roundings "
            "and gaps of the allocator (simulated)"
        )
    lines = {
        "traced": "the recipe's own training step and decoding ran on tensors without memory "
        "behind them; nothing was measured",
        "counted": counted,
        "not": "what cuDNN takes for a moment; other programs",
        "peak": "in tensors; reserved: what torch takes for them, expandable segments on",
        "fits": "5 % stay free; tight: it can be done, with less to spare",
        "largest": "clips of that length in one micro-batch, traced; one more is too large",
    }
    made = Table.grid(padding=(0, 2))
    for word, meaning in lines.items():
        made.add_row(word, meaning, style="dim")
    return made


def _remarks(plan: Plan) -> Iterator[Text]:
    """What is to be said of one recipe beside its row."""
    if plan.lacks_bf16:
        yield _said(f"* {plan.recipe.name}: {plan.card.title} has no bf16. Write", "yellow")
        yield Text(f"    {FP16_ALL if plan.recipe.adapter.method == 'none' else FP16}")
    if plan.recipe.training.compile:
        yield _said(f"{plan.recipe.name}: {UNCOMPILED[0].lower()}{UNCOMPILED[1:]}.")
    cache = plan.recipe.training.frozen_cache
    if cache != "none":
        yield _said(
            f"{plan.recipe.name}: its steps begin at what the frozen encoder layers gave before "
            f"training (training.frozen_cache): {hourly_bytes(plan) / 1e9:.2f} GB of {cache} an "
            "hour of sound, padding included, once for each length that a clip is padded to; the "
            "layers stay on the card, to decode."
        )
    if plan.verdict == "tight":
        yield _said(f"{plan.recipe.name} is tight: {_spare(plan)}.", "yellow")
    if plan.verdict == "too large":
        yield from _changes(plan)


def _said(text: str, style: str = "") -> Text:
    return Text("\n" + text, style=style)


def _spare(plan: Plan) -> str:
    if plan.margin < 0:
        return (
            "now and then the allocator must give back what it holds in reserve, which costs time"
        )
    return f"{gib(plan.margin)} GiB to spare, less than the 5 % that long runs should have"


def _changes(plan: Plan) -> Iterator[Text]:
    """Each change that was traced, to be copied, with what it comes to."""
    costs = [(work, plan.found[work]) for work in ("training", "decoding")]
    takes = " and ".join(
        f"{work} takes {gib(cost['reserved'])}"
        for work, cost in costs
        if cost["verdict"] == "too large"
    )
    said = f"{plan.recipe.name} is too large: {takes} of {gib(plan.card.usable)} GiB."
    yield _said(said, COLOURS["too large"])
    changes = plan.found["changes"]
    helping = [one for one in changes if verdict_of(one) != "too large"]
    if helping:
        yield Text("  What makes it fit, traced:")
    else:
        near = " The nearest, traced:" if changes else " Take a larger card or a smaller base."
        yield Text("  No settings were found that make it fit." + near)
    for change in helping or changes:
        yield Text(f"    {' '.join(change['overrides'])}", style="bold")
        yield _outcome(change)


def verdict_of(change: dict[str, Any]) -> str:
    """The worse one of training and decoding with the change."""
    return max(change["cost"]["verdict"], change["decoding"]["verdict"], key=VERDICTS.index)


def _outcome(change: dict[str, Any]) -> Text:
    cost = max(change["cost"], change["decoding"], key=lambda one: one["reserved"])
    verdict = verdict_of(change)
    said = Text(f"      peak {gib(cost['allocated'])}, reserved {gib(cost['reserved'])} GiB: ")
    said.append(verdict, style=COLOURS[verdict])
    return said.append(f"; {change['why']}")
