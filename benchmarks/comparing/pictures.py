"""Three pictures of a comparison, as inline SVG: WER against memory, against speed, over updates.

Methods are told apart by number and colour, which the key beside the pictures names. Each picture
is drawn twice, for a wide page and for a telephone, since its letters can't shrink with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from comparing.methods import Method, on_front

from peft_whisper.scoring.page import INK, figure

# Okabe and Ito's, told apart by colour-blind eyes, without the two that white or black swallows.
COLORS = ("#2a86d1", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6fd1", INK)
WIDE, NARROW = (10.8, 4.6), (3.9, 3.6)  # inches, of 96 CSS pixels
Link = Callable[[dict[str, Any]], str | None]  # from a run's result to its report, if it is there


def color(method: Method) -> str:
    return COLORS[(method.number - 1) % len(COLORS)]


def cost_picture(
    methods: Sequence[Method], costs: Sequence[float], axis: str, better: str, link: Link
) -> str:
    """WER over a cost; `better` is the side of the axis, left or right, that is wished for."""
    sign = 1 if better == "left" else -1
    ahead = on_front(methods, [sign * cost for cost in costs])

    def draw(axes: Any) -> None:
        lined = sorted(
            (cost, one.wer.value) for one, cost in zip(methods, costs, strict=True) if one in ahead
        )
        axes.plot(
            [cost for cost, _ in lined], [100 * wer for _, wer in lined], ":", color=INK, zorder=1
        )
        for one, cost in zip(methods, costs, strict=True):
            _point(axes, one, cost, one in ahead, link)
        axes.set(xlabel=f"{axis} ({better} is better)", ylabel="test WER, %")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)

    front = ", ".join(f"{one.number} {one.label}" for one in ahead)
    return _both(draw, f"WER against {axis}; on the Pareto front: {front}")


def _point(axes: Any, method: Method, cost: float, ahead: bool, link: Link) -> None:
    """The method's mean with its interval, filled where it is on the front; the seeds faintly."""
    shown, wer = color(method), method.wer
    ends = [[100 * (wer.value - wer.low)], [100 * (wer.high - wer.value)]]
    axes.errorbar([cost], [100 * wer.value], yerr=ends, color=shown, capsize=3, lw=1.2, zorder=2)
    marker = "D" if method.rival else "o"
    inside = shown if ahead else "none"
    mean_dot = axes.scatter(
        [cost],
        [100 * wer.value],
        s=75,
        marker=marker,
        color=inside,
        edgecolors=shown,
        lw=1.6,
        zorder=3,
    )
    if len(method.done) > 1:
        rates = [100 * one["measured"]["scores"]["tuned"]["wer"] for one in method.done]
        dots = axes.scatter([cost] * len(rates), rates, s=14, color=shown, alpha=0.6, zorder=4)
        dots.set_urls([link(one) for one in method.done])
    mean_dot.set_urls([link(method.done[0])])
    axes.annotate(
        str(method.number),
        (cost, 100 * wer.value),
        (8, 5),
        textcoords="offset points",
        color=shown,
        fontweight="bold",
    )


def curves_picture(methods: Sequence[Method]) -> str:
    """Validation WER over updates: the mean of the seeds, and each seed faintly."""

    def draw(axes: Any) -> None:
        for one in methods:
            curves = [run["measured"]["curve"] for run in one.done]
            if len(curves) > 1:
                for curve in curves:
                    axes.plot(*_line(curve), color=color(one), lw=0.7, alpha=0.4)
            shared = set.intersection(*({row["update"] for row in curve} for curve in curves))
            rows = [
                (
                    at,
                    mean(
                        100 * row["wer"] for curve in curves for row in curve if row["update"] == at
                    ),
                )
                for at in sorted(shared)
            ]
            style = "s--" if one.rival else "o-"
            axes.plot(
                *zip(*rows, strict=True), style, color=color(one), ms=4, label=str(one.number)
            )
            axes.annotate(
                str(one.number),
                rows[-1],
                (6, -3),
                textcoords="offset points",
                color=color(one),
                fontweight="bold",
            )
        axes.set(xlabel="update", ylabel="validation WER, %")
        axes.set_ylim(bottom=0)

    return _both(draw, "validation WER over updates, by method")


def _line(curve: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [row["update"] for row in curve], [100 * row["wer"] for row in curve]


def _both(draw: Callable[[Any], None], alt: str) -> str:
    return "".join(
        f'<div class="{name}">{figure(draw, alt, width, height)}</div>'
        for name, (width, height) in (("wide", WIDE), ("narrow", NARROW))
    )
