"""Checks of a relearning basis that came from a site: nothing in it is taken on trust."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_afuic.errors import LayoutError

TOLERANCE = 1e-3


def check_basis(basis: npt.NDArray[Any], rank: int, p: int) -> None:
    """Raise LayoutError unless a basis is what a lock may be built on.

    Parameters
    ----------
    basis : ndarray of shape (r, p)
        Orthonormal rows, ``1 <= r <= rank``: a site whose erased data move the model along
        fewer directions sends fewer.
    rank : int
        Most rows; what the site was asked for.
    p : int
        Entries of the model's trained arrays.

    Raises
    ------
    LayoutError
        If shape or dtype is another, a value is not finite, or the rows are not orthonormal to
        1e-3, which rows of less than full rank never are.

    Notes
    -----
    A basis can be orthonormal and still point somewhere else, to keep the model from
    learning what it should. A lock allows one half-space per row, so that the harm is bounded
    by ``rank`` directions of ``p``; keep the rank small.
    """
    if basis.ndim != 2 or basis.shape[1] != p or not 1 <= basis.shape[0] <= rank:
        raise LayoutError(
            f"a relearning basis has shape {basis.shape}; it must be (r, {p}), r from 1 to {rank}"
        )
    if basis.dtype.kind != "f":
        raise LayoutError(f"a relearning basis has dtype {basis.dtype}; it must be floating-point")
    rows = np.asarray(basis, dtype=np.float64)
    if not bool(np.isfinite(rows).all()):
        raise LayoutError("a relearning basis holds NaN or infinity")
    with np.errstate(over="ignore", invalid="ignore"):
        worst = float(np.max(np.abs(rows @ rows.T - np.eye(len(rows)))))
    if not worst <= TOLERANCE:
        raise LayoutError(
            f"a relearning basis is not orthonormal: off by {worst:.2g}, at most {TOLERANCE:g} is "
            "allowed"
        )
