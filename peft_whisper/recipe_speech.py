"""The section of a recipe that is about the speech: sources, and how rows become labels."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from peft_whisper.languages import Language

LICENCE = r"^[a-z0-9][a-z0-9.-]*$"  # as the Hub spells it, for instance apache-2.0


class Section(BaseModel):
    """A frozen part of a recipe that knows no other keys than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Columns(Section):
    """What the source calls its columns."""

    audio: str = Field("audio", min_length=1, description="Column with the sound.")
    text: str = Field("text", min_length=1, description="Column with the transcript.")
    sha256: str | None = Field(
        None,
        min_length=1,
        description="Column with each sound file's SHA-256, then needed in every row; "
        "null: sha256 of a manifest or folder, where a row has one.",
    )


class Source(Section):
    """A split's speech, from exactly one of hub, folder, manifest, parquet and from_train."""

    hub: str | None = Field(None, min_length=1, description="Hub data set id.")
    folder: str | None = Field(
        None, min_length=1, description="Folder with audio files and metadata.csv or .jsonl."
    )
    manifest: str | None = Field(
        None, min_length=1, description="JSONL or CSV file: audio, text, optional start, end, ..."
    )
    parquet: str | None = Field(None, min_length=1, description="Parquet file or folder of them.")
    from_train: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the train source's transcripts held out; larger tests more surely.",
    )
    config: str | None = Field(None, min_length=1, description="Configuration of the Hub data set.")
    split: str = Field("train", min_length=1, description="Split of the Hub data set to read.")
    revision: str | None = Field(None, min_length=1, description="Commit of the Hub data set.")
    streaming: bool = Field(
        False, description="Read the Hub data set without downloading all of it first."
    )
    limit: int | None = Field(None, ge=1, description="Read at most this many rows; for trials.")
    columns: Columns = Field(Columns(), description="Names of the source's columns.")


class Data(Section):
    """The speech, and how its rows become labels."""

    train: Source = Field(description="What the model learns from.")
    validation: Source = Field(description="What chooses the best checkpoint.")
    test: Source = Field(description="What the final scores are read on, once.")
    language: Language | None = Field(
        None, description="Whisper code of the speech where a row names none, for instance en."
    )
    task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="Write in the language spoken, or in English."
    )
    timestamps: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of training rows labelled with timestamps; above 0 keeps them alive.",
    )
    channel: Literal["mean", "first", "loudest"] = Field(
        "mean", description="What to make of several channels."
    )
    max_rejected: int | None = Field(
        None,
        ge=0,
        description="More bad clips than this stop the run; null: 0 for local data, any for a Hub.",
    )
    note: str | None = Field(
        None,
        min_length=1,
        description="Said beside every result, for instance: simulated throat microphone.",
    )
    license: str | None = Field(
        None,
        pattern=LICENCE,
        description="Of the speech, for instance cc-by-4.0; only what one lets share is published.",
    )
    attribution: str | None = Field(
        None, min_length=1, description="Whom the card names for the speech."
    )
    workers: int = Field(
        0, ge=0, le=256, description="Loader processes; more feed a fast card, each costs memory."
    )
