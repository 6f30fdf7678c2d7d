"""Energy that the machine counts itself: processors by RAPL, NVIDIA's cards by NVML.

Most virtual machines show neither, and Linux shows RAPL to root alone unless told otherwise; then
there is nothing to measure, and nothing is guessed.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")  # where Linux counts microjoules of each processor package
NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Moment:
    """A time in seconds and what the counters said then in joules, each from a start of its own.

    `joules` is None where the machine tells of no energy.
    """

    seconds: float
    joules: float | None

    @classmethod
    def now(cls) -> Moment:
        return cls(time.perf_counter(), _counters().read())

    def spent(self) -> Moment:
        """Seconds and joules since then."""
        end = Moment.now()
        seconds = end.seconds - self.seconds
        if self.joules is None or end.joules is None:
            return Moment(seconds, None)
        return Moment(seconds, end.joules - self.joules)


class Counters:
    """The counters that can be read here, each from its own beginning on."""

    def __init__(self, powercap: Path = POWERCAP):
        self._packages = [_Package(folder) for folder in sorted(powercap.glob("intel-rapl:?"))]
        self._packages = [one for one in self._packages if one.read() is not None]
        self._cards = _cards()

    def read(self) -> float | None:
        """Joules of all together, never less than before; None without any."""
        counters: list[_Package | _Card] = [*self._packages, *self._cards]
        found = [one.read() for one in counters]
        told = [one for one in found if one is not None]
        return sum(told) if told and len(told) == len(found) else None


@cache
def _counters() -> Counters:
    return Counters()


class _Package:
    """A processor's counter in microjoules (AMD's too), which begins anew at its range."""

    def __init__(self, folder: Path):
        self._file, self._rounds, self._last = folder / "energy_uj", 0, 0
        self._range = folder / "max_energy_range_uj"

    def read(self) -> float | None:
        try:
            at = int(self._file.read_text())
            if at < self._last:
                self._rounds += int(self._range.read_text())
        except (OSError, ValueError):
            return None
        self._last = at
        return (self._rounds + at) / 1e6


class _Card:
    """A card's counter in millijoules, from the loading of its driver on (Volta and newer)."""

    def __init__(self, library: ctypes.CDLL, uuid: str):
        self._library, self._handle = library, ctypes.c_void_p()
        name = f"GPU-{uuid}".encode()
        if library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._handle)):
            raise OSError(f"NVML does not know the card {uuid}")

    def read(self) -> float | None:
        told = ctypes.c_ulonglong()
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(told))
        return None if failed else told.value / 1e3


def _cards() -> list[_Card]:
    """Every card that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    with suppress(OSError, AttributeError):  # no NVML, or one that is too old
        library = ctypes.CDLL(NVML)
        if not library.nvmlInit_v2():
            properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
            return [_Card(library, str(one.uuid)) for one in properties]
    return []
