"""What a run was made with: versions, machine, memory. Nothing here names a path."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import RecipeError

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "jiwer",
    "soxr",
    "tokenizers",
    "safetensors",
)
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # Windows
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Installed versions of peft_whisper and of the packages that decide its numbers."""
    from peft_whisper import __version__

    found = {"peft_whisper": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """CPU, cores, threads that torch uses, and the GPU's name and size (None without one)."""
    import torch

    gpu = None
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        gpu = {"name": card.name, "bytes": card.total_memory, "count": torch.cuda.device_count()}
    return {"cpu": _cpu(), "cores": cores(), "threads": torch.get_num_threads(), "gpu": gpu}


def machine_name() -> str:
    """The machine as a folder's name: its card, or else its processor and number of cores."""
    gpu = machine()["gpu"]
    text = (gpu["name"] if gpu else f"{_cpu()}-{cores()}-cores").lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def one_machine() -> None:
    """Raise RecipeError on several machines, whose disks do not hold the same files."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if here < world:
        raise RecipeError(f"{world} processes, {here} of them here: train on one machine only")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> dict[str, Any]:
    """{"peak_bytes", "peak_kind"}: CUDA's allocator where there is one, else resident memory.

    With CUDA "peak_reserved_bytes" as well: what the process held of the card.
    """
    import torch

    if torch.cuda.is_available():
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "peak_kind": "CUDA memory allocated, measured",
        }
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_kind": "resident memory of the process, measured",
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: a card's, or the computer's."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's allocator on the CPU and NVIDIA's libraries have no exception of their own for it.
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks that were freed, where it would return them to the system.

    Each tensor of more than 32 MB would come as new pages, which the kernel fills with zeros one by
    one: casting tiny.en's embedding takes 18 ms so, and 3 ms in memory that was kept. Elsewhere
    (musl, macOS, Windows) nothing is changed.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_MMAP_MAX, 0)


def empty_caches(device: torch.device) -> None:
    """Give unused memory back, so that smaller tensors find whole blocks."""
    import torch

    gc.collect()  # an exception's frames can hold each other
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
