"""Transcribe recordings of any length: to the screen, or to text, subtitles and JSON.

python -m peft_whisper.transcribe outputs/demo_cpu/adapter talk.mp3
python -m peft_whisper.transcribe outputs/demo_cpu/adapter talks/ --to texts/ --format srt json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from peft_whisper.data.recordings import Sound, listed
from peft_whisper.environment import cores, is_out_of_memory
from peft_whisper.errors import NoRoomError, RecipeError, StateError, first_line, run
from peft_whisper.files import check_place, write_text
from peft_whisper.terminal import Terminal, progress

if TYPE_CHECKING:
    from peft_whisper.data.windows import Stream
    from peft_whisper.scoring.decode import Decoder
    from peft_whisper.scoring.longform import Segment
    from peft_whisper.systems import Systems
    from peft_whisper.terminal import Task

FORMATS = ("txt", "srt", "vtt", "json")


@dataclass
class Job:
    """What is to be done, and what went wrong so far."""

    args: argparse.Namespace
    console: Terminal  # stderr: stdout is for the transcripts
    failed: list[str] = field(default_factory=list)

    def fail(self, name: str, reason: object) -> None:
        from peft_whisper.data.scripts import visible

        self.failed.append(name)
        self.console.print(visible(f"{name}: {reason}"), style="red")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.transcribe",
        description="Transcribe recordings of any length (WAV, FLAC, OGG, MP3). Without --to the "
        "text goes to stdout.",
        epilog="A recording that can't be read is named, the others go on, and the exit code is 1. "
        "What is in --to already is left as it is.",
    )
    made.add_argument(
        "model", help="a run, its adapter/ or model/, a merged model; or a base (folder, Hub id)"
    )
    made.add_argument(
        "sounds", nargs="+", metavar="SOUND", help="a file, a folder of files, or - for stdin"
    )
    made.add_argument("--to", type=Path, metavar="FOLDER", help="write a file for each recording")
    made.add_argument(
        "--format", nargs="+", choices=FORMATS, default=["txt"], help="(default: txt)"
    )
    made.add_argument(
        "--language", help="what is spoken, for instance de (default: what is heard first)"
    )
    made.add_argument(
        "--compare", action="store_true", help="show the base beside it, differing words marked"
    )
    made.add_argument(
        "--adapter",
        type=Path,
        action="append",
        default=[],
        help="transcribe with this one too, on the same base, and compare; may be repeated",
    )
    made.add_argument("--base", metavar="MODEL", help="the base of MODEL, where it has moved")
    made.add_argument(
        "--channel",
        choices=("mean", "first", "loudest"),
        default="mean",
        help="what to take of several channels (default: their mean)",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code, 1 where a recording failed."""
    from peft_whisper.systems import find_systems

    args = parser().parse_args(argv)
    job = Job(args, Terminal(stderr=True))
    with listed(args.sounds) as sounds:
        check(args, sounds)
        systems = find_systems(args.model, args.adapter, args.compare, args.base)
        check_language(args.language, systems)
        try:
            transcribe(job, systems, sounds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = f"memory is too small for {systems.names[-1]}: {first_line(error)}"
            raise NoRoomError(f"{said} Take a smaller model.") from error
    if job.failed and len(sounds) > 1:
        job.console.print(f"{len(job.failed)} failed: {', '.join(job.failed)}", style="red")
    return 1 if job.failed else 0


def check(args: argparse.Namespace, sounds: Sequence[Sound]) -> None:
    """Raise RecipeError for arguments that don't go together."""
    several = args.compare or args.adapter
    if args.to is None and args.format != ["txt"] and (len(sounds) > 1 or len(args.format) > 1):
        raise RecipeError("--format: to the screen goes one recording in one format; give --to")
    if args.to is None and args.format != ["txt"] and several:
        raise RecipeError("--format: a comparison is shown as text; give --to for files")
    if args.to is not None and args.to.exists() and not args.to.is_dir():
        raise RecipeError(f"--to: {args.to} is a file; give a folder")
    if args.to is not None:
        check_place(args.to, "--to")


def check_language(language: str | None, systems: Systems) -> None:
    """Raise RecipeError where the model does not know the language that is spoken."""
    from peft_whisper.data.labels import Labels

    held = systems.base or (systems.whole[1] if systems.whole else None)
    if language is None or held is None:
        return
    known = Labels(held.tokenizer(), held.config().vocab_size).languages() or {"en": 0}
    if language not in known:
        raise RecipeError(
            f"--language: {systems.names[-1]} does not know {language!r}; it knows "
            f"{', '.join(known)}"
        )


def transcribe(job: Job, systems: Systems, sounds: Sequence[Sound]) -> None:
    """Transcribe with one system after the other; write, show or compare what each has heard.

    Raises StateError where all is written already.
    """
    import torch

    torch.set_num_threads(cores())
    names = systems.names
    sounds = [timed for sound in sounds if (timed := opened(job, sound))]
    folders = {name: name if len(names) > 1 else "" for name in names}  # below --to
    todo = {name: missing(job, sounds, folders[name]) for name in names}
    if not any(todo.values()):
        if sounds:
            raise StateError(f"--to: all of it is in {job.args.to} already; give another folder")
        return
    seconds = round(sum(sound.seconds for some in todo.values() for sound in some))
    heard: dict[str, Heard] = {name: {} for name in names}
    with progress(job.console, "transcribing, seconds", max(1, seconds)) as task:
        for name, decoder in systems.decoders(job.args.channel):
            say_what_lacks(job, name, decoder)
            for sound, segments in each(job, name, decoder, todo[name], task):
                if job.args.to is not None:
                    write(job, sound, segments, folders[name])
                if job.args.to is None or len(names) > 1:
                    heard[name][sound.name] = segments
    # Not before: while it is there, a bar takes what is printed for what belongs above it.
    if len(names) == 1 and job.args.to is None:
        show(job, sounds, heard[names[0]])
    for name in names[1:]:
        compare(job, sounds, (names[0], heard[names[0]]), (name, heard[name]))


def say_what_lacks(job: Job, name: str, decoder: Decoder) -> None:
    from peft_whisper.scoring.words import alignment_heads

    if not alignment_heads(decoder.generation):
        job.console.print(
            f"{name}: its generation_config.json names no alignment_heads, so words have no times "
            "and segments end where Whisper says"
        )


def opened(job: Job, sound: Sound) -> Sound | None:
    """The recording with its length; None where it can't be read, which is said."""
    from peft_whisper.data.audio import AudioError, AudioRef
    from peft_whisper.data.windows import seconds_of

    try:
        return Sound(sound.path, sound.name, sound.stem, seconds_of(AudioRef(str(sound.path))))
    except AudioError as error:
        job.fail(sound.name, error)
        return None


def target(job: Job, sound: Sound, system: str, kind: str) -> Path:
    stem: Path = job.args.to / system / sound.stem
    return stem.with_name(f"{stem.name}.{kind}")


def missing(job: Job, sounds: Sequence[Sound], system: str) -> list[Sound]:
    """The recordings of which something is still to be written; what is there is said."""
    if job.args.to is None:
        return list(sounds)
    left = []
    for sound in sounds:
        there = [p for kind in job.args.format if (p := target(job, sound, system, kind)).exists()]
        for path in there:
            job.console.print(f"{path} is there already and left as it is")
        if len(there) < len(job.args.format):
            left.append(sound)
    return left


def each(
    job: Job, name: str, decoder: Decoder, sounds: Sequence[Sound], task: Task
) -> Iterator[tuple[Sound, list[Segment]]]:
    """Each recording that the system `name` can hear, as it is finished; the others are told."""
    from peft_whisper.data.scripts import visible
    from peft_whisper.scoring.longform import ended_at_pauses, transcribe_long

    named = {sound.name: sound for sound in sounds if sound.name not in job.failed}
    streams = readable(job, decoder, list(named.values()))
    done = 0.0

    def advance(seconds: float) -> None:
        nonlocal done
        task.advance(round(done + seconds) - round(done))
        done += seconds

    for stream, segments in transcribe_long(decoder, streams, job.args.language, advance):
        if isinstance(segments, list):
            if not segments:
                job.console.print(visible(f"{stream.name}: {name} heard no speech in it"))
            yield named[stream.name], ended_at_pauses(segments)
        else:
            job.fail(stream.name, segments)


def readable(job: Job, decoder: Decoder, sounds: Sequence[Sound]) -> Iterator[Stream]:
    from peft_whisper.data.audio import AudioError, AudioRef
    from peft_whisper.data.windows import Stream, wave_blocks

    for sound in sounds:
        blocks = partial(wave_blocks, AudioRef(str(sound.path)), decoder.channel)
        try:
            yield Stream(sound.name, blocks, decoder.n_mels)
        except AudioError as error:
            job.fail(sound.name, error)


def write(job: Job, sound: Sound, segments: Sequence[Segment], system: str) -> None:
    from peft_whisper.scoring.subtitles import FORMATS as WRITERS

    for kind in job.args.format:
        path = target(job, sound, system, kind)
        if not path.exists():
            write_text(path, WRITERS[kind](segments))
            job.console.print(f"wrote {path}")


Heard = dict[str, "list[Segment]"]  # of each recording, by its name


def show(job: Job, sounds: Sequence[Sound], heard: Heard) -> None:
    """Print transcripts to stdout, several ones under their names."""
    from peft_whisper.data.scripts import visible
    from peft_whisper.scoring.subtitles import FORMATS as WRITERS

    for sound in sounds:
        if sound.name in heard:
            text = WRITERS[job.args.format[0]](heard[sound.name])
            if len(sounds) > 1:
                print(f"{visible(sound.name)}:")
            print("\n".join(map(visible, text.split("\n"))), end="")


def compare(
    job: Job, sounds: Sequence[Sound], left: tuple[str, Heard], right: tuple[str, Heard]
) -> None:
    """Print two systems' transcripts side by side, and in how many words they differ."""
    from peft_whisper.data.scripts import visible
    from peft_whisper.scoring.side_by_side import differing, plain, rows, table

    screen = Terminal()
    for sound in sounds:
        if sound.name not in left[1] or sound.name not in right[1]:
            continue
        shown = rows(left[1][sound.name], right[1][sound.name], job.args.language)
        odd, words = differing(shown)
        screen.print(
            f"{visible(sound.name)}: {left[0]} and {right[0]} differ in {odd} of {words} words"
        )
        if screen.is_terminal:
            screen.print(table(shown, (left[0], right[0])), soft_wrap=False)
        else:
            screen.print("\n".join(map(visible, plain(shown).split("\n"))), end="")


if __name__ == "__main__":
    run(main)
