"""A base and what was trained on it, loaded once: each hears a recording when it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import DataError, StateError
from peft_whisper.systems import BASE, decoder_of, device
from peft_whisper.trying.recording import CHANNEL, opened

if TYPE_CHECKING:
    from peft_whisper.model.base import Base
    from peft_whisper.scoring.longform import Segment
    from peft_whisper.systems import Systems

Progress = Callable[[float], None]  # is told the share that is done


class Bench:
    """Everything that the page can let hear; one recording at a time.

    What was trained is called by its name in `names`, the base by `systems.BASE`.
    """

    def __init__(self, systems: Systems):
        from peft_whisper.model.trained import load_tuned

        base = systems.base
        assert base is not None
        self.base: Base = base
        self.names = systems.names[1:]
        self.folders = dict(systems.adapters)
        self.adapters = {name: f"adapter{at}" for at, name in enumerate(self.folders)}
        self.model: Any = base.load("float32", device=device())
        for name, folder in systems.adapters:
            self.model = load_tuned(self.model, base.fingerprint, folder, self.adapters[name])
        self.model.to(device()).eval()
        self.whole = systems.whole
        self.whole_model: Any = None
        if self.whole is not None:
            self.whole_model = self.whole[1].load("float32", device=device())
        self.lock = threading.Lock()
        self.last: tuple[object, list[Segment]] | None = None

    @property
    def languages(self) -> list[str]:
        """What the base can be told is spoken; none where it knows English only."""
        from peft_whisper.data.labels import Labels

        return sorted(Labels(self.base.tokenizer(), self.base.config().vocab_size).languages())

    def has_strength(self, name: str) -> bool:
        """Whether the base can be left and reached by degrees.

        Layer norms replace the base's own, and DoRA its weights' lengths: both are there or not.
        """
        if name not in self.folders:
            return False
        config = self.model.peft_config[self.adapters[name]]
        return str(config.peft_type).rpartition(".")[2] == "LORA" and not config.use_dora

    def hear(
        self, name: str, strength: float, sound: Path, language: str | None, progress: Progress
    ) -> list[Segment]:
        """Segments of a recording; at `strength` 0 an adapter is its base, at 1 as trained.

        What the base said of the recording before is not asked again. Raises DataError where the
        recording can't be used.
        """
        asked = (str(sound), sound.stat().st_mtime_ns, language)
        with self.lock:
            if name == BASE and self.last is not None and self.last[0] == asked:
                return self.last[1]
            with self._ready(name, strength) as (held, whisper):
                decoder = decoder_of(held, whisper, CHANNEL)
                found = _transcribed(decoder, sound, language, progress)
            if name == BASE:
                self.last = asked, found
            return found

    @contextmanager
    def _ready(self, name: str, strength: float) -> Iterator[tuple[Base, Any]]:
        from peft_whisper.model.adapters import merged
        from peft_whisper.model.encoder import whisper_of

        if self.whole is not None and name == self.whole[0]:
            yield self.whole[1], self.whole_model
        elif name == BASE and not self.adapters:
            yield self.base, self.model
        elif name == BASE:
            with self.model.disable_adapter():
                yield self.base, whisper_of(self.model)
        elif name in self.adapters:
            self.model.set_adapter(self.adapters[name])
            with at_strength(self.model, strength), merged(self.model):
                yield self.base, whisper_of(self.model)
        else:
            raise StateError(f"nothing here is called {name}; there are {', '.join(self.names)}")


@contextmanager
def at_strength(tuned: Any, strength: float) -> Iterator[None]:
    """Multiply what the active adapter adds by `strength`."""
    from peft.helpers import rescale_adapter_scale

    if strength == 1:
        yield
        return
    with rescale_adapter_scale(tuned, strength):
        yield


def _transcribed(
    decoder: Any, sound: Path, language: str | None, progress: Progress
) -> list[Segment]:
    from peft_whisper.data.audio import AudioError
    from peft_whisper.scoring.longform import ended_at_pauses, transcribe_long

    stream = opened(sound, decoder.n_mels)
    done = 0.0

    def advance(seconds: float) -> None:
        nonlocal done
        done += seconds
        progress(min(1.0, done / max(stream.seconds, 0.1)))

    ((_, found),) = transcribe_long(decoder, [stream], language, advance)
    if isinstance(found, AudioError):
        raise DataError(f"This can't be used: {found}.")
    return ended_at_pauses(found)
