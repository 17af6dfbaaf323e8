"""Subspaces of client updates: energy-capped bases, and the angles between them.

The tools of EASE's Gradient Subspace Decomposition (arXiv 2605.00733): an SVD basis of each
client's updates and the cosine-sine decomposition between two of them [P]. That bases come from
the small Gram matrix, the energy cut, the cap and everything about rounding is derived or ours
[D, O]: the paper's text could not be had. All sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import ConfigError, LayoutError

FloatArray = NDArray[np.float64]

_NOTHING = 1e-24  # of the largest eigenvalue: below it a direction is rounding
_HALF = 0.5  # squared cosine above which the sine tells an angle better


@dataclass(frozen=True, kw_only=True)
class EnergyCut:
    """How many directions of a set of updates count.

    Parameters
    ----------
    energy : float, default 0.99
        Share of the sum of squares that the basis holds, in (0, 1]. It is this cut that loses weak
        directions: on planted data .99 kept what .95 and .90 lost.
    cap : int or None, default 16
        Most directions; None for no cap.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    energy: float = 0.99
    cap: int | None = 16

    def __post_init__(self) -> None:
        if not 0.0 < self.energy <= 1.0:
            raise ConfigError(f"energy is {self.energy!r}; it must be in (0, 1]")
        if self.cap is not None and (not isinstance(self.cap, int) or self.cap < 1):
            raise ConfigError(f"cap is {self.cap!r}; it must be an integer of at least 1, or None")

    def rank(self, eigenvalues: FloatArray) -> int:
        """Return how many of these squared singular values, largest first, count."""
        total = float(eigenvalues.sum())
        if not total > 0.0:
            return 0
        kept = int(np.count_nonzero(eigenvalues > _NOTHING * eigenvalues[0]))
        shares = np.cumsum(eigenvalues[:kept]) / total
        enough = int(np.searchsorted(shares, self.energy - 1e-12)) + 1
        return min(enough, kept, self.cap or kept)


def energy_directions(updates: NDArray[np.floating], cut: EnergyCut) -> FloatArray:
    """Return the main directions of updates, each times its singular value.

    Parameters
    ----------
    updates : ndarray, shape (T, d)
        One update a row.
    cut : EnergyCut
        How many count.

    Returns
    -------
    ndarray, shape (r, d)
        Rows ``sigma_j u_j^T``, largest first; no rows where the updates are zero. The updates'
        other directions hold less than ``1 - energy`` of the sum of squares, unless the cap is
        lower.

    Notes
    -----
    Through the T x T Gram matrix: ``U S = D V``, cost O(d T^2) [D].
    """
    values = _checked(updates)
    if not len(values):
        return np.zeros((0, values.shape[1]))
    eigenvalues, vectors = np.linalg.eigh(values @ values.T)
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0.0), vectors[:, ::-1]
    return vectors[:, : cut.rank(eigenvalues)].T @ values


def orthonormal(rows: FloatArray) -> FloatArray:
    """Make independent rows of shape (r, d), of any lengths, orthonormal; the span stays."""
    if not len(rows):
        return rows
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    q, triangle = np.linalg.qr((rows / lengths).T)
    signs = np.where(np.diag(triangle) < 0, -1.0, 1.0)
    return np.ascontiguousarray((q * signs).T)


def energy_basis(updates: NDArray[np.floating], cut: EnergyCut | None = None) -> FloatArray:
    """Return orthonormal rows, shape (r, d), that span the main directions of updates (T, d).

    Examples
    --------
    >>> energy_basis(np.array([[3.0, 0.0, 0.0], [0.0, 0.1, 0.0]])).tolist()
    [[1.0, 0.0, 0.0]]
    """
    return orthonormal(energy_directions(updates, cut or EnergyCut()))


@dataclass(frozen=True)
class Angles:
    """The cosine-sine decomposition of one subspace against another.

    With orthonormal rows ``F`` (r_f, d) and ``R`` (r_r, d): principal vector ``i`` of ``F`` is
    ``a_i``, of which ``c_i`` lies in the span of R and ``s_i`` outside, ``c_i^2 + s_i^2 = 1`` [D].

    Attributes
    ----------
    cosines, sines : ndarray, shape (r_f,)
        Largest cosine first.
    vectors : ndarray, shape (r_f, d)
        The principal vectors of F, orthonormal rows.
    outside : ndarray, shape (r_f, d)
        Their parts outside the span of R, of norm ``s_i``.
    """

    cosines: FloatArray
    sines: FloatArray
    vectors: FloatArray
    outside: FloatArray

    @property
    def radians(self) -> FloatArray:
        """The principal angles, smallest first."""
        return np.arctan2(self.sines, self.cosines)


class Span:
    """The span of rows, as what projects onto it.

    Rows need be neither orthonormal nor few: the projection goes through their Gram matrix, and
    no second copy of them is made. A retained basis of hundreds of directions is held once.

    Parameters
    ----------
    rows : ndarray, shape (n, d)
    cut : EnergyCut, optional
        Of the rows' own energy; by default every direction that is more than rounding counts.
    """

    def __init__(self, rows: NDArray[np.floating], cut: EnergyCut | None = None) -> None:
        self._rows = _checked(rows)
        if not len(self._rows):
            self._mix: FloatArray = np.zeros((0, 0))
            return
        gram = self._rows @ self._rows.T
        eigenvalues, vectors = np.linalg.eigh(gram)
        eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0.0), vectors[:, ::-1]
        # Directions below the Gram matrix's own rounding are noise.
        eigenvalues[eigenvalues < len(gram) * np.finfo(np.float64).eps * eigenvalues[0]] = 0.0
        rank = (cut or EnergyCut(energy=1.0, cap=None)).rank(eigenvalues)
        rank = min(rank, int(np.count_nonzero(eigenvalues)))
        self._mix = vectors[:, :rank] / np.sqrt(eigenvalues[:rank])

    @property
    def rank(self) -> int:
        """Dimension of the span."""
        return int(self._mix.shape[1])

    @property
    def basis(self) -> FloatArray:
        """Orthonormal rows of the span, shape (rank, d); made anew at each call."""
        return orthonormal(self._mix.T @ self._rows)

    def coordinates(self, vectors: FloatArray) -> FloatArray:
        """Return the coordinates of vectors (m, d) in the span's basis, shape (m, rank)."""
        return (vectors @ self._rows.T) @ self._mix

    def outside(self, vectors: FloatArray) -> FloatArray:
        """Return what of vectors (m, d) is orthogonal to the span."""
        rest = np.array(vectors, dtype=np.float64)
        if self.rank:
            for _ in range(3):  # each pass takes away what rounding left of the one before
                rest -= (self.coordinates(rest) @ self._mix.T) @ self._rows
        return rest


def principal_angles(forget: FloatArray, retained: Span) -> Angles:
    """Decompose a subspace against another.

    Parameters
    ----------
    forget : ndarray, shape (r_f, d)
        Orthonormal rows.
    retained : Span
        The other subspace.

    Returns
    -------
    Angles

    Notes
    -----
    Small angles are told by the sine, large ones by the cosine (Bjorck and Golub 1973): the
    vectors of cosines near 1 are turned by a second SVD, of the parts outside, since cosines that
    differ by less than rounding do not tell them apart.
    """
    rows = _checked(forget)
    if not len(rows) or not retained.rank:
        return Angles(np.zeros(len(rows)), np.ones(len(rows)), rows, rows.copy())
    left, cosines, _ = np.linalg.svd(retained.coordinates(rows), full_matrices=True)
    cosines = np.pad(cosines, (0, len(rows) - len(cosines)))
    vectors = left.T @ rows
    outside = retained.outside(vectors)
    near = int(np.count_nonzero(cosines**2 > _HALF))
    if near:
        turn, _, _ = np.linalg.svd(outside[:near], full_matrices=False)
        turn = turn[:, ::-1]  # smallest sine first
        vectors[:near], outside[:near] = turn.T @ vectors[:near], turn.T @ outside[:near]
    sines = np.linalg.norm(outside, axis=1)
    close = slice(0, near)
    cosines = np.minimum(cosines, 1.0)
    cosines[close] = np.sqrt(np.maximum(0.0, 1.0 - sines[close] ** 2))
    sines[near:] = np.sqrt(np.maximum(0.0, 1.0 - cosines[near:] ** 2))
    return Angles(cosines, sines, vectors, outside)


def _checked(rows: NDArray[np.floating]) -> FloatArray:
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2:
        raise LayoutError(f"updates have shape {values.shape}; they must be (n, d), one a row")
    if not bool(np.isfinite(values).all()):
        raise LayoutError("updates hold NaN or infinity; leave those out")
    return values
