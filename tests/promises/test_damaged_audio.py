"""P6: damaged sound is named, or its damage is proven to be harmless; nothing is lost between."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_audio import encoded, speech_like

from peft_whisper.data.audio import AudioRef, load_wave
from peft_whisper.data.audit import CAUSES, audit
from peft_whisper.data.corpus import read_rows
from peft_whisper.files import write_jsonl
from peft_whisper.recipe_speech import Source

FORMATS = ("wav", "flac", "ogg", "opus", "mp3")
DRAW = np.random.default_rng(1)
NOISE = DRAW.bytes(4_000)
PLACES = DRAW.random(100)


def flipped(data: bytes, places: list[int]) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def middle(data: bytes, lost: int, put: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + put + data[half + lost :]


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a text": lambda data: b"just text, no sound\n" * 300,
    "zeros": lambda data: bytes(len(data)),
    "four bytes": lambda data: data[:4],
    "cut at 1 %": cut(0.01),
    "cut at 10 %": cut(0.1),
    "cut at 50 %": cut(0.5),
    "cut at 90 %": cut(0.9),
    "cut at 99 %": cut(0.99),
    "last byte lost": lambda data: data[:-1],
    "first half lost": lambda data: data[len(data) // 2 :],
    "2,000 bytes lost": lambda data: middle(data, 2_000, b""),
    "2,000 bytes twice": lambda data: middle(data, 0, data[len(data) // 2 :][:2_000]),
    "64 bytes zeroed": lambda data: middle(data, 64, bytes(64)),
    "4,000 bytes zeroed": lambda data: middle(data, 4_000, bytes(4_000)),
    "4,000 bytes random": lambda data: middle(data, 4_000, NOISE),
    "second half zeroed": lambda data: middle(data, len(data), bytes(len(data) - len(data) // 2)),
    "one bit in the header": lambda data: flipped(data, [8 * 5 + 2]),
    "one bit in the middle": lambda data: flipped(data, [4 * len(data) + 3]),
    "100 bits": lambda data: flipped(data, [int(8 * len(data) * one) for one in PLACES]),
    "LF made CR LF": lambda data: data.replace(b"\n", b"\r\n"),
    "Latin-1 made UTF-8": lambda data: data.decode("latin-1").encode(),
    "bytes behind": lambda data: data + NOISE[:500],
    "twice in one file": lambda data: data + data,
}
# WAV and MP3 hold no checksum of their sound: what is put in the place of other sound is not seen
# where the manifest holds none either.
UNSEEN = {
    ("wav", "2,000 bytes twice"),
    ("wav", "4,000 bytes zeroed"),
    ("wav", "4,000 bytes random"),
    ("wav", "second half zeroed"),
    ("wav", "LF made CR LF"),
    ("mp3", "2,000 bytes twice"),
    ("mp3", "64 bytes zeroed"),
    ("mp3", "100 bits"),
    ("mp3", "LF made CR LF"),
}
HARMLESS_S = 0.05  # of four seconds may sound otherwise
AUDIBLE = 1e-3  # of full scale


def is_harmless(good: np.ndarray, damaged: np.ndarray) -> bool:
    """Whether all of the sound is there, and no more than 50 ms of it differ."""
    if abs(len(good) - len(damaged)) > 1:
        return False
    both = min(len(good), len(damaged))
    return (np.abs(good[:both] - damaged[:both]) > AUDIBLE).sum() <= HARMLESS_S * 16_000


def planted(folder: Path) -> tuple[list[dict[str, str]], dict[str, np.ndarray]]:
    """Files whole and damaged, rows that list them with the sums of the whole, and their sound."""
    listed, waves = [], {}
    for kind in FORMATS:
        data = encoded(speech_like(), kind)
        waves[kind] = load_wave(AudioRef(data=data))
        for damage, change in [("none", lambda data: data), *DAMAGE.items()]:
            file = f"{len(listed)}.{kind}"
            (folder / file).write_bytes(change(data))
            row = {"id": f"{kind}/{damage}", "audio": file, "text": "some words"}
            listed.append(row | {"sha256": hashlib.sha256(data).hexdigest()})
    return listed, waves


def test_every_kind_of_damage_in_every_format(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listed, waves = planted(tmp_path)

    def audited(*without: str) -> tuple[int, int, set[tuple[str, str]]]:
        """How many are named, how many proven harmless, and which are not seen."""
        rows = [{key: one for key, one in row.items() if key not in without} for row in listed]
        write_jsonl(tmp_path / "rows.jsonl", rows)
        source = Source(manifest=str(tmp_path / "rows.jsonl"))
        found = audit(read_rows(source), lambda _text, _language: 5)
        assert len(found.clips) + len(found.rejected) == len(listed)
        assert all(one.cause in CAUSES and one.detail for one in found.rejected)
        kept = {tuple(clip.id.split("/")): load_wave(clip.audio) for clip in found.clips}
        for kind in FORMATS:
            del kept[kind, "none"]  # or KeyError: it is whole
        unseen = {one for one, wave in kept.items() if not is_harmless(waves[one[0]], wave)}
        return len(found.rejected), len(kept) - len(unseen), unseen

    alone, summed = audited("sha256"), audited()
    capfd.readouterr()  # what the MP3 decoder says of each
    total = len(FORMATS) * len(DAMAGE)
    assert len(listed) == total + len(FORMATS)
    print(
        f"\n{len(DAMAGE)} kinds of damage in {len(FORMATS)} formats, {total} clips, with checksums "
        f"in the manifest: {summed[0]} named, {summed[1]} proven harmless, {len(summed[2])} not "
        f"seen; without: {alone[0]} named, {alone[1]} proven harmless, {len(alone[2])} not seen "
        "(WAV and MP3 hold no checksum); kept + rejected = listed"
    )
    assert summed[2] == set()
    assert alone[2] == UNSEEN
