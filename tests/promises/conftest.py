"""One undisturbed run for all promises to be held against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from killed_runs import Runs
from test_train import make_place


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(make_place(tmp_path_factory.mktemp("promises")))
    yield made
    made.server.kill()
    made.server.wait()  # so that its seconds count where the whole suite is timed


@pytest.fixture(scope="session")
def whole(runs: Runs) -> dict[str, Any]:
    """The run that nothing happened to: its outcome, its changes of files, its seconds."""
    done = runs("whole")
    assert done["code"] == 0, done["said"]
    return done | {"outcome": runs.outcome("whole")}
