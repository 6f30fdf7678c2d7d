"""Write a model for other programs, and decode it there before it is kept.

python -m peft_whisper.export outputs/demo_cpu --to ctranslate2 --into exported/
python -m peft_whisper.export merged/ --to whispercpp --quantize f16 q8_0 --clips my/ --into ggml/
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import RecipeError, run
from peft_whisper.exporting.runtimes import RUNTIMES
from peft_whisper.files import check_new_folder
from peft_whisper.terminal import Terminal

if TYPE_CHECKING:
    from peft_whisper.exporting.parity import Row
    from peft_whisper.model.base import Base
    from peft_whisper.recipe import Recipe

CLIPS = 24


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="peft_whisper.export",
        description="Write a model for faster-whisper (ctranslate2), whisper.cpp or "
        "openai-whisper. An adapter is merged first. That program then decodes clips with it, and "
        "its words are compared with the merged model's: the figures are in README.md.",
        epilog="types: "
        + "; ".join(f"{name}: {', '.join(one.kinds)}" for name, one in RUNTIMES.items())
        + ". The first is the default; several go into a folder each.",
    )
    made.add_argument(
        "model", help="a run, its adapter/ or model/, a merged model; or a base (folder, Hub id)"
    )
    made.add_argument("--to", choices=RUNTIMES, required=True, help="the program's format")
    made.add_argument("--into", type=Path, required=True, help="folder to write; must be new")
    made.add_argument(
        "--quantize", nargs="+", metavar="TYPE", help="types of the weights, see below"
    )
    made.add_argument(
        "--clips",
        type=Path,
        help="folder or manifest of clips with transcripts to try it on (default: the run's test "
        "split)",
    )
    made.add_argument(
        "--count", type=int, default=CLIPS, help=f"clips tried at most (default: {CLIPS})"
    )
    made.add_argument("--language", help="what is spoken in them, for instance de")
    made.add_argument("--base", metavar="MODEL", help="the base of MODEL, where it has moved")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parser().parse_args(argv)
    kinds = chosen_kinds(args.to, args.quantize)
    if args.count < 1:
        raise RecipeError(f"--count: {args.count}; give at least 1")
    check_new_folder(args.into)
    RUNTIMES[args.to].check_installed()
    console = Terminal()
    with whole_model(args.model, args.base, args.into, console) as (model, facts, recipe):
        rows = tried_and_written(args, kinds, model, facts, recipe, console)
    for row in rows:
        console.print(
            f"{row.kind}: WER {100 * row.wer:.2f} %, {row.words_differ} of {row.words} words "
            f"unlike the merged model's, {row.file_bytes / 1e6:.1f} MB"
        )
    console.print(f"written: {args.into}, with README.md")
    return 0


def chosen_kinds(to: str, asked: list[str] | None) -> list[str]:
    """The types to write; raises RecipeError for one that the program's format has not."""
    known = RUNTIMES[to].kinds
    kinds = list(dict.fromkeys(asked or known[:1]))
    wrong = [kind for kind in kinds if kind not in known]
    if wrong:
        raise RecipeError(f"--quantize: {to} knows no {wrong[0]}; it knows {', '.join(known)}")
    return kinds


def tried_and_written(
    args: argparse.Namespace,
    kinds: list[str],
    model: Base,
    facts: dict[str, Any],
    recipe: Recipe | None,
    console: Terminal,
) -> list[Row]:
    """Choose the speech, then write and decode."""
    from peft_whisper.exporting.writing import export
    from peft_whisper.scoring.sample import sample

    data = recipe.data if recipe else None
    rule = recipe.evaluation.normalizer if recipe else None
    speech = sample(model, data, rule, args.clips, args.language, args.count)
    facts = facts | {"language": args.language or (data.language if data else None)}
    return export(model, args.to, kinds, speech, args.into, facts, console)


@contextmanager
def whole_model(
    name: str, base_at: str | None, into: Path, console: Terminal
) -> Iterator[tuple[Base, dict[str, Any], Recipe | None]]:
    """The model with all its own weights, what is known of it, and the recipe of its run.

    An adapter is merged into a folder beside `into`, which is gone afterwards. Raises RecipeError
    for what can't be found, StateError for what is damaged or belongs to another base.
    """
    from peft_whisper.merging.fold import Mixture, merge
    from peft_whisper.model.find import base_of
    from peft_whisper.model.trained import is_adapter, read_facts
    from peft_whisper.run_folder import recipe_of
    from peft_whisper.systems import trained_in

    trained = trained_in(Path(name))
    if trained is None:
        base = found(name)
        public = base.public_name
        yield base, origin(public, "base", public, base.fingerprint, base.revision), None
        return
    facts, recipe = read_facts(trained), recipe_of(trained)
    of = facts["base"]
    told = origin(
        run_name(trained, recipe), facts["method"], of["model"], of["fingerprint"], of["revision"]
    )
    if not is_adapter(facts):
        if base_at is not None:
            raise RecipeError(f"--base: {name} has weights of its own and needs no base")
        yield found(str(trained)), told, recipe
        return
    base = base_of(facts, base_at)
    beside = next(place for place in into.absolute().parents if place.exists())
    with tempfile.TemporaryDirectory(prefix=".staging-merged-", dir=beside) as one:
        merged = Path(one) / "merged"
        logits = merge(Mixture((trained,)), base, merged).logits
        console.print(f"merged first: logits differ from the adapter's by at most {logits:.2e}")
        yield found(str(merged)), told, recipe


def found(name: str) -> Base:
    """A model with its own weights; raises RecipeError where it can't be used."""
    from peft_whisper.model.find import find_base

    try:
        return find_base(name)
    except RecipeError as error:
        raise RecipeError(str(error).removeprefix("base.model: ")) from error


def origin(
    name: str, method: str, base: str, fingerprint: str, revision: str | None
) -> dict[str, Any]:
    """What the README says of where the model comes from; of a folder elsewhere only its name."""
    public = Path(base).name if Path(base).is_absolute() else base
    return {
        "name": name,
        "method": method,
        "base": public,
        "revision": revision,
        "fingerprint": fingerprint,
    }


def run_name(trained: Path, recipe: Recipe | None) -> str:
    """The run's name, or that of the folder."""
    return recipe.name if recipe else trained.resolve().name


if __name__ == "__main__":
    run(main)
