"""Whether the tracer can be believed with the torch at hand: one step traced and really run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peft_whisper.environment import PACKAGES, versions
from peft_whisper.errors import StateError
from peft_whisper.kept import code_fingerprint, recalled, remember
from peft_whisper.memory.account import find_peak
from peft_whisper.memory.cpu_log import logged_peak
from peft_whisper.model.base import quiet_transformers
from peft_whisper.model.sizes import Blueprint
from peft_whisper.planning.jobs import TRACED
from peft_whisper.planning.tracing import Shape, TrainingTrace, fake
from peft_whisper.recipe import Recipe

if TYPE_CHECKING:
    from transformers import WhisperConfig

WITHIN = 0.001
STEP = (Shape(2, 1024, 24),)


@dataclass(frozen=True)
class _Random(Blueprint):
    """A blueprint whose weights have values, so that a real step's loss is finite."""

    def load(self, dtype: str, quantize: str | None = None, device: torch.device | str = "cpu"):  # type: ignore[no-untyped-def]
        model = super().load(dtype, quantize, device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.02)
        return model


def check_tracer() -> None:
    """Raise StateError where a traced peak is more than 0.1 % off the CPU allocator's own log.

    Done once for each version of torch and of this package; a few seconds.
    """
    passed = f"tracer-{code_fingerprint(TRACED)}"
    if recalled(passed):
        return
    try:
        traced, real = _both()
    except Exception as error:
        raise StateError(
            f"memory can't be planned with torch {torch.__version__}: its internals are not those "
            f"that the tracer knows ({type(error).__name__}: {str(error).splitlines()[0][:160]}). "
            "Take the versions of constraints.txt."
        ) from error
    if abs(traced / real - 1) > WITHIN:
        raise StateError(
            f"memory can't be planned with torch {torch.__version__}: a step that really takes "
            f"{real:,} bytes was traced as {traced:,}. Take the versions of constraints.txt."
        )
    found = {name: version for name, version in versions().items() if name in PACKAGES}
    remember(passed, {"traced_bytes": traced, "real_bytes": real, "versions": found})


def small_sizes(layers: int) -> WhisperConfig:
    """A Whisper 256 wide, of so many layers on either side and 4,000 words."""
    from transformers import WhisperConfig

    return WhisperConfig(
        d_model=256,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        vocab_size=4000,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _both() -> tuple[int, int]:
    """Peak bytes of one update of a small Whisper on the CPU: traced, and from a real run."""
    recipe, base = _recipe(), _Random(small_sizes(layers=2))
    with quiet_transformers():
        with fake("cpu"):
            trace = TrainingTrace(recipe, base, "cpu")
            trace.step(STEP)
        real = TrainingTrace(recipe, base, "cpu", record=False)
        return find_peak(trace.line, round_to=1).size, logged_peak(lambda: real.step(STEP))


def _recipe() -> Recipe:
    """LoRA on all linears with dropout and recomputation, whose data nobody reads."""
    nowhere = {"manifest": "none.jsonl"}
    return Recipe.model_validate(
        {
            "name": "selftest",
            "base": {"model": "small"},
            "data": {"train": nowhere, "validation": nowhere, "test": nowhere},
            "adapter": {"rank": 8, "dropout": 0.1},
            "training": {"updates": 1, "learning_rate": 1e-5, "recompute": "1/2"},
            "evaluation": {"every": 1},
        }
    )
