"""Before training: whether what is about to be done fits the memory at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console

from peft_whisper.data.epochs import plan_epoch
from peft_whisper.errors import NoRoomError
from peft_whisper.memory.cards import GIB, Card, this_card
from peft_whisper.planning.jobs import Shape, ask
from peft_whisper.planning.plans import UNCOMPILED, Plan, job_of
from peft_whisper.positions import FULL_POSITIONS
from peft_whisper.recipe_sections import MAX_TOKENS
from peft_whisper.session import Session

CLEARLY = 2  # on a computer's own memory nothing is traced whose bound is less than half of it
APART = 0.05  # a traced peak further than this from the measured one is a warning
EPOCHS = 4  # looked through for the largest micro-batch: clips meet others in each


def check_memory(
    session: Session, processes: int, console: Console, card: Card | None = None
) -> tuple[Session, dict[str, Any]]:
    """Trace the run's largest updates and its decoding; say what they take of the card at hand.

    Returns the session with `training.recompute: auto` resolved, and what environment.json records
    (empty where nothing was traced). Raises NoRoomError, with what would help, where it can't fit.
    """
    card = card or this_card()
    ways = run_ways(session, processes)
    if card.device == "cpu" and _bound(session, ways) * CLEARLY < card.usable:
        return _resolved(session, "none"), {}
    with console.status("tracing what this run takes of memory"):
        plan = _plan(session, _coarse(card), ways)
        if plan.verdict != "fits" and card.device == "cpu":
            plan = _plan(session, card, ways)
    if plan.verdict == "too large":
        raise NoRoomError(_refusal(plan))
    console.print(f"memory: {_sentence(plan, card)}")
    facts = {
        "kind": "traced",
        "card": card.title,
        "usable_bytes": card.usable,
        "peak_bytes": plan.larger["allocated"],
        "reserved_bytes": plan.larger["reserved"],
        "parts": plan.larger["parts"],
        "verdict": plan.verdict,
        "recompute": plan.found["recompute"],
    }
    return _resolved(session, plan.found["recompute"]), facts


def measured_beside(traced: dict[str, Any]) -> dict[str, Any]:
    """The log's event that holds what CUDA's allocator has given out at most against the trace."""
    import torch

    measured, expected = torch.cuda.max_memory_allocated(), traced["peak_bytes"]
    return {
        "event": "memory",
        "traced_bytes": expected,
        "measured_bytes": measured,
        "difference": expected / measured - 1,
        "warning": abs(expected / measured - 1) > APART,
    }


def run_ways(session: Session, processes: int) -> tuple[tuple[Shape, ...], ...]:
    """The updates of this very run that may take most: longest input, most clips."""
    recipe, clips = session.recipe, session.splits.train
    labels = max(clip.tokens for clip in clips)
    durations = [clip.duration_s for clip in clips]
    layout = session.layout(processes)
    updates = [
        update
        for epoch in range(EPOCHS)
        for step in plan_epoch(durations, layout, session.context, recipe.seed, epoch)
        for update in step
    ]
    count = min(2, max(map(len, updates)))
    shapes = [(len(one.clips), one.positions) for update in updates for one in update]
    largest = {max(shapes, key=lambda one: one[0] * one[1]), max(shapes)}
    return tuple(sorted(((*shape, labels),) * count for shape in largest))


def _plan(session: Session, card: Card, ways: tuple[tuple[Shape, ...], ...]) -> Plan:
    job = job_of(session.recipe, card, ways, search=False)
    (found,) = ask([job])
    return Plan(session.recipe, card, FULL_POSITIONS / 50, ways[0][0][2], ways, found)


def _coarse(card: Card) -> Card:
    """Of a computer's own memory a little less than is free, which differs from run to run.

    So an answer is remembered all the same. A card is as large each time.
    """
    if card.device == "cuda":
        return card
    step = 1 << max(0, card.usable.bit_length() - 4)
    return replace(card, visible=card.usable // step * step + card.context)


def _bound(session: Session, ways: tuple[tuple[Shape, ...], ...]) -> int:
    """More than the run can take, in bytes, without tracing: all of it in fp32, nothing saved.

    20 bytes a weight (itself, gradient, two moments, a master); 40 fp32 tensors as wide as the
    model for each position of each layer in training, where 16 are kept; 4 in decoding.
    """
    sizes = session.base.config()
    layers = sizes.encoder_layers + sizes.decoder_layers
    weights = layers * 16 * sizes.d_model**2 + 2 * sizes.vocab_size * sizes.d_model
    rows = max(
        clips * (layers * positions + sizes.decoder_layers * labels)
        for ((clips, positions, labels), *_) in ways
    )
    decoded = session.recipe.evaluation.batch * layers * (FULL_POSITIONS + MAX_TOKENS)
    return 20 * weights + (160 * rows + 16 * decoded) * sizes.d_model


def _resolved(session: Session, recompute: str) -> Session:
    if session.recipe.training.recompute != "auto":
        return session
    training = session.recipe.training.model_copy(update={"recompute": recompute})
    return replace(session, recipe=session.recipe.model_copy(update={"training": training}))


def _sentence(plan: Plan, card: Card) -> str:
    cost, chosen = plan.larger, plan.found["recompute"]
    said = f"{cost['allocated'] / GIB:.1f} GiB at its peak, traced; {card.title} has "
    said += f"{card.usable / GIB:.1f} GiB usable: {plan.verdict}"
    if plan.recipe.training.recompute == "auto":
        said += f"; training.recompute: {chosen}"
    return said + (f". {UNCOMPILED}" if plan.recipe.training.compile else "")


def _refusal(plan: Plan) -> str:
    """What does not fit, by how much, and the changes that would make it fit."""
    cost, card = plan.training, plan.card
    clips, positions, labels = plan.shape
    work = f"training on {clips} clips x {positions / 50:.0f} s with {labels} tokens"
    lines = []
    for change in plan.found.get("changes", []):
        if "too large" not in (change["cost"]["verdict"], change["decoding"]["verdict"]):
            size = f"{change['cost']['allocated'] / GIB:.1f} GiB"
            lines.append(f"  {' '.join(change['overrides'])}  -> {size} ({change['why']})")
    if cost["verdict"] != "too large":
        cost, work = plan.decoding, f"decoding {plan.recipe.evaluation.batch} clips at once"
    if not lines:
        lines = ["  none was found: take a smaller base or a larger card"]
    return "\n".join(
        [
            f"this run does not fit: {work} takes {cost['allocated'] / GIB:.1f} GiB (traced), "
            f"{card.title} has {card.usable / GIB:.1f} GiB usable. What would make it fit:",
            *lines,
        ]
    )
