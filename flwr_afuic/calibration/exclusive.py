"""Forget-exclusive directions: those of the forgotten client that no retained one uses.

Gradient Subspace Decomposition of EASE (arXiv 2605.00733): near-orthogonal-to-retain directions
are forget-exclusive [P]. That the basis is made of the *sine parts*, which are exactly orthogonal
to the retained subspace where the principal vectors themselves are only nearly so, is derived
[D]; the threshold's default is ours [O].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.calibration.subspaces import (
    EnergyCut,
    Span,
    energy_basis,
    energy_directions,
    orthonormal,
    principal_angles,
)
from flwr_afuic.errors import ConfigError

FloatArray = NDArray[np.float64]
Rule = Literal["joint", "pairwise"]


@dataclass(frozen=True, kw_only=True)
class GsdSettings:
    """Settings of the decomposition.

    Parameters
    ----------
    energy : float, default 0.99
        See :class:`~flwr_afuic.calibration.subspaces.EnergyCut`.
    cap : int, default 16
        Most directions of one client; the stack of the retained clients' has no cap.
    tau : float, default 0.3
        Greatest cosine of a forget-exclusive direction, in [0, 1).
    rule : {"joint", "pairwise"}
        Against all retained updates together, or each client's cosine kept below ``tau``.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    energy: float = 0.99
    cap: int = 16
    tau: float = 0.3
    rule: Rule = "joint"

    def __post_init__(self) -> None:
        EnergyCut(energy=self.energy, cap=self.cap)
        if not 0.0 <= self.tau < 1.0:
            raise ConfigError(f"tau is {self.tau!r}; it must be in [0, 1)")
        if self.rule not in get_args(Rule):
            raise ConfigError(f"rule is {self.rule!r}; use 'joint' or 'pairwise'")

    @property
    def cut(self) -> EnergyCut:
        """The cut of one client's updates."""
        return EnergyCut(energy=self.energy, cap=self.cap)


@dataclass(frozen=True)
class Exclusive:
    """The outcome for one block.

    Attributes
    ----------
    basis : ndarray, shape (r, d)
        Orthonormal rows ``B^T``; none where the block is fully entangled.
    cosines : ndarray, shape (r_f,)
        Principal cosines of the forgotten client's updates with the retained ones, largest first
        (with the pairwise rule: root sums of squares over the clients, which may exceed 1).
    retained_rank : int
        Dimension of the retained subspace.
    """

    basis: FloatArray
    cosines: FloatArray
    retained_rank: int

    @property
    def entangled(self) -> bool:
        """Whether nothing is forget-exclusive: no removal by this subspace may be claimed."""
        return not len(self.basis)


def retained_span(clients: Sequence[NDArray[np.floating]], settings: GsdSettings) -> Span:
    """Span the retained clients' updates.

    Parameters
    ----------
    clients : sequence of ndarray, shape (T_k, d)
        The updates of each client, or what :func:`client_directions` made of them.
    settings : GsdSettings

    Returns
    -------
    Span
        Of every client's main directions, at most ``cap`` of each; the energy cut applies to
        each client and to the stack, the cap to clients only.
    """
    cut = settings.cut
    parts = [energy_directions(updates, cut) for updates in clients]
    if not parts:
        raise ConfigError("no retained client has an update; there is nothing to be apart from")
    return Span(np.concatenate(parts), EnergyCut(energy=settings.energy, cap=None))


def forget_exclusive(forget: FloatArray, retained: Span, tau: float) -> Exclusive:
    """Find the forget-exclusive basis against the retained updates together.

    Parameters
    ----------
    forget : ndarray, shape (r_f, d)
        Orthonormal rows: the basis of the forgotten client's updates.
    retained : Span
        See :func:`retained_span`.
    tau : float
        Greatest cosine.

    Returns
    -------
    Exclusive
        ``B = orth(R_i / s_i)`` over the principal vectors with ``c_i <= tau``; ``U_r^T B`` is
        zero up to rounding.
    """
    angles = principal_angles(forget, retained)
    chosen = angles.cosines <= tau
    parts = angles.outside[chosen] / angles.sines[chosen, None]
    # Once more after the orthogonalisation, so that rounding leaves nothing inside.
    basis = orthonormal(retained.outside(orthonormal(retained.outside(parts))))
    return Exclusive(basis, angles.cosines, retained.rank)


def pairwise_exclusive(forget: FloatArray, clients: Sequence[FloatArray], tau: float) -> Exclusive:
    """Find directions whose cosine with every single retained client is at most ``tau``.

    Parameters
    ----------
    forget : ndarray, shape (r_f, d)
        Orthonormal rows.
    clients : sequence of ndarray, shape (r_k, d)
        Orthonormal rows of each retained client.
    tau : float
        Greatest cosine.

    Returns
    -------
    Exclusive
        Combinations of ``forget`` that are eigenvectors of ``sum_k U_f^T U_k U_k^T U_f`` with an
        eigenvalue of at most ``tau^2``: since the sum bounds each term, so is every squared
        cosine, of the vectors and of their combinations [D]. They are not orthogonal to the
        clients' updates, as the joint rule's are.
    """
    total = np.zeros((len(forget), len(forget)))
    for basis in clients:
        overlap = forget @ basis.T
        total += overlap @ overlap.T
    eigenvalues, vectors = np.linalg.eigh(total)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    chosen = vectors[:, eigenvalues <= tau**2]
    basis = orthonormal(chosen.T @ forget)
    cosines = np.sqrt(eigenvalues)[::-1]
    return Exclusive(basis, cosines, sum(len(basis) for basis in clients))


def decompose(
    forget: NDArray[np.floating],
    clients: Sequence[NDArray[np.floating]],
    settings: GsdSettings | None = None,
) -> Exclusive:
    """Decompose one block: the forgotten client's updates against the retained clients'.

    Parameters
    ----------
    forget : ndarray, shape (T_f, d)
        Updates, one a row.
    clients : sequence of ndarray, shape (T_k, d)
        Those of each retained client.
    settings : GsdSettings, optional

    Returns
    -------
    Exclusive

    Examples
    --------
    >>> both = np.eye(4)
    >>> decompose(both[:2], [both[1:3]]).basis.tolist()  # the second direction is shared
    [[1.0, 0.0, 0.0, 0.0]]
    """
    settings = settings or GsdSettings()
    basis = energy_basis(forget, settings.cut)
    if settings.rule == "pairwise":
        others = [energy_basis(updates, settings.cut) for updates in clients]
        return pairwise_exclusive(basis, others, settings.tau)
    return forget_exclusive(basis, retained_span(clients, settings), settings.tau)
