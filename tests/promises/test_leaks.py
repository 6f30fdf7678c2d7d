"""R24: what train and test have in common is found among clean clips, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import soundfile
from killed_runs import FULL
from test_splits import clips, opened, speech

OF_EACH = 10


def planted(folder: Path) -> tuple[list[dict], list[dict]]:
    """Rows of train and of test; the ids of test begin with the kind of leak that they are."""
    train = clips(folder, range(100, 100 + OF_EACH * 6), prefix="train")
    test: list[dict] = []
    for number in range(OF_EACH):
        same, container, rename, words, spelt, part = (
            train[number + OF_EACH * kind] for kind in range(6)
        )
        test.append({"id": f"file{number}", "audio": same["audio"], "text": f"one {number}"})
        samples, _ = soundfile.read(folder / container["audio"], dtype="int16")
        soundfile.write(folder / f"c{number}.flac", samples, 16_000)
        test.append({"id": f"flac{number}", "audio": f"c{number}.flac", "text": f"two {number}"})
        data = (folder / rename["audio"]).read_bytes()
        (folder / f"r{number}.wav").write_bytes(data + b"LIST" + bytes(4))
        test.append({"id": f"copy{number}", "audio": f"r{number}.wav", "text": f"six {number}"})
        own = clips(folder, range(300 + 2 * number, 302 + 2 * number), prefix="own")
        test.append(own[0] | {"id": f"text{number}", "text": words["text"]})
        shouted = f"{spelt['text'].upper()}!"
        test.append(own[1] | {"id": f"case{number}", "text": shouted})
        soundfile.write(folder / f"long{number}.wav", speech(400 + number, 3.0), 16_000)
        part |= {"audio": f"long{number}.wav", "start": 0, "end": 2}
        row = {"audio": f"long{number}.wav", "start": 1.5, "end": 3, "text": f"ten {number}"}
        test.append(row | {"id": f"over{number}"})
    return train, test


def test_planted_leaks_are_all_found_and_no_others(tmp_path: Path) -> None:
    train, test = planted(tmp_path)
    clean = clips(tmp_path, range(1_000, 2_000 if FULL else 1_100), "clean {}", "clean")
    half = len(clean) // 2
    sources = {}
    for name, rows in (("train", [*train, *clean[:half]]), ("test", [*test, *clean[half:]])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        sources[name] = {"manifest": f"{name}.jsonl"}
    splits, _ = opened(tmp_path, **sources, validation={"from_train": 0.01})
    heard = {one for leak in splits.shared_audio for one in leak.ids.get("test", ())}
    read = {one for leak in splits.shared_transcripts for one in leak.ids.get("test", ())}
    expected = {row["id"] for row in test}
    print(
        f"\n{len((heard | read) & expected)}/{len(expected)} planted leaks found among "
        f"{len(clean)} clean clips ({len(heard)} of sound, {len(read)} of words), "
        f"{len((heard | read) - expected)} false"
    )
    assert heard == {one for one in expected if one[:4] in ("file", "flac", "copy", "over")}
    assert read == {one for one in expected if one[:4] in ("text", "case")}
