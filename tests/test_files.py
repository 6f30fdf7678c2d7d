"""What is written is whole or absent, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peft_whisper.files import staged_folder, write_json, write_jsonl, write_text

REPOSITORY = Path(__file__).resolve().parent.parent


def process(code: str, *arguments: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def half_filled(target: Path, error: BaseException) -> None:
    with staged_folder(target) as staging:
        (staging / "new").write_text("new")
        raise error


def test_a_staged_folder_appears_whole(tmp_path):
    with staged_folder(tmp_path / "a" / "made") as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "file").write_text("x")
        assert not (tmp_path / "a" / "made").exists()
    assert names(tmp_path) == ["a", "a/made", "a/made/inner", "a/made/inner/file"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError):
        half_filled(tmp_path / "made", RuntimeError())
    assert names(tmp_path) == []


def test_an_existing_folder_is_replaced_not_merged(tmp_path):
    for name in ("old", "new"):
        with staged_folder(tmp_path / "made") as staging:
            (staging / name).write_text(name)
    assert names(tmp_path) == ["made", "made/new"]


def test_a_failure_keeps_the_existing_folder(tmp_path):
    with staged_folder(tmp_path / "made") as staging:
        (staging / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        half_filled(tmp_path / "made", KeyboardInterrupt())
    assert names(tmp_path) == ["made", "made/old"]


def test_a_killed_process_leaves_the_old_folder_whole_and_the_next_one_replaces_it(tmp_path):
    with staged_folder(tmp_path / "made") as staging:
        (staging / "old").write_text("old")
    code = """if True:
        import os, pathlib, signal, sys
        from peft_whisper.files import staged_folder
        with staged_folder(pathlib.Path(sys.argv[1])) as staging:
            (staging / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert process(code, tmp_path / "made").wait() == -signal.SIGKILL
    assert names(tmp_path / "made") == ["old"]
    with staged_folder(tmp_path / "made") as staging:
        (staging / "new").write_text("new")
    assert names(tmp_path / "made") == ["new"]


def test_what_is_renamed_into_place_is_on_the_disk_before(tmp_path, monkeypatch):
    """Every file and the folder are synced, then the rename, then the folder above."""
    done, sync, rename = [], os.fsync, os.rename

    def synced(opened: int) -> None:
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{opened}")).name))
        sync(opened)

    def renamed(old: Path, new: Path) -> None:
        done.append(("rename", Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    with staged_folder(tmp_path / "made") as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "a").write_text("a")
        (staging / "b").write_text("b")
    at = done.index(("rename", "made"))
    assert {name for _, name in done[:at]} == {"inner", "a", "b", staging.name}
    assert done[at + 1 :] == [("sync", tmp_path.name)]


def test_a_signal_between_the_two_renames_waits(tmp_path):
    with staged_folder(tmp_path / "made") as staging:
        (staging / "old").write_text("old")
    code = """if True:
        import os, pathlib, signal, sys
        from peft_whisper import errors
        from peft_whisper.files import staged_folder
        def hook(event, given):
            if event == "os.rename" and ".trash-" in str(given[1]):
                os.kill(os.getpid(), signal.SIGTERM)
        def main(argv):
            with staged_folder(pathlib.Path(sys.argv[1])) as staging:
                (staging / "new").write_text("new")
        sys.addaudithook(hook)
        errors.run(main)
    """
    assert process(code, tmp_path / "made").wait() == 143
    assert names(tmp_path) == ["made", "made/new"]


def test_a_reader_sees_the_old_text_or_the_new_one_and_no_part(tmp_path):
    path, size = tmp_path / "file", 300_000
    code = """if True:
        import pathlib, sys
        from peft_whisper.files import write_text
        for number in range(60):
            write_text(pathlib.Path(sys.argv[1]), "ab"[number % 2] * 300_000)
    """
    write_text(path, "b" * size)
    writer, seen = process(code, path), set()
    while writer.poll() is None:
        seen.add(path.read_text())
    assert writer.returncode == 0
    print(f"a reader saw {len(seen)} different texts, all whole")
    assert seen == {"a" * size, "b" * size}


def test_a_text_that_can_not_be_written_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "sub" / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "sub" / "file", "new \ud800")
    assert (tmp_path / "sub" / "file").read_text() == "old"
    assert names(tmp_path / "sub") == ["file"]


def test_json_is_utf_8_and_ends_with_a_line_end(tmp_path):
    rows = [{"text": "नमस्ते"}, {"text": "a\nb"}]
    write_json(tmp_path / "a.json", rows[0])
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert (tmp_path / "a.json").read_bytes() == '{\n  "text": "नमस्ते"\n}\n'.encode()
    lines = (tmp_path / "a.jsonl").read_bytes().decode("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_error_and_unchanged(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "file", "x")
    assert names(tmp_path) == []
