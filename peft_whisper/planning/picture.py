"""Plans as a picture: what each recipe takes of a card, in bars against the card's own lines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.memory.cards import GIB
from peft_whisper.planning.plans import Plan
from peft_whisper.planning.report import gib, held_in, length, trains

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind eyes tell apart; neighbours differ in lightness too.
COLOURS = {
    "weights": "#0072B2",
    "adapters": "#F0E442",
    "gradients": "#D55E00",
    "optimizer": "#E69F00",
    "activations": "#009E73",
    "temporaries": "#8CCBEE",
}
LEGEND = {"temporaries": "temporaries (decoding: keys and values)"}
VERDICTS = {
    "fits": ("✓ fits", "#1a7f37"),
    "tight": ("! tight", "#9a6700"),
    "too large": ("✗ too large", "#cf222e"),
}
INK, FAINT, RESERVE = "#1f2328", "#6e7781", "#9aa4af"
WIDTH_IN, DPI = 8.0, 160  # 1280 pixels
ROW_IN = 0.72  # height of a recipe
LEFT_IN, RIGHT_IN = 2.75, 1.12  # room for names and for verdicts
LANES = {"training": (-0.18, 0.30), "decoding": (0.20, 0.30)}  # place and height of the two bars
FIGURE = 0.08  # width of a figure, as a share of the axis
MOST_CARDS = 2.2  # longer bars are cut, and say so


def draw(plans: Sequence[Plan], path: Path) -> None:
    """Write the PNG."""
    import matplotlib

    style: Any = {
        "font.family": "sans-serif",
        "font.size": 8.5,
        "text.color": INK,
        "axes.edgecolor": RESERVE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
    }
    out = io.BytesIO()
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        height = 1.7 + ROW_IN * len(plans)
        drawing = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
        across = (WIDTH_IN - LEFT_IN - RIGHT_IN) / WIDTH_IN
        axes = drawing.add_axes((LEFT_IN / WIDTH_IN, 0.95 / height, across, 1 - 1.7 / height))
        _fill(axes, plans)
        _say(drawing, axes, plans, height)
        drawing.savefig(out, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out.getvalue())


def _fill(axes: Axes, plans: Sequence[Plan]) -> None:
    card = plans[0].card
    largest = max(plan.larger["reserved"] for plan in plans)
    right = max(card.visible * 1.12, min(largest * 1.2, card.visible * MOST_CARDS)) / GIB
    axes.set_xlim(0, right)
    axes.set_ylim(len(plans) - 0.5, -0.5)
    for row, plan in enumerate(plans):
        if row % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", zorder=0)
        for work, (offset, thick) in LANES.items():
            _bar(axes, plan, work, row + offset, thick, right)
    axes.axvline(card.usable / GIB, color=INK, linewidth=1.4, zorder=4)
    axes.axvline(card.visible / GIB, color=INK, linewidth=1.0, linestyle=(0, (3, 2)), zorder=4)
    axes.set_yticks([])
    axes.tick_params(axis="x", colors=FAINT, length=2, labelsize=7.5)
    axes.grid(axis="x", color="#d8dee4", linewidth=0.6, zorder=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("GiB", color=FAINT, labelpad=1, fontsize=7.5)


def _bar(axes: Axes, plan: Plan, work: str, at: float, thick: float, right: float) -> None:
    """The parts at the peak of `work`, then what the allocator holds beyond them."""
    cost, left = plan.found[work], 0.0
    for part, colour in COLOURS.items():
        size = cost["parts"].get(part, 0) / GIB
        axes.barh(at, size, thick, left, color=colour, edgecolor="white", linewidth=0.4, zorder=2)
        left += size
    reserved = cost["reserved"] / GIB
    axes.barh(
        at,
        max(0.0, reserved - left),
        thick,
        left,
        facecolor="white",
        edgecolor=RESERVE,
        hatch="//////",
        linewidth=0.4,
        zorder=2,
    )
    is_cut = reserved > right
    end, card = min(reserved, right), plan.card
    if card.usable / GIB < end + FIGURE * right and end < card.visible / GIB:
        end = card.visible / GIB  # behind the lines instead of across them
    axes.annotate(
        f"{gib(cost['reserved'])} »" if is_cut else gib(cost["reserved"]),
        (end, at),
        (-4 if is_cut else 4, 0),
        textcoords="offset points",
        ha="right" if is_cut else "left",
        va="center_baseline",
        fontsize=7.5,
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if is_cut else None,
    )


def _say(drawing: Any, axes: Axes, plans: Sequence[Plan], height: float) -> None:
    """Everything in words: title, lines, names, verdicts, legend."""
    from matplotlib.patches import Patch

    first, card = plans[0], plans[0].card
    drawing.text(0.02, 1 - 0.27 / height, f"Memory on {card.title}", fontsize=13, weight="bold")
    about = (
        f"clips of {first.seconds:g} s, transcripts of {first.labels} tokens; traced, not measured"
    )
    drawing.text(0.02, 1 - 0.46 / height, about, color=FAINT)
    top = axes.get_xaxis_transform()
    usable, visible = card.usable / GIB, card.visible / GIB
    axes.text(usable, 1, f"usable {usable:.1f} ", transform=top, ha="right", va="bottom")
    axes.text(visible, 1, f" whole card {visible:.1f}", transform=top, va="bottom", color=FAINT)
    side = axes.get_yaxis_transform()
    for row, plan in enumerate(plans):
        _name(axes, side, row, plan)
    keys = [Patch(color=colour, label=LEGEND.get(part, part)) for part, colour in COLOURS.items()]
    hatched: dict[str, Any] = {"facecolor": "white", "edgecolor": RESERVE, "hatch": "//////"}
    keys.append(Patch(label="reserved by the allocator beyond", **hatched))
    drawing.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0.012, 0.0),
        ncols=4,
        fontsize=7.5,
        handlelength=1.2,
        columnspacing=1.4,
    )


def _name(axes: Axes, side: Any, row: int, plan: Plan) -> None:
    """A recipe's name, settings, works and verdict beside its bars."""
    place: dict[str, Any] = {"transform": side, "va": "center", "clip_on": False}
    small: dict[str, Any] = {"fontsize": 7, "color": FAINT, **place}
    left = (0.16 - LEFT_IN) / (WIDTH_IN - LEFT_IN - RIGHT_IN)
    axes.text(left, row - 0.22, plan.recipe.name, weight="bold", fontsize=9, **place)
    axes.text(left, row + 0.06, f"{trains(plan)}, {held_in(plan)}", **small)
    axes.text(left, row + 0.28, f"recompute {plan.found['recompute']}", **small)
    works = {
        "training": f"training {plan.shape[0]} x {length(plan)}",
        "decoding": f"decoding {plan.recipe.evaluation.batch} clips",
    }
    for work, (offset, _) in LANES.items():
        axes.text(-0.015, row + offset, works[work], ha="right", **small)
    mark, colour = VERDICTS[plan.verdict]
    if plan.lacks_bf16 and plan.verdict == "fits":
        colour = VERDICTS["tight"][1]
    axes.text(1.03, row - 0.12, mark, color=colour, weight="bold", fontsize=9, **place)
    axes.text(1.03, row + 0.16, _margin(plan), **small)


def _margin(plan: Plan) -> str:
    if plan.lacks_bf16:
        return "but it has no bf16"
    if plan.margin < 0:
        return f"{gib(-plan.margin)} GiB over"
    return f"{gib(plan.margin)} GiB spare"
