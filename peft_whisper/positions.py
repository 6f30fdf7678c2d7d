"""Encoder positions (20 ms each): those that hear the clip, and those that stand for silence.

Whisper learned on clips padded with silence to 30 s, and its attention uses that silence. To leave
it out is fast and changes what the encoder gives; to run all of it is most of the work for a short
clip. So of the silence one position in `EACH` is run, and attention counts it that many times.
Measured on tiny.en: docs/speed.md.
"""

from __future__ import annotations

FULL_POSITIONS = 1500  # 30 s
EACH = 16  # positions of silence that one of them stands for


def silent_positions(positions: int) -> int:
    """How many of the `positions` that the encoder runs stand for the silence up to 30 s."""
    return (FULL_POSITIONS - positions) // (EACH - 1)


def heard_positions(positions: int) -> int:
    """How many of the `positions` that the encoder runs hear the clip, in order, from its start."""
    return positions - silent_positions(positions)


def positions_for(heard: int) -> int:
    """The fewest positions of which at least so many hear the clip."""
    positions = heard + (FULL_POSITIONS - heard) // EACH
    return positions + (heard_positions(positions) < heard)


def counts_for(positions: int) -> float:
    """How many positions of silence each of the silent ones stands for."""
    return (FULL_POSITIONS - heard_positions(positions)) / silent_positions(positions)
