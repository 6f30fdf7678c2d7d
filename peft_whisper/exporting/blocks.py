"""Blocks of 32 numbers in 8 or 5 bits with one scale, as ggml has them (ggml-quants.c)."""

from __future__ import annotations

import numpy as np

BLOCK = 32


def q8_0(values: np.ndarray) -> bytes:
    """A f16 scale and 32 i8 for each block; float32 (..., a multiple of 32)."""
    blocks = values.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = _rounded(blocks * _inverse(scale))
    packed = np.empty(len(blocks), [("scale", "<f2"), ("steps", "i1", BLOCK)])
    packed["scale"], packed["steps"] = scale[:, 0], steps
    return packed.tobytes()


def q5_0(values: np.ndarray) -> bytes:
    """A f16 scale, the 32 highest bits, and 32 times four bits: numbers -16 to 15 plus 16.

    A byte of the lower bits holds number j and number j + 16.
    """
    blocks = values.reshape(-1, BLOCK)
    at = np.abs(blocks).argmax(axis=1)
    scale = np.take_along_axis(blocks, at[:, None], axis=1) / np.float32(-16)
    steps = np.clip(np.floor(blocks * _inverse(scale) + np.float32(16.5)), 0, 31).astype(np.uint32)
    packed = np.empty(len(blocks), [("scale", "<f2"), ("high", "<u4"), ("low", "u1", BLOCK // 2)])
    packed["scale"] = scale[:, 0]
    packed["high"] = ((steps >> 4) << np.arange(BLOCK, dtype=np.uint32)).sum(axis=1)
    packed["low"] = (steps[:, :16] & 15) | ((steps[:, 16:] & 15) << 4)
    return packed.tobytes()


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Halves away from zero, as C's roundf."""
    return np.trunc(values + np.copysign(np.float32(0.5), values)).astype(np.int8)
