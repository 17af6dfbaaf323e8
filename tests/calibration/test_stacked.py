"""Compiled passes over many locks give what NumPy gives, whatever their number."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_afuic.calibration import stacked
from flwr_afuic.calibration.stacked import StackedDirections


@pytest.mark.parametrize("rank", [1, 3, 8, 9, 17])
def test_compiled_passes_give_what_numpy_gives(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(stacked, "SHARED_FROM", 1)
    rng = np.random.default_rng(rank)
    rows, vector = rng.normal(size=(rank, 20011)), rng.normal(size=20011)
    weights = rng.normal(size=rank)
    own = StackedDirections(tuple("abcdefghijklmnopq"[:rank]), rows, np.zeros(rank))
    reached, length = own.coordinates(vector)
    np.testing.assert_allclose(reached, rows @ vector, rtol=0, atol=1e-10)
    assert length == pytest.approx(float(np.linalg.norm(vector)))
    moved = own.moved(vector, weights, np.empty_like(vector))
    np.testing.assert_allclose(moved, vector + weights @ rows, rtol=0, atol=1e-12)
    assert own.moved(vector, weights, vector) is vector, "in place, too"
    np.testing.assert_array_equal(vector, moved)
    vector[7] = np.nan
    assert not np.isfinite(own.coordinates(vector)[1])
