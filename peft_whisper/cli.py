"""peft-whisper COMMAND: every command of this package, and two that are about recipes."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from peft_whisper.errors import RecipeError, run
from peft_whisper.files import write_text

COMMANDS = {  # each is also `python -m peft_whisper.COMMAND`
    "demo": "fetch the demo's weights and speech, without a model hub",
    "explore": "look at the speech of a recipe before training on it",
    "plan": "say whether recipes fit a card, and what would make them fit",
    "train": "fine-tune Whisper as a recipe says, and score it",
    "evaluate": "score a finished run again, or on other speech",
    "transcribe": "write down what recordings of any length say",
    "merge": "fold an adapter, or several, into their base",
    "export": "write a model for faster-whisper, whisper.cpp or openai-whisper",
    "studio": "try adapters by voice on a local page",
    "push": "publish an adapter or a model in a repository of the Hub",
}
OWN = {
    "recipes": "list the recipes that ship, or copy one",
    "schema": "write the JSON schema of recipes, for editors",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in COMMANDS:
        return int(importlib.import_module(f"peft_whisper.{name}").main(rest) or 0)
    if name in OWN:
        return {"recipes": recipes, "schema": schema}[name](rest)
    parser().parse_args([name])  # helps, tells the version, or refuses
    return 0


def parser() -> argparse.ArgumentParser:
    from peft_whisper import __version__

    known = COMMANDS | OWN
    made = argparse.ArgumentParser(
        prog="peft-whisper",
        description="Fine-tune Whisper on your own speech.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:10} {what}" for name, what in known.items())
        + "\n\n`peft-whisper COMMAND --help` says more. On several cards:"
        "\n  accelerate launch -m peft_whisper.train RECIPE",
    )
    made.add_argument("command", choices=known, metavar="COMMAND", help="one of those below")
    made.add_argument("--version", action="version", version=f"peft-whisper {__version__}")
    return made


def recipes(argv: list[str]) -> int:
    """List the shipped recipes, or copy the named one."""
    made = argparse.ArgumentParser(
        prog="peft-whisper recipes",
        description="List the recipes that ship with this package, or copy one to change it.",
        epilog="Then: accelerate launch -m peft_whisper.train COPY.yaml",
    )
    made.add_argument("name", nargs="?", help="copy this one, for instance lora_a10")
    made.add_argument(
        "--to", type=Path, help="where to copy it (default: NAME.yaml in this folder)"
    )
    args = made.parse_args(argv)
    known = shipped()
    if args.name is None:
        for name, path in known.items():
            print(f"{name:10} {_purpose(path)}")
        return 0
    name = args.name.removesuffix(".yaml")
    if name not in known:
        raise RecipeError(f"no recipe {name} ships; there are {', '.join(known)}")
    target = args.to or Path(f"{name}.yaml")
    if target.exists():
        raise RecipeError(f"{target} is there already; give another name with --to")
    write_text(target, known[name].read_text(encoding="utf-8"))
    print(f"copied {name} to {target}")
    return 0


def shipped() -> dict[str, Path]:
    """The shipped recipes by name: inside an installed package, beside it in a clone."""
    here = Path(__file__).parent
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _purpose(path: Path) -> str:
    """The second line of a recipe's head: the first is the command that runs it."""
    return path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")


def schema(argv: list[str]) -> int:
    """Write the JSON schema of recipes."""
    made = argparse.ArgumentParser(
        prog="peft-whisper schema",
        description="Write the JSON schema of recipes: keys, types, ranges, and what each does.",
        epilog="In an editor with the YAML language server, a recipe that begins with "
        "`# yaml-language-server: $schema=recipe.schema.json` is then checked while you type.",
    )
    made.add_argument("--to", type=Path, help="file to write (default: print it)")
    args = made.parse_args(argv)
    from peft_whisper.recipe import recipe_schema

    text = json.dumps(recipe_schema(), indent=2) + "\n"
    if args.to is None:
        print(text, end="")
    else:
        write_text(args.to, text)
        print(f"wrote {args.to}")
    return 0


def entry() -> None:
    """What the installed `peft-whisper` calls."""
    run(main)


if __name__ == "__main__":
    entry()
