"""Remove each guard in turn, in a copy of the tree: the test named beside it must go red.

python benchmarks/mutants.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
COPIED = ("peft_whisper", "tests", "benchmarks", "recipes", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutant:
    """A guard, the line of it and what is put there, and the test that must fail then."""

    guard: str
    file: str
    line: str
    instead: str
    test: str


P = "promises/"
MUTANTS = (
    Mutant(
        "a signal that a library swallowed is still the signal",
        "errors.py",
        "_told(_raised[-1] if _raised and isinstance(error, Exception) else error)",
        "_told(error)",
        "test_errors.py::test_a_signal_that_a_library_made_an_error_of_its_own_of_is_still_the_signal",
    ),
    Mutant(
        "files are synced before the rename",
        "files.py",
        'for path in (*staging.rglob("*"), staging):',
        "for path in ():",
        "test_files.py::test_what_is_renamed_into_place_is_on_the_disk_before",
    ),
    Mutant(
        "the folder above is synced after the rename",
        "files.py",
        "_fsync(target.parent)  # or",
        "pass  # or",
        "test_files.py::test_what_is_renamed_into_place_is_on_the_disk_before",
    ),
    Mutant(
        "a signal waits for both renames",
        "files.py",
        "with held():\n            _put",
        "if True:\n            _put",
        "test_files.py::test_a_signal_between_the_two_renames_waits",
    ),
    Mutant(
        "a text is written beside its name",
        "files.py",
        'staging = path.with_name(f".staging-{os.getpid()}-{path.name}")\n    try:',
        "staging = path\n    try:",
        "test_files.py::test_a_reader_sees_the_old_text_or_the_new_one_and_no_part",
    ),
    Mutant(
        "checksums of a checkpoint",
        "files.py",
        "if (found := sha256(path)) != digest:",
        "if (found := sha256(path)) == 0:",
        "test_standing.py::test_a_damaged_best_checkpoint_is_not_published",
    ),
    Mutant(
        "a checkpoint's list names its own files alone",
        "files.py",
        'if not (path := PurePath(name)).parts or path.is_absolute() or ".." in path.parts:',
        "if False:",
        P + "test_hostile.py::test_a_hostile_file_is_refused_and_nothing_of_it_run"
        "[MANIFEST.json that leads out]",
    ),
    Mutant(
        "room on the disk",
        "training/checkpoint.py",
        "if free < needed:",
        "if False:",
        "test_standing.py::test_a_disk_too_small_is_said_before_anything_is_written",
    ),
    Mutant(
        "a damaged later checkpoint does not count",
        "training/checkpoint.py",
        "if one.name <= newest_is.name]",
        "]",
        "test_standing.py::test_a_damaged_later_checkpoint_pushes_no_good_one_out",
    ),
    Mutant(
        "the lock of a run's folder",
        "run_folder.py",
        "fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "test_train_refusals.py::test_two_runs_cannot_write_into_one_folder",
    ),
    Mutant(
        "loss and gradients are finite",
        "training/updater.py",
        "if not (_finite(loss) and _finite(norm)):",
        "if False:",
        "test_loop.py::test_a_non_finite_loss_stops_before_the_update",
    ),
    Mutant(
        "the signal is read after each update",
        "training/loop.py",
        "            run.stop()\n",
        "",
        P + "test_kills.py::test_sigterm_waits_for_one_update_at_most",
    ),
    Mutant(
        "a signal after the last update is not forgotten",
        "signals.py",
        "self.check(ALL_SAVED)",
        "pass",
        "test_standing.py::test_a_signal_after_the_last_check_is_not_forgotten",
    ),
    Mutant(
        "frozen keys of a recipe",
        "resume.py",
        "    if changed:",
        "    if False:",
        P + "test_failures.py::test_each_key_of_a_recipe_is_frozen_or_free",
    ),
    Mutant(
        "a run goes on with the same clips",
        "resume.py",
        'if fingerprint != began["data"].get(split):',
        "if False:",
        P + "test_failures.py::test_a_changed_clip_or_transcript_is_noticed",
    ),
    Mutant(
        "the base's fingerprint",
        "model/trained.py",
        'if trained_on["fingerprint"] != fingerprint:',
        "if False:",
        "test_merge.py::test_another_base_of_the_same_shape_is_refused",
    ),
    Mutant(
        "weights are finite after merging",
        "merging/fold.py",
        "    if broken:",
        "    if False:",
        "test_merge.py::test_a_poisoned_adapter_leaves_nothing",
    ),
    Mutant(
        "a merge in float32 has the adapter's word error rate",
        "merging/parity.py",
        'if dtype == "float32" and rates[0] != rates[1]:',
        "if False:",
        "test_merge_heard.py::test_float32_with_another_rate_is_refused",
    ),
    Mutant(
        "weights under the names of safetensors alone",
        "model/trained.py",
        "if not any((folder / name).is_file() for name in names):",
        "if not weights and lora is None:",
        P + "test_hostile.py::test_a_hostile_file_is_refused_and_nothing_of_it_run"
        "[adapter_model.bin]",
    ),
    Mutant(
        "an adapter names no module",
        "model/trained.py",
        'or config.get("megatron_config")',
        "",
        P + "test_hostile.py::test_a_hostile_file_is_refused_and_nothing_of_it_run"
        "[adapter_config.json that names a module]",
    ),
    Mutant(
        "paths stay in the manifest's folder",
        "data/fields.py",
        "if not path.is_relative_to(root):",
        "if False:",
        P + "test_paths.py::test_no_manifest_leads_out_of_its_folder",
    ),
    Mutant(
        "no anchors and aliases",
        "recipe_yaml.py",
        'if getattr(event, "anchor", None):',
        "if False:",
        "test_recipe.py::test_what_is_no_recipe_is_refused_at_its_line_and_at_once",
    ),
    Mutant(
        "secrets are masked",
        "masking.py",
        "return SHAPES.sub(MASK, text)",
        "return text",
        P + "test_secrets.py::test_no_secret_is_written_or_printed",
    ),
    Mutant(
        "WAV and Ogg files are as long as they say",
        "data/audio.py",
        "if missing:",
        "if False:",
        P + "test_damaged_audio.py::test_every_kind_of_damage_in_every_format",
    ),
    Mutant(
        "a file's bytes are those that were declared",
        "data/audit.py",
        "if found != declared:",
        "if False:",
        P + "test_damaged_audio.py::test_every_kind_of_damage_in_every_format",
    ),
    Mutant(
        "the same samples in two splits",
        "data/splits.py",
        "shared_audio=(*same_samples, *overlapping(clips)),",
        "shared_audio=(*overlapping(clips),),",
        P + "test_leaks.py::test_planted_leaks_are_all_found_and_no_others",
    ),
    Mutant(
        "overlapping segments in two splits",
        "data/splits.py",
        "shared_audio=(*same_samples, *overlapping(clips)),",
        "shared_audio=(*same_samples,),",
        P + "test_leaks.py::test_planted_leaks_are_all_found_and_no_others",
    ),
)


def run(tree: Path, *tests: str) -> int:
    """pytest's exit code: 0 all green, 1 some red, anything else no answer."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    environment.pop("PROMISES", None)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode


def main() -> int:
    """Print a line for each guard; 0 where every test went red, and was green before."""
    began, red = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in COPIED:
            source = REPOSITORY / name
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, tree / name)
        if run(tree, *dict.fromkeys(one.test for one in MUTANTS)):
            print("the tests are not green to begin with")
            return 1
        for one in MUTANTS:
            path = tree / "peft_whisper" / one.file
            whole = path.read_text(encoding="utf-8")
            assert whole.count(one.line) == 1, f"{one.guard}: {path} has changed"
            path.write_text(whole.replace(one.line, one.instead), encoding="utf-8")
            code = run(tree, one.test)
            path.write_text(whole, encoding="utf-8")
            red += code == 1
            print(
                f"{'red  ' if code == 1 else f'exit {code}'}  {one.guard}  {one.test}", flush=True
            )
    count = len(MUTANTS)
    print(
        f"{count}/{count} guards removed, {red}/{count} tests went red, in "
        f"{time.monotonic() - began:.0f} s"
    )
    return int(red < count)


if __name__ == "__main__":
    sys.exit(main())
