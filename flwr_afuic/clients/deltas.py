"""Models as differences: what a site returns of a training or an unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flwr_afuic.federation.layout import ArrayKind, Arrays, Vector


def guess_kinds(arrays: Arrays) -> list[ArrayKind]:
    """Take every floating-point array for trained."""
    return ["trained" if np.issubdtype(a.dtype, np.floating) else "counter" for a in arrays]


def difference(after: Arrays, before: Arrays, kinds: Sequence[ArrayKind]) -> Arrays:
    """Subtract trained arrays; statistics and counters are values, not differences."""
    return [
        np.asarray(new - old, dtype=old.dtype) if kind == "trained" else np.array(new)
        for new, old, kind in zip(after, before, kinds, strict=True)
    ]


@dataclass(frozen=True)
class ErasureDelta:
    """The delta of an unlearning as a vector, and the way back to arrays.

    Attributes
    ----------
    snapshot : list of ndarray
        The model that was unlearned from.
    kinds : sequence of str
        What each array is.
    moved : sequence of bool
        Which arrays the vector covers.
    vector : ndarray of shape (p,)
        Unlearned minus snapshot.
    """

    snapshot: Arrays
    kinds: Sequence[ArrayKind]
    moved: Sequence[bool]
    vector: Vector

    @classmethod
    def of(
        cls, unlearned: Arrays, snapshot: Arrays, kinds: Sequence[ArrayKind] | None
    ) -> ErasureDelta:
        """Take the difference of two models.

        Where kinds are unknown, arrays the unlearning left as they were are taken for
        statistics, which noise would spoil, and are not covered.
        """
        known = list(kinds) if kinds is not None else guess_kinds(snapshot)
        moved = [kind == "trained" for kind in known]
        if kinds is None:
            pairs = zip(moved, unlearned, snapshot, strict=True)
            changed = [trained and not np.array_equal(new, old) for trained, new, old in pairs]
            moved = changed if any(changed) else moved
        vector = _flat(unlearned, moved) - _flat(snapshot, moved)
        return cls(snapshot, known, moved, vector)

    @classmethod
    def of_gradient(
        cls, gradient: Arrays, model: Arrays, kinds: Sequence[ArrayKind] | None
    ) -> ErasureDelta:
        """Take a gradient at a model in place of a difference."""
        known = list(kinds) if kinds is not None else guess_kinds(model)
        moved = [kind == "trained" for kind in known]
        return cls(model, known, moved, _flat(gradient, moved))

    def norm(self, arrays: Arrays) -> float:
        """Norm of a delta that travels."""
        return float(np.linalg.norm(_flat(arrays, self.moved)))

    @property
    def scale(self) -> float:
        """Norm of the snapshot's arrays that the vector covers."""
        return float(np.linalg.norm(_flat(self.snapshot, self.moved)))

    def arrays(self, vector: Vector) -> Arrays:
        """Write a vector as the delta that travels.

        The server takes nothing but trained arrays from it. Statistics and counters are the
        snapshot's, whatever the unlearning made of them: they would carry the erased data.
        """
        result, start = [], 0
        for old, kind, moved in zip(self.snapshot, self.kinds, self.moved, strict=True):
            if moved:
                part = vector[start : start + old.size]
                result.append(part.reshape(old.shape).astype(old.dtype))
                start += old.size
            else:
                result.append(np.zeros_like(old) if kind == "trained" else np.array(old))
        return result

    def model(self, delta: Arrays) -> Arrays:
        """Add a delta that travels to the snapshot: the model the server will think of."""
        return [
            np.asarray(old + new, dtype=old.dtype) if kind == "trained" else np.array(old)
            for old, new, kind in zip(self.snapshot, delta, self.kinds, strict=True)
        ]


def _flat(arrays: Arrays, chosen: Sequence[bool]) -> Vector:
    parts = [
        np.asarray(array, dtype=np.float64).ravel()
        for array, wanted in zip(arrays, chosen, strict=True)
        if wanted
    ]
    return np.concatenate([*parts, np.zeros(0)])
