"""Adapters folded into their base in fp32, compared, and written as one plain Whisper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import StateError
from peft_whisper.files import staged_folder, write_json

if TYPE_CHECKING:
    import torch

    from peft_whisper.merging.parity import Heard, Trial
    from peft_whisper.model.base import Base

# How far the merged model's logits may be from the adapter's. Folding reorders fp32 sums; in 16
# bits each weight is rounded (tiny.en: 0.04 in float16, 0.3 in bfloat16, of logits up to 30).
LARGEST_DIFFERENCE = {"float32": 1e-2, "float16": 0.5, "bfloat16": 4.0}
COMBINED = "combined"
# What peft calls them. Its own `linear` adds the two factors of each adapter and so mixes them;
# `cat` gives the weighted sum itself.
METHODS = {"linear": "cat", "ties": "ties", "dare_linear": "dare_linear", "dare_ties": "dare_ties"}


@dataclass(frozen=True)
class Mixture:
    """Adapter folders, the weight of each, how they are combined, and the strength of the whole.

    `density`: share of each adapter's weights that TIES and DARE keep.
    """

    adapters: tuple[Path, ...]
    weights: tuple[float, ...] = (1.0,)
    method: str = "linear"
    density: float = 0.5
    strength: float = 1.0

    @property
    def plain(self) -> bool:
        """One adapter as it was trained."""
        return len(self.adapters) == 1 and self.strength == 1

    def facts(self) -> dict[str, Any]:
        """What the merged model's peft_whisper.json says of it."""
        told: dict[str, Any] = {"strength": self.strength}
        if len(self.adapters) > 1:
            names = [folder.resolve().name for folder in self.adapters]
            told |= {"weights": dict(zip(names, self.weights, strict=True)), "by": self.method}
            if self.method != "linear":
                told["density"] = self.density
        return told


@dataclass(frozen=True)
class Compared:
    """The largest difference of any logit from the adapter's; and what both heard, if asked."""

    logits: float
    heard: Heard | None

    def facts(self) -> dict[str, Any]:
        """What the merged model's peft_whisper.json says of it."""
        told = {"logits_differ": self.logits}
        return {"compared": told | ({"heard": self.heard.as_dict()} if self.heard else {})}


def merge(
    mixture: Mixture, base: Base, target: Path, dtype: str = "float32", trial: Trial | None = None
) -> Compared:
    """Write the merged model to `target`, compared with the adapter by logits and in a `trial`.

    Raises StateError where the base is another one, where weights are not finite, or where the
    saved model's logits, or in float32 its word error rate, are not the adapter's; DataError where
    speech of the trial can't be read. `target` is then not written.
    """
    import torch

    from peft_whisper.model.base import quiet_transformers
    from peft_whisper.model.trained import read_facts
    from peft_whisper.training.checkpoint import copy_processor

    tuned = attached(mixture, base)
    with at_strength(tuned, mixture.strength):
        before = probe(tuned, base)
        texts = trial.texts(tuned, "adapter") if trial else []
        whole = tuned.merge_and_unload().to(getattr(torch, dtype))
    broken = [name for name, p in whole.named_parameters() if not p.isfinite().all()]
    if broken:
        raise StateError(
            f"{mixture.adapters[0]}: weights are not finite after merging: {broken[:5]}"
        )
    with staged_folder(target) as staging, quiet_transformers():
        whole.save_pretrained(staging)
        copy_processor(base, staging)
        after = saved(staging)
        difference = float((probe(after, base) - before).abs().max())
        if not difference <= LARGEST_DIFFERENCE[dtype]:
            raise StateError(
                f"logits of the merged model differ from the adapter's by {difference:.3g}, more "
                f"than {LARGEST_DIFFERENCE[dtype]}; nothing was written"
            )
        heard = trial.compare(texts, trial.texts(after, "merged"), dtype) if trial else None
        found = Compared(difference, heard)
        facts = read_facts(mixture.adapters[0]) | {"method": "merged"}
        write_json(staging / "peft_whisper.json", facts | mixture.facts() | found.facts())
    return found


def attached(mixture: Mixture, base: Base) -> Any:
    """The base in fp32 with the adapters on it, one of them active: the mixture at full strength.

    Raises StateError where an adapter is damaged, is of another base, or can't be combined or
    weakened as asked.
    """
    import torch

    from peft_whisper.model.base import quiet_transformers
    from peft_whisper.model.trained import check_trained, load_tuned, read_facts

    for folder in mixture.adapters:
        facts = read_facts(folder)
        check_trained(folder, facts, base.fingerprint)
        if facts["method"] not in ("lora", "adalora") and not mixture.plain:  # both saved as LoRA
            raise StateError(
                f"{folder} was trained by {facts['method']}, which is no sum with the base: it can "
                "be merged as it is, but not combined or given a strength"
            )
    model: Any = base.load("float32")
    names = [f"adapter{number}" for number in range(len(mixture.adapters))]
    for name, folder in zip(names, mixture.adapters, strict=True):
        model = load_tuned(model, base.fingerprint, folder, name)
    if len(names) == 1:
        return model.eval()
    torch.manual_seed(0)  # DARE drops weights at random
    try:
        with quiet_transformers():
            model.add_weighted_adapter(
                names,
                list(mixture.weights),
                COMBINED,
                METHODS[mixture.method],
                density=None if mixture.method == "linear" else mixture.density,
            )
    except ValueError as error:
        raise StateError(
            f"these adapters can't be combined by {mixture.method}: {error} `--method linear` "
            "takes any ranks."
        ) from error
    model.set_adapter(COMBINED)
    return model.eval()


@contextmanager
def at_strength(tuned: Any, strength: float) -> Iterator[None]:
    """Multiply what the adapter adds by `strength`: 0 is the base, 1 the adapter as trained."""
    from peft.helpers import rescale_adapter_scale

    if strength == 1:  # also for what is no LoRA and knows no scale
        yield
        return
    with rescale_adapter_scale(tuned, strength):
        yield


def saved(folder: Path) -> Any:
    """The model in `folder`, as anybody loads it, computing in fp32."""
    import torch
    from transformers import WhisperForConditionalGeneration

    read: Any = WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    return read.eval()


def probe(model: Any, base: Base) -> torch.Tensor:
    """Logits (2, 8, vocabulary) on two seconds-long noises, the same for every model."""
    import torch

    config = base.config()
    noise = torch.Generator().manual_seed(1)
    frames = 2 * config.max_source_positions
    mel = torch.randn(2, config.num_mel_bins, frames, generator=noise)
    tokens = torch.randint(config.vocab_size, (2, 8), generator=noise)
    with torch.inference_mode():
        return model(input_features=mel, decoder_input_ids=tokens).logits


def paths(adapters: Sequence[Path]) -> tuple[Path, ...]:
    """Each given folder, or the adapter/ of the run that it is.

    Raises StateError where one holds no adapter.
    """
    from peft_whisper.model.trained import read_facts
    from peft_whisper.systems import trained_in

    found = []
    for given in adapters:
        folder = trained_in(given) or given
        method = read_facts(folder)["method"]
        if method == "none":
            raise StateError(f"{given} holds a full model: there is no adapter to merge.")
        if method == "merged":
            raise StateError(f"{given} is already merged: it loads as a plain Whisper.")
        found.append(folder)
    return tuple(found)
