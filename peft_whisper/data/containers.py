"""Whether a sound file is as long as its own header says, where the decoder would not tell."""

from __future__ import annotations

import os
import zlib
from typing import BinaryIO

UNKNOWN_LENGTH = 0x7FFF_0000  # bytes; writers into a pipe leave this or more as a chunk's size
WAV_SLACK_BYTES = 64  # some writers count their own header as sound
OGG_HEADER_BYTES = 27  # of a page, before its segment table (RFC 3533, section 6)
OGG_END = 0x04  # header flag of a stream's last page

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def shortage(file: BinaryIO) -> str | None:
    """Say what is missing from a WAV or Ogg file, or return None; `file` is read from its start.

    libsndfile repairs such files without a word: half of a cut WAV reads as a whole clip. FLAC and
    MP3 need no look here, their decoders deliver fewer samples than the header promises.
    """
    file.seek(0)
    head = file.read(12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:] == b"WAVE":
        return _wav_shortage(file, "big" if head[:4] == b"RIFX" else "little")
    if head[:4] == b"OggS":
        file.seek(0)
        return _ogg_shortage(file.read())
    return None


def _wav_shortage(file: BinaryIO, order: str) -> str | None:
    """Compare the size of the data chunk (or of RF64's ds64) with what the file holds."""
    size, long_size = file.seek(0, os.SEEK_END), None
    at = 12  # behind RIFF, its size and WAVE
    while at + 8 <= size:
        file.seek(at)
        name, promised = file.read(4), int.from_bytes(file.read(4), order)  # type: ignore[arg-type]
        at += 8
        if name == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        if name == b"data":
            promised = long_size or promised
            missing = promised - (size - at)
            if missing <= WAV_SLACK_BYTES or (promised >= UNKNOWN_LENGTH and not long_size):
                return None
            return f"{missing / promised:.0%} of the sound that the WAV header promises is missing"
        at += promised + promised % 2  # chunks begin at even addresses
    return None


def _ogg_shortage(data: bytes) -> str | None:
    """Walk the pages: each must be whole, intact by its checksum, and the last one marked so."""
    at, ended = 0, False
    while data[at : at + 4] == b"OggS":
        body = at + OGG_HEADER_BYTES + (data[at + 26] if len(data) > at + 26 else 0)
        end = body + sum(data[at + OGG_HEADER_BYTES : body])
        if end > len(data) or len(data) < at + OGG_HEADER_BYTES:
            return "the Ogg file ends within a page"
        page = data[at : at + 22] + bytes(4) + data[at + 26 : end]
        if _ogg_checksum(page) != int.from_bytes(data[at + 22 : at + 26], "little"):
            return f"the Ogg page at byte {at:,} is damaged: its checksum does not fit"
        at, ended = end, bool(data[at + 5] & OGG_END)
    return None if ended else f"the Ogg file stops at byte {at:,} without its end mark"


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with polynomial 0x04C11DB7, most significant bit first, start and end value 0.

    zlib's has the same polynomial with bits the other way round and inverted ends: feed it reversed
    bytes, undo the inversion, and reverse the result.
    """
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
