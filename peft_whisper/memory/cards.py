"""The cards that a plan can be made for: what the driver shows of each, and what is left of it."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from peft_whisper.errors import RecipeError
from peft_whisper.memory.allocator import CUBLAS_WORKSPACE

GIB = 2**30
CONTEXT = GIB // 2  # CUDA context and kernel images: 0.3-0.6 GiB by driver and card, assumed
LARGEST_GIB = 2000
HOPPER_WORKSPACE = 2 * 32 * 2**20
PROCESS = GIB  # Python, the libraries and a batch or two, beside torch's tensors on a CPU; assumed


@dataclass(frozen=True)
class Card:
    """A card: `visible` is what the driver shows (torch's `total_memory`); all sizes in bytes.

    `flash` and `bf16`: flash attention and bfloat16 run on it (compute capability 8.0 or later).
    """

    name: str
    title: str
    visible: int
    context: int = CONTEXT
    flash: bool = True
    bf16: bool = True
    workspaces: int = CUBLAS_WORKSPACE  # of cuBLAS, there throughout
    device: str = "cuda"  # "cpu": no card, but this computer's own memory

    @property
    def usable(self) -> int:
        """The bytes that torch's allocator can have when nothing else is on the card."""
        return self.visible - self.context


def _gib(size: float) -> int:
    return round(size * GIB)


# Published: the smallest "total capacity" of out-of-memory messages found in public; newer drivers
# show up to 0.2 GiB less of the same card than older ones. A10: assumed, 21.98 to 22.49 seen; T4:
# Zheng-Chong/CatVTON#133; L4: pasted logs (instructlab#2666 says 22.05); RTX 3090:
# noonghunna/club-3090#58; RTX 4090: pasted logs (huggingface/lora-fast#1 says 23.55); A100 40 GB:
# pasted logs (TianheWu/CoSeR#10 says 39.50); A100 80 GB: lianqi1008/Control-GIC#6; H100:
# huggingface/trl#2688.
CARDS = {
    card.name: card
    for card in (
        Card("t4", "NVIDIA T4", _gib(14.56), flash=False, bf16=False),
        Card("a10", "NVIDIA A10", _gib(22.0)),
        Card("l4", "NVIDIA L4", _gib(22.03)),
        Card("rtx3090", "NVIDIA GeForce RTX 3090", _gib(23.56)),
        Card("rtx4090", "NVIDIA GeForce RTX 4090", _gib(23.51)),
        Card("a100-40", "NVIDIA A100 40 GB", _gib(39.39)),
        Card("a100-80", "NVIDIA A100 80 GB", _gib(79.14)),
        Card("h100", "NVIDIA H100 80 GB", _gib(79.10), workspaces=HOPPER_WORKSPACE),
    )
}
# What is left of a spelling once makers, connectors, units and punctuation are gone.
_SPELLINGS = {
    "t4": "t4(16)?",
    "a10": "a10g?(24)?",
    "l4": "l4(24)?",
    "rtx3090": "(rtx)?3090(24)?",
    "rtx4090": "(rtx)?4090(24)?",
    "a100-40": "a10040",
    "a100-80": "a10080",
    "h100": "h100(80)?",
}
_NOISE = re.compile(r"nvidia|geforce|tesla|sxm\d?|pcie|hbm\d?e?|(?<=\d)\s*gi?b?\b|[^a-z0-9]")
_UNIT = re.compile(r"\s*gi?b?$")


def find_card(text: str) -> Card:
    """The card of a name ("a10", "RTX 3090", "A100-SXM4-40GB") or of a size in GiB ("23.5").

    Of a card given by its size alone, flash attention and bfloat16 are assumed.
    Raises RecipeError for anything else, with the names it knows.
    """
    plain = text.strip().lower()
    squeezed = _NOISE.sub("", plain)
    for name, spelling in _SPELLINGS.items():
        if re.fullmatch(spelling, squeezed):
            return CARDS[name]
    try:
        size = float(_UNIT.sub("", plain))
    except ValueError:
        raise RecipeError(
            f"--card: found {text[:40]!r}, expected one of {', '.join(CARDS)}, or a size in GiB"
            f"{_hint(squeezed)}"
        ) from None
    if not CONTEXT < size * GIB <= LARGEST_GIB * GIB:
        raise RecipeError(
            f"--card: found {text[:40]!r}, expected one of {', '.join(CARDS)}, or a size in GiB "
            f"above {CONTEXT / GIB} (taken by CUDA itself) and up to {LARGEST_GIB}"
        )
    return Card(f"{size:g}GiB", f"a card of {size:g} GiB", _gib(size))


def _hint(squeezed: str) -> str:
    known = {name.replace("-", ""): name for name in CARDS}
    near = [key for key in known if squeezed and key.startswith(squeezed)]
    near = near or difflib.get_close_matches(squeezed, known, 2, 0.8)
    return f"; did you mean {' or '.join(known[key] for key in near)}?" if near else ""


def this_card() -> Card:
    """The CUDA card that torch would use here; without one, this computer's free memory."""
    import torch  # seconds to import, and a plan for another card does without it

    if not torch.cuda.is_available():
        free = available_memory()
        return Card("cpu", "this computer", free, PROCESS, False, True, 0, "cpu")
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    recent = (card.major, card.minor) >= (8, 0)
    workspaces = HOPPER_WORKSPACE if card.major >= 9 else CUBLAS_WORKSPACE
    return Card("this", card.name, card.total_memory, CONTEXT, recent, recent, workspaces)


def available_memory() -> int:
    """Bytes of main memory that a process can still get here, a container's limit respected."""
    if not hasattr(os, "sysconf"):  # Windows does not say; nothing is refused for it
        return LARGEST_GIB * GIB
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    info = Path("/proc/meminfo")
    if info.is_file():
        free = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text(encoding="utf-8"))
        found += [int(free[1]) * 1024] if free else []
    limit, state = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "stat"))
    if limit.is_file() and state.is_file() and (most := limit.read_text().strip()).isdecimal():
        taken = re.search(r"^anon (\d+)$", state.read_text(), re.MULTILINE)  # files can go
        found.append(int(most) - int(taken[1] if taken else 0))
    return max(0, min(found))
