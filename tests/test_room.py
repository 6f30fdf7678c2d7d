"""Memory that runs out while training: real limits on real processes, and what is left of a run.

Run as a program, this file is the process that is limited: see `child`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import whispers
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop import batch_of, gradients_of, updater

from peft_whisper.data.batches import Batch
from peft_whisper.environment import is_out_of_memory
from peft_whisper.errors import NoRoomError, run
from peft_whisper.model.adapters import Adapter, FirstBackwardCheck, attach, train_everything
from peft_whisper.model.encoder import whisper_of
from peft_whisper.recipe_sections import Training
from peft_whisper.run_folder import RunLog
from peft_whisper.session import enough_memory
from peft_whisper.terminal import Terminal, progress
from peft_whisper.training.room import Room
from peft_whisper.training.updater import Updater

REPOSITORY = Path(__file__).resolve().parent.parent
LONG, SHORT = 1500, 256  # encoder positions
CLIPS = 8  # whole, or 4 and 4
TRAINING = Training(updates=9, learning_rate=1e-2)


def batch(clips: int, positions: int, seed: int = 2) -> Batch:
    """Random clips with ragged labels of 3 to 9 tokens."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (clips,), generator=drawn).tolist()
    rows = [
        (
            number,
            torch.randn(80, 2 * positions, generator=drawn),
            torch.randint(50_000, (length,), generator=drawn).tolist(),
        )
        for number, length in enumerate(lengths)
    ]
    return batch_of(rows, positions)


def halved(whole: Batch) -> list[Batch]:
    return list(whole.split())


# What the child trains on, an update after the other
FIRST, SECOND, THIRD = batch(CLIPS, LONG, 3), batch(CLIPS, SHORT, 4), batch(CLIPS, LONG, 5)
UPDATES = {
    "whole": [[SECOND, FIRST], [SECOND], [THIRD]],  # what SECOND left must go where FIRST fails
    "halves": [[SECOND, *halved(FIRST)], [SECOND], halved(THIRD)],
    "one": [[batch(1, LONG)]],
    "optimizer": [[batch(1, SHORT)]],
}


def make_updater(everything: bool, dropout: float) -> Updater:
    """A Whisper that is wide between its layers: activations and weights in hundreds of MB."""
    sizes = whispers.config()
    sizes.d_model = 32
    sizes.encoder_ffn_dim = 64 if everything else 1024
    sizes.decoder_ffn_dim = 120_000 if everything else 64
    chosen = Adapter(4, 8, dropout, range(2), range(2), ("q", "v", "fc1"))
    base = whispers.model(sizes)
    model = train_everything(base) if everything else attach(base, chosen)
    check = FirstBackwardCheck(whisper_of(model), None if everything else chosen)
    return Updater(Accelerator(cpu=True), model, TRAINING, check)


def virtual_bytes(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(row.split()[1]) for row in status.splitlines() if row.startswith(key)) * 1024


def child(_argv: list[str] | None) -> None:
    """Train on UPDATES[name] with `room` bytes more than there are now (0: any), and tell.

    Arguments: name, room, dropout, file for the result.
    """
    import resource

    name, room, dropout, target = sys.argv[1:]
    everything = name == "optimizer"
    made = make_updater(everything, float(dropout))
    if not everything:  # what torch loads late is loaded now
        made.step([batch(1, 64)], 1.0)
    before, events = virtual_bytes("VmSize"), []
    if int(room):
        resource.setrlimit(resource.RLIMIT_AS, (before + int(room), resource.RLIM_INFINITY))
    for number, batches in enumerate(UPDATES[name]):
        torch.manual_seed(number)
        made.step(batches, 1.0, events.append)
    used = virtual_bytes("VmPeak") - before
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    weights = {} if everything else dict(made.masters.named)
    facts = {"events": events, "used": used, "limit": made.room.limit}
    torch.save({"weights": weights} | facts, target)


def limited(folder: Path, name: str, room: int, dropout: float = 0.0) -> tuple[int, str, Path]:
    """Run `child` in a process of its own; its exit code, what it said, and where it wrote."""
    target = folder / f"{name}-{room}-{dropout}.pt"
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        # One heap, and blocks that go back to the system as soon as they are freed.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, __file__, name, str(room), str(dropout), str(target)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stderr, target


def trained(folder: Path, name: str, room: int = 0, dropout: float = 0.0) -> dict[str, Any]:
    code, said, target = limited(folder, name, room, dropout)
    assert code == 0, said[-3000:]
    return torch.load(target, weights_only=False)


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The same training without a limit, whole and in halves from the start."""
    folder = tmp_path_factory.mktemp("free")
    return {name: trained(folder, name) for name in ("whole", "halves")}


linux = pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")


@linux
def test_what_does_not_fit_is_halved_and_trains_the_same(free, tmp_path: Path) -> None:
    needed, enough = free["whole"]["used"], free["halves"]["used"]
    assert needed > 1.6 * enough > 1.6 * 100e6
    assert free["halves"]["events"] == []
    between = (needed + enough) // 2
    found = trained(tmp_path, "whole", between)
    assert found["used"] <= between
    (event,) = found["events"]  # the second update is short and stays whole; the third was cut
    assert event.pop("peak_bytes") > enough
    assert event == {"event": "out_of_memory", "clips": CLIPS, "positions": LONG, "audio_s": CLIPS}
    assert found["limit"] == CLIPS * LONG - 1
    weights, whole, halves = (run["weights"] for run in (found, free["whole"], free["halves"]))
    assert all(torch.equal(weights[name], halves[name]) for name in halves)
    worst = max(float((weights[name] - whole[name]).detach().abs().max()) for name in whole)
    moved = max(float(whole[name].detach().abs().max()) for name in whole if "lora_B" in name)
    print(
        f"out of memory: {needed / 1e6:.0f} MB whole, {enough / 1e6:.0f} MB in halves; weights "
        f"that moved by {moved:.1e} differ by at most {worst:.1e} after 3 updates"
    )
    assert worst < 0.02 * moved


@linux
def test_dropout_is_drawn_again_as_if_nothing_had_failed(free, tmp_path: Path) -> None:
    between = (free["whole"]["used"] + free["halves"]["used"]) // 2
    found = trained(tmp_path, "whole", between, dropout=0.5)
    halves = trained(tmp_path, "halves", dropout=0.5)["weights"]
    assert len(found["events"]) == 1
    assert all(torch.equal(found["weights"][name], halves[name]) for name in halves)
    without = free["halves"]["weights"]
    assert not all(torch.equal(halves[name], without[name]) for name in halves)


@linux
def test_one_clip_that_does_not_fit_ends_the_run_with_its_name(free, tmp_path: Path) -> None:
    code, said, target = limited(tmp_path, "one", free["halves"]["used"] // CLIPS)
    assert code == 75, said
    assert "clip clip-0 (1.0 s, 1500 encoder positions) does not fit into memory even alone" in said
    assert "training.recompute=all, base.quantize=int8 or nf4, a smaller base" in said
    assert "Traceback" not in said
    assert not target.exists()


@linux
def test_an_optimizer_that_does_not_fit_is_named(tmp_path: Path) -> None:
    needed = trained(tmp_path, "optimizer")["used"]
    code, said, _ = limited(tmp_path, "optimizer", int(0.8 * needed))
    assert code == 75, said
    assert "the gradients fit into memory, the optimizer's step does not" in said
    assert "training.optimizer=adamw8bit" in said


@settings(max_examples=20, deadline=None)
@given(clips=st.integers(2, 7), seed=st.integers(0, 99))
def test_halves_hold_the_same_clips_and_tokens(clips: int, seed: int) -> None:
    whole = batch(clips, 8, seed)
    first, second = whole.split()
    assert first.clip_ids + second.clip_ids == whole.clip_ids
    assert 0 <= len(first.clip_ids) - len(second.clip_ids) <= 1
    assert first.durations_s + second.durations_s == whole.durations_s
    assert first.audio_s + second.audio_s == whole.audio_s
    assert first.positions == second.positions == whole.positions
    assert torch.equal(torch.cat([first.sound, second.sound]), whole.sound)
    assert torch.equal(torch.cat([first.targets, second.targets]), whole.targets)
    fed = whole.decoder_input_ids.flatten()[whole.index]
    halves = [half.decoder_input_ids.flatten()[half.index] for half in (first, second)]
    assert torch.equal(torch.cat(halves), fed)
    longest = [half.decoder_input_ids.shape[1] for half in (first, second)]
    assert max(longest) == whole.decoder_input_ids.shape[1]


def test_halves_give_the_gradients_of_the_whole() -> None:
    whole = batch(7, SHORT)
    loss, expected = gradients_of(updater(), [whole])
    again, found = gradients_of(updater(), halved(whole))
    worst = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    print(f"halves: largest gradient difference to the whole batch: {worst:.1e}")
    assert again == pytest.approx(loss, abs=1e-6)
    assert worst < 1e-6
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3


def test_a_single_clip_is_not_split() -> None:
    with pytest.raises(ValueError, match="clip-0 is alone"):
        batch(1, 8).split()


# What is remembered, and what is said


def test_a_limit_cuts_what_is_larger_and_no_more() -> None:
    room = Room(TRAINING, processes=1)
    batches = [batch(8, 64), batch(4, 64), batch(1, LONG)]
    assert room.cut(batches) == batches
    room.learn(batches[0], "no room")
    room.learn(batch(4, 64), "no room")
    pieces = room.cut(batches)
    assert [len(piece.clip_ids) for piece in pieces] == [2, 2, 2, 2, 2, 2, 1]
    ids = [clip for piece in pieces for clip in piece.clip_ids]
    assert ids == [clip for one in batches for clip in one.clip_ids]


def test_several_processes_are_told_what_to_change() -> None:
    with pytest.raises(NoRoomError, match=r"halve training\.batch and double") as stopped:
        Room(TRAINING, processes=2).learn(batch(8, 64), "CUDA out of memory.")
    assert stopped.value.exit_code == 75


def test_nothing_is_suggested_that_is_done_already() -> None:
    room = Room(TRAINING.model_copy(update={"recompute": "all"}), processes=1)
    with pytest.raises(NoRoomError, match=r"What helps: base\.quantize"):
        room.learn(batch(1, 64), "CUDA out of memory.")


def test_log_and_terminal_tell_what_did_not_fit(tmp_path: Path, capsys) -> None:
    console, event = Terminal(), Room(TRAINING, processes=1).learn(batch(8, 64), "no room")
    with progress(console, "training", 9) as task:
        log = RunLog(tmp_path / "log.jsonl", task, console, Accelerator(cpu=True))
        log({"event": "out_of_memory", "update": 7} | event)
    assert "note: update 7: 8 clips x 153 encoder positions did not fit" in capsys.readouterr().out
    row = json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))
    assert set(row) == {"event", "update", "clips", "positions", "audio_s", "peak_bytes"}
    assert (row["update"], row["clips"], row["positions"], row["audio_s"]) == (7, 8, 153, 8.0)


def unallocatable() -> Exception:
    """What torch raises on a CPU where memory runs out."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(unallocatable())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))


def test_commands_end_with_no_room() -> None:
    with pytest.raises(NoRoomError, match="can't allocate memory"), enough_memory():
        raise unallocatable()
    with pytest.raises(RuntimeError, match="shapes"), enough_memory():
        raise RuntimeError("shapes")


if __name__ == "__main__":
    run(child)
