"""A relearning basis from a site is taken as it should be or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.calibration.basis import check_basis
from flwr_afuic.errors import LayoutError

P = 40


def rows(r=3, dtype=np.float32):
    return np.linalg.qr(np.random.default_rng(0).normal(size=(P, r)))[0].T.astype(dtype)


@pytest.mark.parametrize("r", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_orthonormal_rows_pass_up_to_the_rank_asked_for(r, dtype):
    check_basis(rows(r, dtype), 4, P)


@pytest.mark.parametrize(
    ("basis", "text"),
    [
        (rows()[0], "shape"),
        (rows()[None], "shape"),
        (rows(5), "shape"),
        (rows()[:0], "shape"),
        (rows()[:, 1:], "shape"),
        (rows().T, "shape"),
        (np.eye(3, P, dtype=np.int64), "dtype"),
        (np.eye(3, P, dtype=complex), "dtype"),
        (rows() * 1.01, "not orthonormal"),
        (rows() * 0, "not orthonormal"),
        (rows()[[0, 0, 1]], "not orthonormal"),
        (rows() + rows()[[1, 2, 0]] * 0.002, "not orthonormal"),
        (rows() * np.float32(1e30), "not orthonormal"),
        (np.where(rows() == rows()[1, 1], np.nan, rows()), "NaN"),
        (np.where(rows() == rows()[1, 1], np.inf, rows()), "NaN"),
    ],
)
def test_anything_else_is_refused(basis, text):
    with pytest.raises(LayoutError, match=text):
        check_basis(basis, 4, P)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2), st.integers(0, P - 1), st.floats(allow_nan=True, width=32))
def test_no_entry_can_be_changed_unnoticed(row, column, value):
    basis = rows()
    change = abs(value - basis[row, column])
    if change < 1e-3:
        return
    basis[row, column] = value
    # One entry moves the row's norm or its angle to another row, unless both cancel.
    new = basis.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.max(np.abs(new @ new.T - np.eye(3)))
    if off <= 1e-3:
        check_basis(basis, 4, P)
    else:
        with pytest.raises(LayoutError):
            check_basis(basis, 4, P)
