"""State directories that several tests only look at, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report import states


@pytest.fixture(scope="session")
def busy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("busy") / "state"
    states.busy(folder)
    return folder


@pytest.fixture(scope="session")
def under_way(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("under-way") / "state"
    states.under_way(folder)
    return folder


@pytest.fixture(scope="session")
def large(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "state"
    states.large(folder)
    return folder
