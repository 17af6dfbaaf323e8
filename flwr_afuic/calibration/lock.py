"""The relearning lock: the model may not move back along an erasure's direction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from flwr_afuic.calibration.blocks import BlockBasis
from flwr_afuic.calibration.pinned import PinnedSubspaces
from flwr_afuic.calibration.stacked import StackedDirections
from flwr_afuic.errors import ConfigError, LayoutError

_NO_WAY_OUT = 1e-12
"""Squared length of a unit direction within a pinned subspace: of it, only rounding is left."""

FloatArray = npt.NDArray[np.floating]


class RelearningLock:
    """Half-spaces that keep erased influence from coming back, one for each erasure.

    An erasure merged at ``o`` by the delta ``d`` allows the models ``w`` with
    ``<w - o, d / ||d||> >= 0``: whatever the retained sites learn, the model never undoes the
    erasure along its own direction. The direction is frozen at the merge and the half-space is
    cumulative; a rule that strips each update of its negative part would let positive noise pile
    up. Vectors are flat and hold trained arrays only (no norm statistics).

    Notes
    -----
    Ours; it stands beside the paper's invariance calibration (arXiv 2604.26809, Eq. 4). A lock of
    rank above one is several ``add`` calls with one key each, say ``"request/0"``,
    ``"request/1"``. Measured, rank above one bought nothing.

    Beside half-spaces it holds pinned subspaces, EASE's forget lock on the server
    (:class:`~flwr_afuic.calibration.pinned.PinnedSubspaces`): one projection meets both.

    Attributes
    ----------
    pinned : PinnedSubspaces
        Along these the model does not move at all.

    Examples
    --------
    >>> lock = RelearningLock()
    >>> lock.add("request", np.array([0.0, 2.0]), np.array([5.0, 1.0]))
    >>> lock.project(np.array([7.0, -1.0])).tolist()
    [7.0, 1.0]
    """

    def __init__(self) -> None:
        self._directions: dict[str, npt.NDArray[np.float64]] = {}
        self._offsets: dict[str, float] = {}
        self._basis: StackedDirections | None = None
        self.pinned = PinnedSubspaces()

    def pin(self, key: str, basis: BlockBasis, origin: FloatArray) -> None:
        """Keep the model, along a basis, where ``origin`` of shape (p,) stands."""
        self.pinned.add(key, basis, self._vector("origin", origin))

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the half-spaces held, sorted."""
        return tuple(sorted(self._directions))

    def __len__(self) -> int:
        return len(self._directions) + len(self.pinned)

    def __contains__(self, key: object) -> bool:
        return key in self._directions

    def add(self, key: str, direction: FloatArray, origin: FloatArray) -> None:
        """Lock one erasure's direction.

        Parameters
        ----------
        key : str
            Usually the request id.
        direction : ndarray, shape (p,)
            The delta that erased; of any length but zero.
        origin : ndarray, shape (p,)
            The model right after the merge.

        Raises
        ------
        ConfigError
            If the key is held already.
        LayoutError
            If the vectors differ in shape from each other or from those held, are not finite, or
            the direction is zero.
        """
        if key in self._directions:
            raise ConfigError(f"a lock with key {key!r} is held already; remove it first")
        vector = self._vector("direction", direction)
        start = self._vector("origin", origin)
        if vector.shape != start.shape:
            raise LayoutError(
                f"direction has shape {vector.shape} and origin {start.shape}; give both flat, "
                "with the same trained arrays"
            )
        # Scaled by its largest entry first: a tiny delta must not underflow when squared.
        largest = float(np.max(np.abs(vector)))
        if largest == 0.0:
            raise LayoutError(f"the direction of lock {key!r} is zero: nothing was erased")
        vector = vector / largest
        vector /= np.linalg.norm(vector)
        self._directions[key] = vector
        self._offsets[key] = float(start @ vector)
        self._basis = None

    def held(self, key: str) -> tuple[npt.NDArray[np.float64], float]:
        """Return one lock's unit direction, shape (p,), and ``<o, d^>``; for a checkpoint."""
        return self._directions[key], self._offsets[key]

    def restore(self, key: str, direction: FloatArray, offset: float) -> None:
        """Take up a lock exactly as :meth:`held` gave it; LayoutError as in :meth:`add`."""
        self._directions[key] = self._vector("direction", direction)
        self._offsets[key] = float(offset)
        self._basis = None

    def remove(self, key: str) -> None:
        """Drop one lock.

        Raises
        ------
        ConfigError
            If no lock has this key.
        """
        if key not in self._directions:
            raise ConfigError(f"no lock with key {key!r}; held: {', '.join(self.keys) or 'none'}")
        del self._directions[key]
        del self._offsets[key]
        self._basis = None

    def margins(self, w: FloatArray) -> dict[str, float]:
        """Signed distance of ``w``, shape (p,), to each half-space's edge; negative is outside."""
        vector = self._vector("w", w)
        return {k: float(vector @ self._directions[k]) - self._offsets[k] for k in self.keys}

    def project(self, w: FloatArray, *, into: FloatArray | None = None) -> FloatArray:
        """Nearest point to ``w`` that every lock allows.

        Parameters
        ----------
        w : ndarray, shape (p,)
        into : ndarray, shape (p,), dtype of ``w``, optional
            Where the point is written if it is not ``w``; may be a view of ``w``. Left as it is if
            an error is raised. By default new memory.

        Returns
        -------
        ndarray, shape (p,), dtype of ``w``
            ``w`` itself, the very same array, where nothing is violated, else ``into`` or a new
            array. Constraints hold up to the rounding of ``w``'s dtype.

        Raises
        ------
        LayoutError
            If the shape differs from the locks', or a value is not finite.
        ConfigError
            If the locks contradict each other (opposite directions, no point in common).
        """
        if not len(self):
            return w
        if len(self.pinned):
            found = self._project_pinned(w)
            if into is None or found is w:
                return found
            into[...] = found
            return into
        basis = self._stacked()
        vector = self._shaped("w", w)
        reached, length = basis.coordinates(vector)
        if not np.isfinite(length) and not np.all(np.isfinite(vector)):
            raise LayoutError("w holds values that are not finite")
        slack = reached - basis.offsets
        rounding = 8.0 * float(np.finfo(w.dtype).eps) * (1.0 + length)
        if bool(np.all(slack >= -rounding)):
            return w
        weights = _least_distance_weights(basis.gram, -slack, rounding)
        if weights is None:
            raise ConfigError(
                f"the locks {', '.join(basis.keys)} contradict each other: no model satisfies "
                "them all; remove one"
            )
        return basis.moved(vector, weights, np.empty_like(w) if into is None else into)

    def _project_pinned(self, w: FloatArray) -> FloatArray:
        """Project where subspaces are pinned, too."""
        vector = self._vector("w", w)
        rounding = 8.0 * float(np.finfo(w.dtype).eps) * (1.0 + float(np.linalg.norm(vector)))
        moved = max(self.pinned.drift(vector).values(), default=0.0) > rounding
        if moved:
            vector = vector.copy()
            self.pinned.settle(vector)
        keys = self.keys
        slack = np.array([self._directions[k] @ vector - self._offsets[k] for k in keys])
        if bool(np.all(slack >= -rounding)):
            return vector.astype(w.dtype) if moved else w
        directions = np.stack([self._directions[key] for key in keys])
        # A step that mends a half-space must not leave a pinned subspace.
        directions = np.stack([self.pinned.tangent(row) for row in directions])
        weights = _least_distance_weights(directions @ directions.T, -slack, rounding)
        if weights is None:
            raise ConfigError(
                f"the locks {', '.join(keys)} contradict each other: no model satisfies them all; "
                "remove one"
            )
        return (vector + weights @ directions).astype(w.dtype)

    def _stacked(self) -> StackedDirections:
        """Directions as the rows of one matrix, made once for each set of locks."""
        if self._basis is None:
            keys = self.keys
            rows = np.stack([self._directions[key] for key in keys])
            # The matrix is the one copy from now on.
            self._directions.update(zip(keys, rows, strict=True))
            self._basis = StackedDirections(
                keys, rows, np.array([self._offsets[key] for key in keys])
            )
        return self._basis

    def state_dict(self) -> dict[str, npt.NDArray[np.generic]]:
        """Half-spaces as arrays: ``keys`` (m,), ``directions`` (m, p) and ``offsets`` (m,)."""
        keys = self.keys
        size = len(self._directions[keys[0]]) if keys else 0
        return {
            "keys": np.array(keys, dtype=np.str_),
            "directions": np.array([self._directions[k] for k in keys]).reshape(len(keys), size),
            "offsets": np.array([self._offsets[k] for k in keys], dtype=np.float64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[np.generic]]) -> RelearningLock:
        """Restore a lock from ``state_dict``, bit for bit.

        Raises
        ------
        LayoutError
            If an array is missing, not finite, or its shape does not fit the others'.
        """
        missing = {"keys", "directions", "offsets"} - set(state)
        if missing:
            raise LayoutError(f"the lock's state lacks {', '.join(sorted(missing))}")
        keys = [str(key) for key in state["keys"]]
        directions = np.asarray(state["directions"], dtype=np.float64)
        offsets = np.asarray(state["offsets"], dtype=np.float64)
        fits = directions.ndim == 2 and len(directions) == len(keys) == len(set(keys))
        if not fits or offsets.shape != (len(keys),):
            raise LayoutError(
                f"the lock's state does not fit: {len(keys)} keys, directions "
                f"{directions.shape}, offsets {offsets.shape}"
            )
        if not (np.all(np.isfinite(directions)) and np.all(np.isfinite(offsets))):
            raise LayoutError("the lock's state holds values that are not finite")
        lock = cls()
        for key, direction, offset in zip(keys, directions, offsets, strict=True):
            lock._directions[key] = direction.copy()
            lock._offsets[key] = float(offset)
        return lock

    def _vector(self, name: str, value: FloatArray) -> npt.NDArray[np.float64]:
        vector = self._shaped(name, value)
        if not np.all(np.isfinite(vector)):
            raise LayoutError(f"{name} holds values that are not finite")
        return vector

    def _shaped(self, name: str, value: FloatArray) -> npt.NDArray[np.float64]:
        vector = np.asarray(value, dtype=np.float64)
        held = next(iter(self._directions.values()), None)
        if vector.ndim != 1 or vector.size == 0 or (held is not None and held.size != vector.size):
            expected = "(p,)" if held is None else f"({held.size},)"
            raise LayoutError(f"{name} must have shape {expected}, got {vector.shape}")
        return vector


def _least_distance_weights(
    gram: npt.NDArray[np.float64], needed: npt.NDArray[np.float64], rounding: float
) -> npt.NDArray[np.float64] | None:
    """Weights of the shortest step ``D' weights`` with ``gram @ weights >= needed``.

    Least-distance programming by non-negative least squares (Lawson and Hanson, Solving Least
    Squares Problems, ch. 23): exact for a singular Gram matrix, and it sees infeasibility.

    Parameters
    ----------
    gram : ndarray, shape (m, m)
        ``D D'`` of the unit directions, rows of D.
    needed : ndarray, shape (m,)
        Least progress along each direction; some entry is positive.
    rounding : float
        What may be missing without being a contradiction.

    Returns
    -------
    ndarray, shape (m,), or None
        Non-negative; None where the constraints contradict each other.
    """
    if len(needed) == 1 and gram[0, 0] > _NO_WAY_OUT:  # one erasure, as nearly always
        alone: npt.NDArray[np.float64] = needed / gram[0]
        return alone
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    root = vectors[:, kept] * np.sqrt(values[kept])  # gram = root @ root.T, shape (m, r)
    scale = float(np.max(np.abs(needed)))
    target = needed / scale
    system = np.vstack([root.T, target])
    unit = np.zeros(len(system))
    unit[-1] = 1.0
    # A feasible set of one point is empty by rounding: then again with a hair's breadth.
    hair = max(1e-9, 8.0 * rounding / scale)
    for slack in (0.0, hair, 100.0 * hair):
        system[-1] = target - slack
        weights, _ = nnls(system, unit)
        rest = 1.0 - float(system[-1] @ weights)
        if rest <= 0.0:
            continue
        found = np.asarray(weights, dtype=np.float64) / rest
        surplus = gram @ found - system[-1]
        # The optimality conditions, since near rounding the solver can stop far from it.
        if surplus.min() >= -1e-8 and abs(float(found @ surplus)) <= 1e-6 * (1.0 + found.sum()):
            return found * scale
    return None
