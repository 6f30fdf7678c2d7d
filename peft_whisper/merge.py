"""Fold adapters into their base: one plain Whisper that needs no peft.

python -m peft_whisper.merge outputs/demo_cpu/adapter --into merged/
python -m peft_whisper.merge elsewhere/adapter --speech clips.jsonl --into merged/
python -m peft_whisper.merge outputs/a outputs/b --weights 0.7 0.3 --into merged/
python -m peft_whisper.merge outputs/a --sweep --general clean.jsonl --into strengths/
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from peft_whisper.errors import RecipeError, UserError, run
from peft_whisper.files import check_new_folder
from peft_whisper.terminal import Terminal

if TYPE_CHECKING:
    from peft_whisper.merging.fold import Mixture
    from peft_whisper.merging.parity import Heard
    from peft_whisper.model.base import Base
    from peft_whisper.scoring.sample import Speech

METHODS = ("linear", "ties", "dare_linear", "dare_ties")
DTYPES = ("float32", "bfloat16", "float16")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_STRENGTH = 2.0
SWEPT = 120  # clips of each kind at most
TRIED = 24  # clips at most that adapter and merged model are compared on
NO_RUN = "{} lies in no run that names its test speech"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.merge",
        description="Fold LoRA adapters into the base they were trained on, in fp32 and from the "
        "base's own unquantised weights. Adapter and merged model are compared before anything is "
        "kept: their logits, and their word error rates on test speech.",
        epilog="The result loads with WhisperForConditionalGeneration.from_pretrained(INTO). With "
        "--sweep INTO gets strengths.json and strengths.png instead.",
    )
    made.add_argument("adapter", type=Path, nargs="+", help="a run, or its adapter/ folder")
    made.add_argument("--into", type=Path, required=True, help="folder to write; must be new")
    made.add_argument(
        "--base",
        metavar="MODEL",
        help="Hub id or folder of the base where it has moved; its fingerprint must be the same",
    )
    made.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="type written (default: float32)"
    )
    made.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="share of what was learnt: 0 is the base, 1 the adapter (default: 1)",
    )
    _add_speech(made)
    _add_several(made)
    _add_sweep(made)
    return made


def _add_speech(made: argparse.ArgumentParser) -> None:
    speech = made.add_argument_group("the speech that word error rates are read on")
    speech.add_argument(
        "--speech",
        type=Path,
        metavar="MANIFEST",
        help="listing, or folder with one, of clips with transcripts (default: the first run's "
        "test split)",
    )
    speech.add_argument("--language", help="what is spoken in it, for instance de")
    speech.add_argument(
        "--count",
        type=int,
        help=f"clips at most, evenly spread (default: {TRIED}; {SWEPT} with --sweep)",
    )


def _add_several(made: argparse.ArgumentParser) -> None:
    several = made.add_argument_group("several adapters of one base")
    several.add_argument(
        "--weights", type=float, nargs="+", help="of each adapter (default: equal, 1 together)"
    )
    several.add_argument(
        "--method",
        choices=METHODS,
        default="linear",
        help="linear: the weighted sum; ties, dare_linear, dare_ties: peft's (default: linear)",
    )
    several.add_argument(
        "--density", type=float, default=0.5, help="share that ties and dare keep (default: 0.5)"
    )


def _add_sweep(made: argparse.ArgumentParser) -> None:
    trying = made.add_argument_group("trying strengths")
    trying.add_argument(
        "--sweep",
        type=float,
        nargs="*",
        metavar="STRENGTH",
        help=f"score these instead of merging (default: {' '.join(map(str, STRENGTHS))})",
    )
    trying.add_argument("--general", type=Path, help="other speech, which must not be forgotten")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from peft_whisper.merging.fold import merge
    from peft_whisper.merging.parity import Trial
    from peft_whisper.model.find import base_of
    from peft_whisper.model.trained import read_facts

    args = parser().parse_args(argv)
    mixture = mixture_of(args)
    check_new_folder(args.into)
    base = base_of(read_facts(mixture.adapters[0]), args.base)
    if args.sweep is not None:
        return sweep(args, mixture, base)
    console = Terminal()
    speech, missing = speech_of(args, mixture, base)
    trial = Trial(speech, base, console) if speech else None
    compared = merge(mixture, base, args.into, args.dtype, trial)
    console.print(
        f"merged into {args.into} ({args.dtype}): logits differ from the adapter's by at most "
        f"{compared.logits:.2e}, base fingerprint {base.fingerprint[:19]}... as trained on"
    )
    tell(compared.heard, missing, args.dtype, console)
    return 0


def tell(heard: Heard | None, missing: str, dtype: str, console: Terminal) -> None:
    """Say both word error rates, and loudly where they are far apart; or why there are none."""
    if heard is None:
        console.print(f"WER not compared: {missing}; give --speech MANIFEST")
        return
    console.print(str(heard))
    if heard.apart:
        console.print(
            f"WARNING: rounding to {dtype} changed what the model hears: do not use it unheard, or "
            "merge with --dtype float32",
            style="bold yellow",
        )


def speech_of(args: argparse.Namespace, mixture: Mixture, base: Base) -> tuple[Speech | None, str]:
    """Clips to compare adapter and merged model on; or None, and why there are none.

    Raises RecipeError or DataError where the speech that was asked for can't be used. A run whose
    own speech lies elsewhere by now can be merged all the same.
    """
    from peft_whisper.run_folder import recipe_of
    from peft_whisper.scoring.sample import sample

    missing = NO_RUN.format(mixture.adapters[0])
    try:
        recipe = recipe_of(mixture.adapters[0])
    except RecipeError as error:
        recipe, missing = None, in_one_line(error)
    if recipe is None and args.speech is None:
        return None, missing
    data = recipe.data if recipe else None
    rule = recipe.evaluation.normalizer if recipe else None
    try:
        return sample(base, data, rule, args.speech, args.language, args.count or TRIED), ""
    except UserError as error:
        if args.speech is not None:
            raise
        return None, f"the run's test speech can't be used ({in_one_line(error)})"


def in_one_line(error: UserError) -> str:
    """A recipe's problems, for instance, are a line each."""
    return " ".join(str(error).split())


def mixture_of(args: argparse.Namespace) -> Mixture:
    """What is to be merged; raises RecipeError for numbers that make no sense."""
    from peft_whisper.merging.fold import Mixture, paths

    count = len(args.adapter)
    weights = tuple(args.weights) if args.weights else (1.0 / count,) * count
    if len(weights) != count or (args.weights and count == 1):
        raise RecipeError(
            f"--weights: {len(weights)} for {count} adapters; give each of several one"
        )
    if not 0 < args.density <= 1:
        raise RecipeError(f"--density: {args.density:g}; give a share above 0, at most 1")
    if args.count is not None and args.count < 1:
        raise RecipeError(f"--count: {args.count}; give at least 1")
    for strength in (args.strength, *(args.sweep or ())):
        if not 0 <= strength <= MOST_STRENGTH:
            raise RecipeError(f"--strength: {strength:g}; give 0 (the base) to {MOST_STRENGTH:g}")
    return Mixture(paths(args.adapter), weights, args.method, args.density, args.strength)


def sweep(args: argparse.Namespace, mixture: Mixture, base: Base) -> int:
    """Score the mixture at several strengths, on the tuned speech and on other speech."""
    from peft_whisper.merging.strengths import score, write
    from peft_whisper.run_folder import recipe_of
    from peft_whisper.scoring.sample import sample

    if args.general is None:
        raise RecipeError("--sweep: give other speech with --general, which must not be forgotten")
    recipe = recipe_of(mixture.adapters[0])
    if recipe is None and args.speech is None:
        raise RecipeError(f"--sweep: {NO_RUN.format(mixture.adapters[0])}; give --speech MANIFEST")
    data = recipe.data if recipe else None
    rule = recipe.evaluation.normalizer if recipe else None
    language = args.language or (data.language if data else None)
    count = args.count or SWEPT
    console = Terminal()
    tuned = sample(base, data, rule, args.speech, language, count)
    general = sample(base, data, rule, args.general, language, count)
    strengths = sorted(set(args.sweep or STRENGTHS))
    rows = score(mixture, base, strengths, tuned, general, console)
    write(args.into, rows, tuned, general)
    for line in said(rows):
        console.print(line)
    console.print(f"written: {args.into / 'strengths.png'}")
    return 0


def said(rows: list[dict[str, float]]) -> list[str]:
    """A line for each strength, and which is best by the mean of both rates."""
    lines = [
        f"strength {row['strength']:.2f}: WER {100 * row['tuned']:.1f} % on the tuned speech, "
        f"{100 * row['general']:.1f} % on the other"
        for row in rows
    ]
    best = min(rows, key=lambda row: row["tuned"] + row["general"])
    return [*lines, f"the mean of both is lowest at {best['strength']:.2f}"]


if __name__ == "__main__":
    run(main)
