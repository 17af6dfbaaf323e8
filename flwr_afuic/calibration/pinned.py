"""Pinned subspaces: along a forget-exclusive basis the model stays where the erasure left it.

The server's half of EASE's Projection with Forget Lock (arXiv 2605.00733): projecting every step
onto the complement of ``B``, ``theta + (I - B B^T) mean(Delta)`` [P]. Kept here as the affine
subspace ``B^T (theta - theta^) = 0`` through the model ``theta^`` right after the erasure, which
is the same, except that rounding does not pile up over versions [D].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.calibration.blocks import BlockBasis
from flwr_afuic.errors import ConfigError, LayoutError

FloatArray = NDArray[np.float64]

_DEPENDENT = 1e-9  # eigenvalue of a Gram matrix of unit rows below which they depend on each other


class PinnedSubspaces:
    """Affine subspaces the model may not leave, one for each erasure."""

    def __init__(self) -> None:
        self._bases: dict[str, BlockBasis] = {}
        self._coordinates: dict[str, FloatArray] = {}

    def __len__(self) -> int:
        return len(self._bases)

    def __contains__(self, key: object) -> bool:
        return key in self._bases

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the subspaces held, sorted."""
        return tuple(sorted(self._bases))

    def add(self, key: str, basis: BlockBasis, origin: NDArray[np.floating]) -> None:
        """Pin a basis where a model, shape (p,), stands; an older pin of the key is replaced.

        Raises
        ------
        LayoutError
            If the model's size is not the basis's, or a value is not finite.
        """
        vector = np.asarray(origin, dtype=np.float64)
        if vector.shape != (basis.blocks.size,) or not bool(np.isfinite(vector).all()):
            raise LayoutError(
                f"the model to pin at has shape {vector.shape}; it must be finite and of shape "
                f"({basis.blocks.size},)"
            )
        self.restore(key, basis, basis.coordinates(vector))

    def held(self, key: str) -> tuple[BlockBasis, FloatArray]:
        """Return a basis and the coordinates ``B^T theta^``, shape (rank,), it is pinned at."""
        if key not in self._bases:
            raise ConfigError(f"nothing is pinned as {key!r}; held: {', '.join(self.keys)}")
        return self._bases[key], self._coordinates[key]

    def restore(self, key: str, basis: BlockBasis, coordinates: FloatArray) -> None:
        """Take up a pin exactly as :meth:`held` gave it."""
        if coordinates.shape != (basis.rank,):
            raise LayoutError(f"{coordinates.shape} coordinates for a basis of rank {basis.rank}")
        self._bases[key], self._coordinates[key] = basis, np.asarray(coordinates, np.float64)

    def remove(self, key: str) -> None:
        """Let go of one; ConfigError if it is not held."""
        self.held(key)
        del self._bases[key], self._coordinates[key]

    def drift(self, vector: NDArray[np.floating]) -> dict[str, float]:
        """Return ``||B^T (theta - theta^)||`` of a model of shape (p,), by key."""
        return {
            key: float(np.linalg.norm(self._bases[key].coordinates(vector) - at))
            for key, at in sorted(self._coordinates.items())
        }

    def settle(self, vector: FloatArray) -> None:
        """Move a model, shape (p,), to the nearest one that every pin allows, in place."""
        self._correct(vector, self._coordinates)

    def tangent(self, direction: FloatArray) -> FloatArray:
        """Return the part of a direction, shape (p,), along which the pins leave a model free."""
        free = np.array(direction, dtype=np.float64)
        self._correct(free, {key: np.zeros_like(at) for key, at in self._coordinates.items()})
        return free

    def _correct(self, vector: FloatArray, wanted: dict[str, FloatArray]) -> None:
        if len(self._bases) == 1:
            ((key, basis),) = self._bases.items()
            basis.subtract(vector, basis.coordinates(vector) - wanted[key])
            return
        # Bases of several erasures may overlap: the shortest step that meets all of them.
        rows: dict[str, list[FloatArray]] = {}
        missing: dict[str, list[FloatArray]] = {}
        for key in self.keys:
            basis, start = self._bases[key], 0
            gap = wanted[key] - basis.coordinates(vector)
            for block, part in basis.rows.items():
                rows.setdefault(block, []).append(part)
                missing.setdefault(block, []).append(gap[start : start + len(part)])
                start += len(part)
        for block, parts in rows.items():
            stacked = np.concatenate(parts)
            inverse = np.linalg.pinv(stacked @ stacked.T, rcond=_DEPENDENT, hermitian=True)
            step = (inverse @ np.concatenate(missing[block])) @ stacked
            self._bases[self._owner(block)].blocks.add(vector, block, step)

    def _owner(self, block: str) -> str:
        return next(key for key, basis in self._bases.items() if block in basis.rows)
