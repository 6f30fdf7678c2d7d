"""Energy: the machine's own counters, whichever there are, and nothing where there are none."""

from __future__ import annotations

from pathlib import Path

from peft_whisper.energy import Counters


def package(folder: Path, number: int, microjoules: int) -> Path:
    """A processor's counter as Linux shows it."""
    place = folder / f"intel-rapl:{number}"
    place.mkdir()
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text("10000000\n")
    inside = folder / f"intel-rapl:{number}:0"  # a part of the package, which counts it too
    inside.mkdir()
    (inside / "energy_uj").write_text("7000000\n")
    return place / "energy_uj"


def test_packages_are_summed_and_a_counter_may_begin_anew(tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, 9_000_000), package(tmp_path, 1, 500_000)
    counters = Counters(tmp_path)
    assert counters.read() == 9.5
    first.write_text("1000000\n")  # over its range of 10 J: 2 J more
    second.write_text("1000000\n")
    assert counters.read() == 12.0
    first.write_text("900000\n")
    assert counters.read() == 21.9


def test_a_counter_that_fails_on_the_way_makes_the_whole_unknown(tmp_path: Path) -> None:
    first = package(tmp_path, 0, 1)
    package(tmp_path, 1, 1)
    counters = Counters(tmp_path)
    first.write_text("")
    assert counters.read() is None


def test_without_counters_nothing_is_guessed(tmp_path: Path) -> None:
    assert Counters(tmp_path).read() is None
