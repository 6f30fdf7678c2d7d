"""Pictures of a comparison, as inline SVG: WER by method, against memory and speed, over updates.

Methods are told apart by number, colour and shape, which the key beside the pictures names. Each
picture is drawn twice, for a wide page and for a telephone, since its letters can't shrink with it.
Word error rates far apart are on a logarithmic axis: most methods are close, a few far off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean, median
from typing import Any

from comparing.methods import Method, on_front

from peft_whisper.scoring.page import INK, figure

# Each has a contrast of 3 and more on white and on the dark page.
COLORS = ("#2a78c8", "#d55e00", "#00926a", "#c4578f", "#a87800", "#0f8ea0", "#7f63cc", "#8c6d5a")
SHAPES = ("o", "s", "^")  # the first of as many as there are colours, then the next
RIVAL = "D"
WIDE, NARROW = (10.8, 4.6), (3.9, 3.9)  # inches, of 96 CSS pixels
TICKS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300)
APART = 13  # points between two labels that do not touch
SIDES = ((8, 6), (8, -13), (-17, 6), (-17, -13), (0, 11), (0, -19), (19, -3), (-28, -3))
LEAST, FAR = 0.005, 2.5  # a rate that a logarithm shows, and how far apart is far
Link = Callable[[dict[str, Any]], str]  # from a run's result to what it opens


def color(method: Method) -> str:
    return COLORS[(method.number - 1) % len(COLORS)]


def shape(method: Method) -> str:
    return RIVAL if method.rival else SHAPES[(method.number - 1) // len(COLORS) % len(SHAPES)]


def rates_picture(methods: Sequence[Method], link: Link) -> str:
    """Methods by name, the best at the top: WER with its interval, and each seed."""
    ranked = sorted(methods, key=lambda one: -one.wer.value)

    def draw(axes: Any, named: bool) -> None:
        for place, one in enumerate(ranked):
            wer, shown = one.wer, color(one)
            ends = [100 * wer.low, 100 * wer.high]
            axes.plot(ends, [place, place], color=shown, lw=1.4, zorder=1)
            _dots(axes, [100 * rate for rate in _rates(one)], [place] * len(one.done), one, link)
            _marker(axes, 100 * wer.value, place, one, True, link)
        names = [f"{one.number} {one.label}" if named else f"{one.number}" for one in ranked]
        axes.set_yticks(range(len(ranked)), names)
        axes.set(xlabel="test WER, % (left is better)")
        _percents(axes.xaxis, [end for one in ranked for end in (one.wer.low, one.wer.high)])

    height = 0.9 + 0.27 * len(ranked)
    best = ranked[-1]
    alt = f"test WER by method, with intervals; the lowest: {best.number} {best.label}"
    return "".join(
        f'<div class="{name}">{figure(partial(draw, named=named), alt, width, height)}</div>'
        for name, width, named in (("wide", WIDE[0], True), ("narrow", NARROW[0], False))
    )


def cost_picture(
    methods: Sequence[Method], costs: Sequence[Sequence[float]], axis: str, better: str, link: Link
) -> str:
    """WER over the costs of each run; `better` is the side of the axis, left or right.

    A method stands at the largest of its costs where left is better, else at their median.
    """
    places = [cost_of(found, better) for found in costs]
    ahead = on_front(methods, [cost if better == "left" else -cost for cost in places])

    def draw(axes: Any) -> None:
        lined = sorted(
            (cost, one.wer.value) for one, cost in zip(methods, places, strict=True) if one in ahead
        )
        axes.plot(
            [cost for cost, _ in lined], [100 * wer for _, wer in lined], ":", color=INK, zorder=1
        )
        for one, found, cost in zip(methods, costs, places, strict=True):
            faint, wer = 1.0 if one in ahead else 0.45, one.wer
            line = {"color": color(one), "lw": 1.2, "alpha": faint, "zorder": 2}
            axes.plot([cost, cost], [100 * wer.low, 100 * wer.high], **line)
            axes.plot([min(found), max(found)], [100 * wer.value] * 2, **line)
            _dots(axes, found, [100 * rate for rate in _rates(one)], one, link)
            _marker(axes, cost, 100 * wer.value, one, one in ahead, link)
        axes.set(xlabel=f"{axis} ({better} is better)", ylabel="test WER, %")
        axes.margins(x=0.08)
        _percents(axes.yaxis, [end for one in methods for end in (one.wer.low, one.wer.high)])
        _labels(
            axes,
            [(cost, 100 * one.wer.value, one) for one, cost in zip(methods, places, strict=True)],
        )

    front = ", ".join(f"{one.number} {one.label}" for one in ahead)
    return _both(draw, f"WER against {axis}; on the Pareto front: {front}")


def cost_of(found: Sequence[float], better: str) -> float:
    """Of a method's runs: the largest where less is better, as memory is; else their median."""
    return max(found) if better == "left" else median(found)


def _rates(method: Method) -> list[float]:
    return [one["measured"]["scores"]["tuned"]["wer"] for one in method.done]


def _dots(axes: Any, x: Sequence[float], y: Sequence[float], method: Method, link: Link) -> None:
    """Each seed, where there are several; each opens its own run."""
    if len(method.done) > 1:
        dots = axes.scatter(x, y, s=16, color=color(method), alpha=0.6, lw=0, zorder=4)
        dots.set_urls([link(one) for one in method.done])


def _marker(axes: Any, x: float, y: float, method: Method, ahead: bool, link: Link) -> None:
    """The method itself, filled where nothing beats it; a click anywhere inside opens its run."""
    shown = color(method)
    # What is transparent can be clicked, what is not filled at all can't.
    inside = shown if ahead else (*(int(shown[at : at + 2], 16) / 255 for at in (1, 3, 5)), 0.12)
    dot = axes.scatter(
        [x], [y], s=75, marker=shape(method), color=[inside], edgecolors=shown, lw=1.5, zorder=3
    )
    dot.set_urls([link(method.done[0])])


def _percents(axis: Any, rates: Sequence[float]) -> None:
    """Whole percents along an axis for rates; logarithmic where they are far apart."""
    low, high = min(rates), max(rates)
    if low < LEAST or high / low < FAR:
        return
    ticks = [one for one in TICKS if 100 * low / 1.1 <= one <= 100 * high * 1.1]
    scale = getattr(axis.axes, f"set_{axis.axis_name}scale")
    scale("log")
    axis.set_major_locator(_ticker().FixedLocator(ticks))
    axis.set_minor_locator(_ticker().NullLocator())
    axis.set_major_formatter(_ticker().FormatStrFormatter("%g"))


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker


def _labels(axes: Any, points: Sequence[tuple[float, float, Method]]) -> None:
    """Numbers beside their points, each on the side where the fewest others are."""
    taken = _on_paper(axes, [(x, y) for x, y, _ in points])
    for (x, y, method), at in zip(points, [*taken], strict=True):

        def crowd(side: tuple[int, int], at: tuple[float, float] = at) -> float:
            middle = (at[0] + side[0] + 5, at[1] + side[1] + 4)
            gaps = (max(abs(middle[0] - one[0]), abs(middle[1] - one[1])) for one in taken)
            return sum(max(0.0, APART - gap) for gap in gaps)

        side = min(SIDES, key=crowd)
        taken.append((at[0] + side[0] + 5, at[1] + side[1] + 4))
        _number(axes, x, y, method, side)


def _on_paper(axes: Any, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where points of the data are, in typographic points."""
    axes.autoscale_view()
    scale = 72 / axes.figure.dpi
    return [(scale * x, scale * y) for x, y in axes.transData.transform(points)]


def _number(axes: Any, x: float, y: float, method: Method, beside: tuple[float, float]) -> None:
    axes.annotate(
        str(method.number),
        (x, y),
        beside,
        textcoords="offset points",
        color=color(method),
        fontweight="bold",
    )


def curves_picture(methods: Sequence[Method]) -> str:
    """Validation WER over updates: the mean of the seeds, and each seed faintly."""

    def draw(axes: Any) -> None:
        ends = []
        for one in methods:
            curves = [run["measured"]["curve"] for run in one.done]
            if len(curves) > 1:
                for curve in curves:
                    axes.plot(*_line(curve), color=color(one), lw=0.7, alpha=0.4)
            shared = set.intersection(*({row["update"] for row in curve} for curve in curves))
            line = [(at, mean(_at(curve, at) for curve in curves)) for at in sorted(shared)]
            style = "--" if one.rival else "-"
            axes.plot(*zip(*line, strict=True), style, marker=shape(one), color=color(one), ms=4)
            ends.append((*line[-1], one))
        axes.set(xlabel="update", ylabel="validation WER, %")
        axes.margins(x=0.06)
        rates = [
            row["wer"] for one in methods for run in one.done for row in run["measured"]["curve"]
        ]
        _percents(axes.yaxis, rates)
        _spread(axes, ends)

    return _both(draw, "validation WER over updates, by method")


def _spread(axes: Any, ends: Sequence[tuple[float, float, Method]]) -> None:
    """Numbers right of where the curves end, moved apart where they would overlap."""
    heights = [y for _, y in _on_paper(axes, [(x, y) for x, y, _ in ends])]
    top = float("-inf")
    for height, (x, y, method) in sorted(zip(heights, ends, strict=True), key=lambda one: one[0]):
        top = max(height, top + APART - 2)
        _number(axes, x, y, method, (8, top - height - 3))


def _at(curve: Sequence[dict[str, Any]], update: int) -> float:
    return next(100 * row["wer"] for row in curve if row["update"] == update)


def _line(curve: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [row["update"] for row in curve], [100 * row["wer"] for row in curve]


def _both(draw: Callable[[Any], None], alt: str) -> str:
    return "".join(
        f'<div class="{name}">{figure(draw, alt, width, height)}</div>'
        for name, (width, height) in (("wide", WIDE), ("narrow", NARROW))
    )
