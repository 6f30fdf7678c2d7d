"""What the commands share: a recipe opened on its base and speech."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.environment import is_out_of_memory
from peft_whisper.errors import DataError, NoRoomError, RecipeError, first_line
from peft_whisper.recipe import Recipe
from peft_whisper.recipe_sections import MODULES

if TYPE_CHECKING:
    import numpy as np
    import torch
    from rich.console import Console

    from peft_whisper.data.audit import Clip
    from peft_whisper.data.epochs import Context, Layout
    from peft_whisper.data.labels import Labels
    from peft_whisper.data.splits import Splits
    from peft_whisper.model.adapters import Adapter
    from peft_whisper.model.base import Base
    from peft_whisper.scoring.decode import Decoder


@dataclass(frozen=True)
class Session:
    """A recipe whose base has been found and whose speech has been audited."""

    recipe: Recipe
    base: Base
    labels: Labels
    n_mels: int
    splits: Splits

    @property
    def context(self) -> Context:
        """The rule for the encoder's input length."""
        from peft_whisper.data.epochs import Context

        return Context(self.recipe.context.margin_positions)

    def layout(self, processes: int) -> Layout:
        """How clips become micro-steps and updates on so many processes."""
        from peft_whisper.data.epochs import Layout

        rule = self.recipe.training
        return Layout(rule.batch, rule.accumulation, processes, rule.micro_audio_s)

    def adapter(self) -> Adapter | None:
        """Where LoRA goes on this base; None for a full fine-tune."""
        from peft_whisper.model.adapters import Adapter, layer_range

        chosen, sizes = self.recipe.adapter, self.base.config()
        if chosen.method == "none":
            return None
        return Adapter(
            rank=chosen.rank,
            alpha=chosen.alpha,
            dropout=chosen.dropout,
            encoder=layer_range(
                chosen.encoder_layers, sizes.encoder_layers, "adapter.encoder_layers"
            ),
            decoder=layer_range(
                chosen.decoder_layers, sizes.decoder_layers, "adapter.decoder_layers"
            ),
            modules=MODULES if chosen.modules == "all" else chosen.modules,
            method=chosen.method,
            rank_stabilized=chosen.rank_stabilized,
            start=chosen.start,
        )

    def first_layer(self) -> int | None:
        """The encoder layer that training begins at, on what the frozen ones below gave once.

        None where each step hears log-mel. Raises RecipeError where no layer below is frozen.
        """
        adapter = self.adapter()
        if self.recipe.training.frozen_cache == "none" or adapter is None:
            return None
        first = adapter.encoder[0] if adapter.encoder else self.base.config().encoder_layers
        if first == 0:
            raise RecipeError(
                "training.frozen_cache: no encoder layer is frozen below the adapters: "
                f"adapter.encoder_layers {self.recipe.adapter.encoder_layers!r} begins at this "
                "base's layer 0; adapt fewer, or remove training.frozen_cache"
            )
        return first

    def decoder(self, model: torch.nn.Module) -> Decoder:
        """The one way this run decodes, in validation as in the final test."""
        import torch

        from peft_whisper.model.encoder import whisper_of
        from peft_whisper.scoring.decode import Decoder
        from peft_whisper.training.precision import autocast_dtype

        recipe = self.recipe
        return Decoder(
            whisper=whisper_of(model),
            labels=self.labels,
            generation=self.base.generation_config(),
            n_mels=self.n_mels,
            channel=recipe.data.channel,
            batch=recipe.evaluation.batch,
            max_tokens=recipe.evaluation.max_tokens,
            autocast=autocast_dtype(recipe.training.precision, getattr(torch, recipe.base.dtype)),
        )

    def test_wave(self, clip_id: str) -> np.ndarray:
        """A test clip's sound for the report; raises KeyError where there is no such clip."""
        from peft_whisper.data.audio import load_wave

        clips = {clip.id: clip for clip in self.splits.test}
        return load_wave(clips[clip_id].audio, self.recipe.data.channel)


def open_base(recipe: Recipe, weights: bool) -> tuple[Base, Labels, int]:
    """Find the base; return it with its label builder and its number of mel bands."""
    from peft_whisper.data.labels import Labels
    from peft_whisper.model.find import find_base

    base = find_base(recipe.base.model, recipe.base.revision, weights=weights)
    config = base.config()
    labels = Labels(base.tokenizer(), config.vocab_size, recipe.data.task)
    if not labels.multilingual and recipe.data.language not in (None, "en"):
        raise RecipeError(
            f"data.language: {recipe.base.model} knows English only, found {recipe.data.language}; "
            "take a multilingual base"
        )
    return base, labels, config.num_mel_bins


def open_session(recipe: Recipe, console: Console, *, weights: bool = True) -> Session:
    """Find the base, then read and audit every clip of the three splits.

    Without `weights` the base's tokenizer and sizes are enough: nothing large is downloaded.
    """
    from peft_whisper.data.splits import open_splits

    base, labels, n_mels = open_base(recipe, weights)
    splits = open_splits(recipe.data, labels.count, quiet=console.quiet)
    return Session(recipe, base, labels, n_mels, splits)


def wordless(session: Session) -> list[str]:
    """Sentences about held-out clips whose transcripts have no word once they are normalised.

    Raises DataError where that leaves nothing to score a split against.
    """
    from peft_whisper.scoring.normalize import normalizer

    rule, said = session.recipe.evaluation.normalizer, []
    clean = normalizer(rule)
    for name, clips in session.splits.items()[1:]:
        empty = [clip for clip in clips if not clean(clip.text)]
        shown = ", ".join(f'{clip.id} "{clip.text}"' for clip in empty[:3])
        if len(empty) == len(clips):
            raise DataError(
                f"data.{name}: no transcript has a word after the {rule} normalizer ({shown}): "
                "there is nothing to score against. Take other clips, or evaluation.normalizer=raw"
            )
        if empty:
            said.append(
                f"{len(empty)} of {len(clips)} {name} clips have no word after the {rule} "
                f"normalizer ({shown}): what is heard in them counts as insertions"
            )
    return said


def check_splits(session: Session, folder: Path, console: Console) -> None:
    """Write rejected.jsonl into `folder`, then refuse leaks and bad clips, and say what is odd."""
    from peft_whisper.data.audit import write_rejected
    from peft_whisper.data.scripts import visible
    from peft_whisper.data.splits import refuse_leaks_and_rejects

    rejected = folder / "rejected.jsonl"
    write_rejected(rejected, session.splits.rejected)
    refuse_leaks_and_rejects(session.splits, session.recipe.data, str(rejected))
    for note in [*session.splits.notes(), *wordless(session)]:
        console.print(f"note: {visible(note)}", style="yellow")


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn out of memory, a card's or the computer's, into NoRoomError with what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(
            f"memory is too small: {first_line(error)} In training, lower "
            "training.micro_audio_s (same result) or set training.recompute=all; in decoding, "
            "lower evaluation.batch."
        ) from error


def data_facts(clips: Sequence[Clip]) -> dict[str, Any]:
    """What environment.json records of a split."""
    from peft_whisper.data.audit import data_fingerprint, hours

    speakers = {clip.speaker for clip in clips}
    return {
        "clips": len(clips),
        "hours": round(hours(clips), 4),
        "speakers": len(speakers) if None not in speakers else None,  # None: not all are known
        "fingerprint": data_fingerprint(clips),
    }
