"""What would make a recipe fit that does not: settings to change, each traced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from peft_whisper.model.recompute import LADDER
from peft_whisper.model.sizes import Blueprint
from peft_whisper.planning.costs import Cost, Tracer
from peft_whisper.planning.largest import Traced, largest_batch
from peft_whisper.planning.plans import SECONDS
from peft_whisper.planning.tracing import Shape
from peft_whisper.recipe import Recipe

Steps = tuple[Shape, ...]
DECODED = 0.9  # share of the card that the first number of clips to try is reckoned for


@dataclass(frozen=True)
class Asked:
    """A recipe, the update and the decoding it is to do; `less`: the largest batch, if known."""

    recipe: Recipe
    base: Blueprint
    steps: Steps
    decoding: Shape
    less: int | None


def changes(tracer: Tracer, asked: Asked, first: Traced, decoded: Cost) -> Iterator[dict[str, Any]]:
    """The cheapest first; each is {"overrides", "cost" of training, "decoding", "why"}.

    Where decoding is too large too, an `evaluation.batch` is among a change's overrides.
    """
    fewer, decoded = _fewer_decoded(tracer, asked.decoding, decoded)
    if first[1].fits and fewer:
        yield _change(fewer, first[1], decoded, "fewer clips decoded at once, the same texts")
    elif not first[1].fits and tracer.least <= tracer.limits.usable:
        yield from _kept_lighter(tracer, asked, first, fewer, decoded)
    if first[1].fits and decoded.fits:
        return
    for overrides, changed, why in _smaller(asked.recipe, tracer.limits.bf16):
        other = Tracer(changed, asked.base, tracer.limits)
        one = other.training(asked.steps)[1]
        if not one.fits:
            other.trace.recompute("all")
            one, overrides = other.training(asked.steps)[1], [*overrides, "training.recompute=all"]
        decoded = other.decoding(asked.decoding)
        fewer, decoded = _fewer_decoded(other, asked.decoding, decoded)
        yield _change(overrides + fewer, one, decoded, why)


def _kept_lighter(
    tracer: Tracer, asked: Asked, first: Traced, fewer: list[str], decoded: Cost
) -> Iterator[dict[str, Any]]:
    """Fewer clips at once, or fewer activations kept: the weights stay as they are."""
    steps, less = asked.steps, asked.less
    if less is None and steps[0].clips > 1:
        less = largest_batch(tracer, steps, first).clips
    if less:
        clips, one = _split(tracer, asked, less)
        said = [f"training.micro_audio_s={clips * steps[0].positions * SECONDS:g}", *fewer]
        yield _change(said, one, decoded, "same result, more micro-steps")
    now = asked.recipe.training.recompute
    if now not in ("all", "auto"):
        rung = least_repeated(tracer, [steps], above=_rung(now))
        tracer.trace.recompute(rung)
        one = tracer.training(steps)[1]
        tracer.trace.recompute(now)
        why = f"same result, {100 * one.repeated:.0f} % of the step's FLOPs repeated"
        yield _change([f"training.recompute={rung}", *fewer], one, decoded, why)


def _split(tracer: Tracer, asked: Asked, less: int) -> tuple[int, Cost]:
    """Clips of a micro-batch, and its cost, with the batch in as few parts as fit.

    From the second part on there are gradients beside the activations, so `less` may not fit.
    """
    batch, step = asked.recipe.training.batch, asked.steps[0]
    parts = -(-batch // less)
    while True:
        clips = -(-batch // parts)
        cost = tracer.training((replace(step, clips=clips),) * 2)[1]
        if cost.fits or clips == 1:
            return clips, cost
        parts = -(-batch // (clips - 1))


def _fewer_decoded(tracer: Tracer, shape: Shape, cost: Cost) -> tuple[list[str], Cost]:
    """A power of two of clips whose decoding fits, as override, and its cost.

    No override where `cost`, that of `shape`, fits, or where not even one clip can be decoded.
    """
    if cost.fits:
        return [], cost
    parts = cost.parts
    standing = parts["weights"] + parts["adapters"] + parts["optimizer"]
    room = max(0, int(DECODED * tracer.limits.usable) - standing)
    near = max(1, min(shape.clips - 1, shape.clips * room // (cost.allocated - standing)))
    clips = 1 << (near.bit_length() - 1)
    while clips:
        fewer = tracer.decoding(replace(shape, clips=clips))
        if fewer.fits:
            return [f"evaluation.batch={clips}"], fewer
        clips //= 2
    return [], cost


def least_repeated(tracer: Tracer, ways: list[Steps], above: str = "") -> str:
    """The first rung of the ladder whose work fits well, or else just fits; `all` if none does."""
    rungs = list(LADDER[LADDER.index(above) + 1 :] if above else LADDER)
    costs: dict[str, list[Cost]] = {}

    def verdicts(rung: str) -> set[str]:
        if rung not in costs:
            tracer.trace.recompute(rung)
            costs[rung] = [tracer.training(steps)[1] for steps in ways]
        return {cost.verdict for cost in costs[rung]}

    low, high = 0, len(rungs) - 1  # each rung takes less than the one before
    while low < high:
        middle = (low + high) // 2
        if verdicts(rungs[middle]) == {"fits"}:
            high = middle
        else:
            low = middle + 1
    return rungs[low]


def _rung(choice: str) -> str:
    """The last rung of the ladder that repeats no more than `choice`."""
    if choice in LADDER:
        return choice
    part, of = map(int, choice.split("/"))
    shares = [rung for rung in LADDER if "/" in rung and _share(rung) <= part / of]
    return shares[-1] if shares else "cheap"


def _share(rung: str) -> float:
    part, of = map(int, rung.split("/"))
    return part / of


def _change(overrides: list[str], cost: Cost, decoded: Cost, why: str) -> dict[str, Any]:
    both = {"cost": asdict(cost), "decoding": asdict(decoded)}
    return {"overrides": overrides, **both, "why": why}


def _smaller(recipe: Recipe, bf16: bool) -> Iterator[tuple[list[str], Recipe, str]]:
    """The same training with weights and optimizer held in fewer bits."""
    everything = recipe.adapter.method == "none"
    dtype, precision = ("bfloat16", "bf16") if bf16 else ("float16", "fp16")
    can_halve = recipe.base.dtype == "float32" and (bf16 or not everything)
    half = {"base.dtype": dtype, "training.precision": precision} if can_halve else {}
    eight = {"training.optimizer": "adamw8bit"}
    if everything and (half or "8bit" not in recipe.training.optimizer):
        why = "weights in bf16, their other digits beside them; " if half else ""
        yield *_with(recipe, half | eight), f"{why}8-bit optimizer"
    if not everything and half:
        yield *_with(recipe, half), "frozen weights in half the bytes"
    adapter = recipe.adapter
    whole = adapter.method in ("adalora", "dora") or adapter.start == "pissa"  # need its weights
    if not (everything or whole) and recipe.base.quantize is None:
        why = "frozen linear layers in 4 bits, slower"
        yield *_with(recipe, half | {"base.quantize": "nf4"}), why


def _with(recipe: Recipe, values: dict[str, str]) -> tuple[list[str], Recipe]:
    """`values` as overrides, and the recipe with them."""
    sections: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    changed = {
        section: getattr(recipe, section).model_copy(update=update)
        for section, update in sections.items()
    }
    overrides = [f"{key}={value}" for key, value in values.items()]
    return overrides, recipe.model_copy(update=changed)
