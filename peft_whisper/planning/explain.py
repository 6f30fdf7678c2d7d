"""The arithmetic behind a plan, for a person to follow: counts times bytes, beside the trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from peft_whisper.data.epochs import Context
from peft_whisper.memory.cards import GIB
from peft_whisper.planning.plans import SECONDS, Plan, job_of
from peft_whisper.planning.report import gib, length, percent
from peft_whisper.positions import EACH, FULL_POSITIONS

if TYPE_CHECKING:
    from rich.console import Console

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "4 bits": 0.5}
MIB = 2**20
SHORT_S = 10.0  # of a clip, for an example
STATE = {
    "masters": "fp32 masters of the 16-bit weights above",
    "moments": "Adam's two moments of each trained weight",
    "scales": "the 8-bit moments' scales, one for each 256",
    "lower halves": "the 16 bits that bfloat16 cuts off each weight",
}
Row = tuple[str, float, float]  # what, how many, bytes of each


def explain(plans: Sequence[Plan], console: Console) -> None:
    """Print a table and some sentences for each recipe, then what holds for all."""
    for plan in plans:
        console.print()
        console.print(Text(f"{plan.recipe.name}: where the bytes come from", style="bold"))
        console.print(_throughout(plan))
        for line in (*_training(plan), *_decoding(plan)):
            console.print(Padding(Text(line), (1, 0, 0, 2)))
    console.print()
    console.print(Text("What moves these figures, and what does not", style="bold"))
    for line in _general(plans[0]):
        console.print(Padding(Text(line), (1, 0, 0, 2)))


def _throughout(plan: Plan) -> Table:
    """What is there whatever the batch: each count times its bytes."""
    made = Table(box=None, pad_edge=False, header_style="bold cyan")
    for head in ("on the card throughout", "how many", "bytes each", "GiB"):
        made.add_column(head, justify="left" if head.startswith("on") else "right")
    total = 0.0
    for what, count, size in standing(plan):
        total += count * size
        made.add_row(what, f"{count:,.0f}", f"{size:g}", f"{count * size / GIB:.2f}")
    parts = plan.training["parts"]
    found = sum(parts[part] for part in ("weights", "adapters", "optimizer"))
    made.add_row("together", "", "", f"{total / GIB:.2f}", style="bold")
    made.add_row("as traced, each tensor rounded up", "", "", f"{found / GIB:.2f}", style="dim")
    return made


def standing(plan: Plan) -> Iterator[Row]:
    """Weights and the optimizer's state."""
    model, whole = plan.found["model"], plan.recipe.adapter.method == "none"
    for kind, count in model["frozen"].items():
        scales = ", beside their scales" if kind in ("int8", "4 bits") else ""
        yield f"frozen weights ({kind}{scales})", count, BYTES[kind]
    for kind, count in model["trained"].items():
        yield f"{'weights' if whole else 'adapter'}, trained ({kind})", count, BYTES[kind]
    for what, count, size in model["optimizer"]:
        yield STATE[what], count, size


def _training(plan: Plan) -> Iterator[str]:
    cost, (clips, _, labels) = plan.training, plan.shape
    parts = cost["parts"]
    trained = plan.found["model"]["trained"]
    sums = " + ".join(f"{count:,} x {BYTES[kind]:g}" for kind, count in trained.items())
    total = sum(count * BYTES[kind] for kind, count in trained.items())
    masters = any(what == "masters" for what, *_ in plan.found["model"]["optimizer"])
    yield (
        f"Gradients: {sums} bytes = {gib(total)} GiB once backward is through"
        + (
            ", those of weights with masters in fp32 (4 bytes) while the optimizer steps. "
            if masters
            else ". "
        )
        + f"At the peak of training, in {_phase(cost['phase'])}, {gib(parts['gradients'])} GiB of "
        "them are there."
    )
    moving = parts["activations"] + parts["temporaries"]
    yield (
        f"Activations: at that peak {gib(parts['activations'])} GiB that backward still needs and "
        f"{gib(parts['temporaries'])} GiB of passing tensors, for {clips} clips x {length(plan)} "
        f"with {labels} tokens: {moving / clips / MIB:,.0f} MiB a clip."
    )
    yield from _slope(plan)


def _phase(name: str) -> str:
    return {"optimizer": "the optimizer's step", "loading": "making the batch"}.get(name, name)


def _slope(plan: Plan) -> Iterator[str]:
    """What one more clip adds: the difference of two traces."""
    most, clips = plan.found["largest"], plan.shape[0]
    other, cost = most["clips"], most["cost"]
    if other in (0, clips):
        other, cost = most["clips"] + 1, most["next_cost"]
    if cost is None or other == clips:
        return
    each = (cost["allocated"] - plan.training["allocated"]) / (other - clips)
    seconds = plan.shape[1] * SECONDS
    end = "not even one clip fits." if most["clips"] == 0 else f"at most {most['clips']} clips fit."
    yield (
        f"A larger batch: each further clip adds {each / MIB:,.0f} MiB ({clips} and {other} clips "
        f"were traced), {each / MIB / seconds:.1f} MiB for each second of its sound; {end}"
    )


def _decoding(plan: Plan) -> Iterator[str]:
    """The key/value cache, the largest thing in decoding."""
    recipe, model, cost = plan.recipe, plan.found["model"], plan.decoding
    clips, positions, tokens = job_of(recipe, plan.card, plan.ways, True).decoding
    layers, width = model["decoder_layers"], model["d_model"]
    size = 4 if recipe.training.precision == "fp32" else 2
    kept = 2 * layers * clips * (positions + tokens) * width * size
    rest = cost["parts"]["activations"] + cost["parts"]["temporaries"] - kept
    yield (
        f"Decoding: a key and a value for each decoder layer, clip, position heard and token "
        f"written: 2 x {layers} layers x {clips} clips x ({positions} + {tokens}) x {width} "
        f"numbers x {size} bytes = {gib(kept)} GiB, and {gib(rest)} GiB of passing tensors at "
        f"the peak, {gib(cost['allocated'])} GiB with weights and optimizer. evaluation.batch sets "
        "the clips; the texts are the same."
    )


def _general(plan: Plan) -> Iterator[str]:
    short = Context(plan.recipe.context.margin_positions).positions(SHORT_S)
    yield (
        f"Longer clips: activations grow with the seconds of sound, clip by clip. Here a clip of "
        f"{SHORT_S:g} s takes {short} of {FULL_POSITIONS} encoder positions (its sound, and "
        f"one in {EACH} of the silence up to 30 s), {percent(short / FULL_POSITIONS)} of a 30 s "
        "clip; where every clip is padded to 30 s it takes as much as the longest."
    )
    yield (
        "Accumulation (training.accumulation, or a batch split by training.micro_audio_s): "
        "gradients are kept from one micro-step to the next, activations are not. So memory is "
        "that of one micro-batch, and the update that of the whole batch."
    )
    yield (
        "Recomputation (training.recompute) keeps fewer activations and computes them again in "
        "backward: less memory, more time, the same update. Neither weights nor the optimizer's "
        "state change."
    )
    yield (
        "The size of the data set: nothing. Clips stream from disk, batch by batch; only the "
        "longest clip and transcript count."
    )
