"""What transcribes: a base, what was trained on it, and further adapters put onto the same base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import RecipeError, StateError

if TYPE_CHECKING:
    from peft_whisper.model.base import Base
    from peft_whisper.scoring.decode import Decoder

TRAINED = ("adapter", "model")  # in a run's folder
FACTS = "peft_whisper.json"
BATCH = 8  # recordings at once
BASE = "base"


@dataclass(frozen=True)
class Systems:
    """Found and checked, and not yet loaded.

    `base` is None where it is not needed: for a full fine-tune or a merged model by itself.
    """

    base: Base | None
    compared: bool  # whether the base transcribes too, as the first
    whole: tuple[str, Base] | None  # a model with its own weights, by its name
    adapters: tuple[tuple[str, Path], ...]

    @property
    def names(self) -> list[str]:
        """In the order in which they transcribe."""
        whole = [self.whole[0]] if self.whole else []
        return [BASE] * self.compared + whole + [name for name, _ in self.adapters]

    def decoders(self, channel: str) -> Iterator[tuple[str, Decoder]]:
        """Each system, ready; it is the system only until the next one is asked for.

        The base is loaded once, and the adapters are folded into it one after another.
        """
        from peft_whisper.model.adapters import merged
        from peft_whisper.model.encoder import whisper_of
        from peft_whisper.model.trained import load_tuned

        model: Any = None
        if self.base is not None:
            model = self.base.load("float32", device=device())
        if self.base is not None and self.compared:
            yield BASE, decoder_of(self.base, model, channel)
        if self.whole is not None:
            name, held = self.whole
            yield name, decoder_of(held, held.load("float32", device=device()), channel)
        for number, (name, folder) in enumerate(self.adapters):
            assert self.base is not None
            model = load_tuned(model, self.base.fingerprint, folder, f"adapter{number}")
            model.to(device()).eval()
            with merged(model):
                yield name, decoder_of(self.base, whisper_of(model), channel)


def find_systems(
    model: str, adapters: Sequence[Path], compare: bool, base_at: str | None
) -> Systems:
    """Find what the arguments name, and see that it belongs together.

    Raises RecipeError for what can't be found, StateError for what is damaged or belongs to
    another base.
    """
    from peft_whisper.model.find import base_of, find_base
    from peft_whisper.model.trained import check_trained, is_adapter, read_facts

    trained = trained_in(Path(model))
    folders = [*adapters]
    whole: tuple[str, Base] | None = None
    if trained is None:
        if base_at is not None or (compare and not adapters):
            flag = "--base" if base_at is not None else "--compare"
            raise RecipeError(f"{flag}: {model} is no trained model; give a run's adapter first")
        base: Base | None = _found(model)
        compare = True  # the base is what was asked for
    else:
        facts = read_facts(trained)
        needed = compare or bool(adapters) or is_adapter(facts)
        base = base_of(facts, base_at) if needed else None
        if is_adapter(facts):
            folders.insert(0, trained)
        else:
            whole = _name(trained), find_base(str(trained))
            if base is not None:
                check_trained(trained, facts, base.fingerprint)
    named = tuple((_name(folder), _adapter(folder, base)) for folder in folders)
    return _distinct(Systems(base, compare, whole, named))


def trained_in(folder: Path) -> Path | None:
    """`folder` itself or its adapter/ or model/, where training wrote it; None for a plain base."""
    places = [folder, *(folder / name for name in TRAINED)]
    if (folder / "adapter_config.json").is_file():
        return folder  # an adapter from elsewhere: reading its facts says what it lacks
    return next((place for place in places if (place / FACTS).is_file()), None)


def _found(model: str) -> Base:
    from peft_whisper.model.find import find_base

    try:
        return find_base(model)
    except RecipeError as error:
        raise RecipeError(str(error).removeprefix("base.model: ")) from error


def _adapter(folder: Path, base: Base | None) -> Path:
    from peft_whisper.model.trained import check_trained, is_adapter, read_facts

    found = trained_in(folder) or folder
    facts = read_facts(found)
    if not is_adapter(facts):
        raise StateError(f"--adapter: {folder} holds a whole model; give it as MODEL")
    assert base is not None
    check_trained(found, facts, base.fingerprint)
    return found


def _name(folder: Path) -> str:
    """The run's name, where it is the adapter/ or model/ of a run."""
    whole = folder.resolve()
    return whole.parent.name if whole.name in TRAINED else whole.name


def _distinct(systems: Systems) -> Systems:
    names = systems.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            f"two of the models are called {twice[0]}; rename one's folder, so that their "
            "transcripts can be told apart"
        )
    return systems


def device() -> str:
    """Where recordings are heard."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def decoder_of(base: Base, whisper: Any, channel: str) -> Decoder:
    """Decodes recordings with a loaded model, by the vocabulary and rules of `base`."""
    import torch

    from peft_whisper.data.labels import Labels
    from peft_whisper.scoring.decode import Decoder

    config = base.config()
    return Decoder(
        whisper=whisper,
        labels=Labels(base.tokenizer(), config.vocab_size),
        generation=base.generation_config(),
        n_mels=config.num_mel_bins,
        channel=channel,
        batch=BATCH,
        max_tokens=None,
        autocast=torch.float16 if device() == "cuda" else None,
    )
