"""Memory that runs out in the middle of an update: what did not fit is cut until it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_whisper.environment import is_out_of_memory, peak_memory
from peft_whisper.errors import NoRoomError, first_line

if TYPE_CHECKING:
    from peft_whisper.data.batches import Batch
    from peft_whisper.recipe_sections import Training


class DoesNotFitError(Exception):
    """Memory ran out at `batch`. It holds on to nothing that the failed step computed."""

    def __init__(self, batch: Batch, said: str):
        super().__init__(said)
        self.batch, self.said = batch, said


@dataclass
class Room:
    """What fits into memory, learnt from what did not.

    `limit` is the most clips x encoder positions that a micro-batch may have; None until memory
    first ran out. It only falls, and with it an update's cut is a function of its batches alone.
    """

    training: Training
    processes: int
    limit: int | None = None

    def cut(self, batches: Sequence[Batch]) -> list[Batch]:
        """The same clips in the same order, in halves of halves where a batch is too large."""
        return [piece for batch in batches for piece in self._cut(batch)]

    def _cut(self, batch: Batch) -> list[Batch]:
        if self.limit is None or len(batch.clip_ids) == 1 or _size(batch) <= self.limit:
            return [batch]
        return self.cut(batch.split())

    def learn(self, failed: Batch, said: str) -> dict[str, Any]:
        """Allow only smaller micro-batches from here on; returns the event for the log.

        Raises NoRoomError where `failed` is a single clip, or where other processes are already
        computing the update as it was dealt and would wait for ever.
        """
        peak = peak_memory()["peak_bytes"]
        if self.processes > 1:
            raise NoRoomError(
                f"{len(failed.clip_ids)} clips x {failed.positions} encoder positions do not fit "
                f"into memory (peak {_gb(peak)}): {said} With several processes nothing is split "
                "on the way; halve training.batch and double training.accumulation, or set "
                "training.micro_audio_s (same result)."
            )
        if len(failed.clip_ids) == 1:
            raise NoRoomError(
                f"clip {failed.clip_ids[0]} ({failed.audio_s:.1f} s, {failed.positions} encoder "
                f"positions) does not fit into memory even alone (peak {_gb(peak)}): {said} "
                f"What helps: {self._remedies()}."
            )
        self.limit = _size(failed) - 1
        return {
            "event": "out_of_memory",
            "clips": len(failed.clip_ids),
            "positions": failed.positions,
            "audio_s": failed.audio_s,
            "peak_bytes": peak,
        }

    @contextmanager
    def for_optimizer(self) -> Iterator[None]:
        """Turn out of memory into NoRoomError where no smaller micro-batch would help."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            lighter = "adamw8bit" if self.training.optimizer == "adamw" else "paged_adamw8bit"
            raise NoRoomError(
                "the gradients fit into memory, the optimizer's step does not (peak "
                f"{_gb(peak_memory()['peak_bytes'])}): {first_line(error)} What helps: "
                f"training.optimizer={lighter}, fewer trained weights (adapter.rank, "
                f"adapter.encoder_layers), or {self._remedies()}."
            ) from error

    def _remedies(self) -> str:
        recompute = [] if self.training.recompute == "all" else ["training.recompute=all"]
        return ", ".join([*recompute, "base.quantize=int8 or nf4", "a smaller base"])


def _size(batch: Batch) -> int:
    return len(batch.clip_ids) * batch.positions


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
