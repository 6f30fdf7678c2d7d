"""What a run counts about itself: how fast it trains, and which checkpoint is best so far."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_whisper.data.batches import Batch
    from peft_whisper.energy import Moment


@dataclass
class Meter:
    """Speed and energy of training alone: a process's first update, its warm-up, is left out.

    `joules` is None from the first update on of which the machine does not tell.
    """

    processes: int
    seconds: float = 0.0
    clips: int = 0
    audio_s: float = 0.0
    joules: float | None = 0.0
    warm: InitVar[bool] = False

    def __post_init__(self, warm: bool) -> None:
        self._warm = warm

    def update(self, batches: list[Batch], spent: Moment) -> dict[str, float]:
        """Count one update; returns its speed."""
        seconds = spent.seconds
        clips = sum(len(batch.clip_ids) for batch in batches) * self.processes
        audio_s = sum(batch.audio_s for batch in batches) * self.processes
        if self._warm:
            self.seconds += seconds
            self.clips += clips
            self.audio_s += audio_s
            if self.joules is not None:
                self.joules = None if spent.joules is None else self.joules + spent.joules
        self._warm = True
        return {
            "clips_per_s": clips / seconds,
            "audio_s_per_s": audio_s / seconds,
            "seconds": seconds,
        }

    def summary(self) -> dict[str, float | None]:
        """Speed of the run without its warm-up; None where one update was all."""
        if not self.seconds:
            return {"clips_per_s": None, "audio_s_per_s": None, "seconds": 0.0, "joules": None}
        seconds = self.seconds
        return {
            "clips_per_s": self.clips / seconds,
            "audio_s_per_s": self.audio_s / seconds,
            "seconds": self.seconds,
            "joules": self.joules,
        }


@dataclass
class Selection:
    """The best checkpoint so far by `metric` (lower is better), and how long none was better."""

    metric: str
    update: int = 0
    value: float = float("inf")
    waited: int = 0

    def consider(self, update: int, value: float) -> bool:
        better = self.update == 0 or value < self.value
        if better:
            self.update, self.value, self.waited = update, value, 0
        else:
            self.waited += 1
        return better
