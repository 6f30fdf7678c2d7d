"""Made-up results of comparisons, with real counts: for tests of what is read out of them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from comparing.general import General
from comparing.results import FORMAT

Facts = dict[str, Any]
HEARD = General("clean", {"manifest": "clean.jsonl"}, "f")
HELD_EQUAL = {"base.model": "base", "training.updates": 46}
SCORE = {
    **{"wer": 1.348, "mer": 0.905, "cer": 1.085, "insertions": 392, "loops": 20, "empties": 19},
}
RECIPE = {"base": {"model": "base"}, "data": {"note": "made <up>"}, "training": {"batch": 16}}
MEASURED = {
    "versions": {"peft_whisper": "0.1.0", "torch": "2", "peft": "0.21"},
    "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None},
    "base": {"model": "base", "revision": None, "fingerprint": "sha256:0", "parameters": 37},
    "data": {
        name: {"clips": 119, "hours": 0.1, "speakers": 1, "fingerprint": name}
        for name in ("train", "validation", "test")
    },
    "trainable_parameters": 300_000,
    "clips_heard": 736,
    "frozen_s": 0.0,
    "resumed": False,
    "chosen": {"precision": "fp32", "attention": "sdpa"},
}


def clips(wer: float, seed: int, base_wer: float = 1.0, count: int = 119) -> Facts:
    """Counts of clips whose words go wrong at random; every call has the same words."""
    words = np.random.default_rng(0).integers(1, 14, count)
    rng = np.random.default_rng(seed)
    found: Facts = {"words": words.tolist(), "chars": (5 * words).tolist()}
    systems = (("base", base_wer), ("tuned", wer))
    full = tuple((f"{system}_full_context", share) for system, share in systems)
    for system, share in (*systems, *full):
        found[system] = {
            "errors": rng.binomial(words, share).tolist(),
            "insertions": rng.binomial(words, share / 10).tolist(),
            "char_errors": rng.binomial(5 * words, share / 2).tolist(),
        }
    return found


def result(
    label: str, seed: int = 1, wer: float = 0.3, peak_gib: float = 2.0, speed: float = 20.0
) -> Facts:
    """A finished run, as its file holds it."""
    key = f"{label.replace(' ', '-')}-{seed}"
    counted = clips(wer, seed + 100 * len(label))
    rate = sum(counted["tuned"]["errors"]) / sum(counted["words"])
    measured = copy.deepcopy(MEASURED) | {
        "training": {
            **{"updates": 46, "clips_per_s": speed / 2, "audio_s_per_s": speed, "seconds": 300.0},
            **{"peak_bytes": int(peak_gib * 2**30), "peak_kind": "resident, measured"},
        },
        "decoding": {"clips_per_s": 12.5},
        "best": {"update": 46, "metric": "mer", "value": 0.2, "training_s": 240.0},
        "curve": [{"update": at, "wer": 1.0 - at / 60} for at in (0, 23, 46)],
        "scores": {"base": SCORE, "tuned": SCORE | {"wer": rate, "loops": 0}},
        "clips": counted,
    }
    return {
        **{"format": FORMAT, "key": key, "method": label, "label": label, "rival": False},
        **{"seed": seed, "recipe": copy.deepcopy(RECIPE), "held_equal": HELD_EQUAL},
        **{"run": f"outputs/compare/{key}", "ended": f"2026-01-01T00:00:0{seed}+00:00"},
        **{"outcome": "finished", "exit": "0", "said": [], "wall_s": 480.0, "traced": {}},
        "measured": measured,
        "general": {"f": {"speech": "clean", "clips": clips(0.06, seed, 0.05)}},
    }


def failed(label: str, seed: int = 1) -> Facts:
    """A run that memory was too small for."""
    said = ["memory is too small: <none> left", "lower training.micro_audio_s"]
    ended = {"outcome": "no room", "exit": "75", "said": said}
    return result(label, seed) | ended | {"measured": None, "general": {}}
