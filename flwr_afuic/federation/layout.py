"""The shape of a federation's model: names, shapes, dtypes, and what each array is.

Flower's NumPyClient path loses array names, so the order of arrays is the contract
between server and sites, and the server must know which arrays are trained, which are
statistics (BatchNorm mean and variance) and which are counters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import LayoutError
from flwr_afuic.federation.chunks import squared_norm

Arrays: TypeAlias = list[NDArray[Any]]
Vector: TypeAlias = NDArray[np.float64]
ArrayKind = Literal["trained", "statistic", "counter"]

_STATISTIC_SUFFIXES = ("running_mean", "running_var")
_COUNTER_SUFFIXES = ("num_batches_tracked",)
_SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class ArraySpec:
    """Name, shape, dtype and kind of one model array."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: ArrayKind

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def infer_kind(name: str, array: NDArray[Any]) -> ArrayKind:
    """Tell what an array is from its name and dtype.

    Integers and ``num_batches_tracked`` are counters, ``running_mean`` and
    ``running_var`` (PyTorch's BatchNorm names) are statistics, all else is trained.
    """
    leaf = name.rsplit(".", 1)[-1]
    if leaf in _COUNTER_SUFFIXES or not np.issubdtype(array.dtype, np.floating):
        return "counter"
    return "statistic" if leaf in _STATISTIC_SUFFIXES else "trained"


class Layout:
    """What a model's arrays must look like, in order.

    Parameters
    ----------
    specs : sequence of ArraySpec
        One entry per array, in the order in which arrays travel.

    Raises
    ------
    LayoutError
        If there is no trained array, or two arrays share a name.
    """

    def __init__(self, specs: Sequence[ArraySpec]) -> None:
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise LayoutError(f"array names must be unique, got {names}")
        if not any(spec.kind == "trained" for spec in specs):
            raise LayoutError(
                f"none of the {len(specs)} arrays is trained (a floating-point array that is no "
                "statistic); pass the model's initial arrays to start()"
            )
        self.specs = tuple(specs)

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        arrays: Sequence[NDArray[Any]],
        kinds: Mapping[str, ArrayKind] | None = None,
    ) -> Layout:
        """Read the layout off a model's initial arrays.

        Parameters
        ----------
        names : iterable of str
            Array names, as long as ``arrays``.
        arrays : sequence of ndarray
            The model's arrays.
        kinds : mapping of str to {"trained", "statistic", "counter"}, optional
            Overrides of what names and dtypes suggest.
        """
        known = dict(kinds or {})
        for name, kind in known.items():
            if kind not in get_args(ArrayKind):
                raise LayoutError(
                    f"array_kinds calls '{name}' {kind!r}; use one of "
                    f"{', '.join(get_args(ArrayKind))}"
                )
        specs = [
            ArraySpec(
                name=name,
                shape=tuple(int(n) for n in array.shape),
                dtype=str(array.dtype),
                kind=known.pop(name) if name in known else infer_kind(name, array),
            )
            for name, array in zip(names, arrays, strict=True)
        ]
        if known:
            raise LayoutError(f"array_kinds names arrays the model lacks: {sorted(known)}")
        return cls(specs)

    @property
    def names(self) -> list[str]:
        """Array names, in order."""
        return [spec.name for spec in self.specs]

    @property
    def trained_names(self) -> list[str]:
        """Names of the trained arrays, in order."""
        return [spec.name for spec in self.specs if spec.kind == "trained"]

    @property
    def trained_size(self) -> int:
        """Number of trained entries, the length of :meth:`flatten`'s vector."""
        return sum(spec.size for spec in self.specs if spec.kind == "trained")

    def problems(self, arrays: Sequence[NDArray[Any]]) -> list[str]:
        """List everything in which ``arrays`` differ from the layout."""
        return self._looked_at(arrays)[0]

    def _looked_at(self, arrays: Sequence[NDArray[Any]]) -> tuple[list[str], list[float]]:
        """Return the problems, and the squared norm of each array (0 for integers)."""
        if len(arrays) != len(self.specs):
            return [f"{len(arrays)} arrays where the model has {len(self.specs)}"], []
        found, squares = [], []
        for spec, array in zip(self.specs, arrays, strict=True):
            square = 0.0
            if tuple(array.shape) != spec.shape:
                found.append(f"'{spec.name}' has shape {tuple(array.shape)}, not {spec.shape}")
            elif str(array.dtype) != spec.dtype:
                found.append(f"'{spec.name}' has dtype {array.dtype}, not {spec.dtype}")
            elif array.dtype.kind in "fc":
                square = squared_norm(array)
                # The squares of finite float64 entries may overflow.
                if not math.isfinite(square) and not np.isfinite(array).all():
                    found.append(f"'{spec.name}' holds NaN or infinity")
            squares.append(square)
        return found, squares

    def check(self, arrays: Sequence[NDArray[Any]], origin: str) -> list[float]:
        """Raise :class:`LayoutError` unless ``arrays`` fit, naming the first problems.

        Returns
        -------
        list of float
            Sum of squares of each array, which the look at every entry gives for nothing; 0 for
            integers.
        """
        found, squares = self._looked_at(arrays)
        if found:
            more = len(found) - _SHOWN_PROBLEMS
            tail = f" (and {more} more)" if more > 0 else ""
            raise LayoutError(f"{origin}: {'; '.join(found[:_SHOWN_PROBLEMS])}{tail}")
        return squares

    def flatten(self, arrays: Sequence[NDArray[Any]]) -> Vector:
        """Concatenate the trained arrays into one float64 vector of shape ``(p,)``."""
        parts = [
            np.asarray(array, dtype=np.float64).ravel()
            for spec, array in zip(self.specs, arrays, strict=True)
            if spec.kind == "trained"
        ]
        return np.concatenate(parts)

    def trained(self, arrays: Sequence[NDArray[Any]]) -> Arrays:
        """Return the trained arrays alone, in order."""
        pairs = zip(self.specs, arrays, strict=True)
        return [np.asarray(array) for spec, array in pairs if spec.kind == "trained"]

    def with_trained(self, vector: Vector, arrays: Sequence[NDArray[Any]]) -> Arrays:
        """Replace the trained arrays by the entries of ``vector``; copy the others.

        Parameters
        ----------
        vector : ndarray, shape (p,)
            As :meth:`flatten` gives it.
        arrays : sequence of ndarray
            Where statistics and counters are taken from.
        """
        result: Arrays = []
        start = 0
        for spec, array in zip(self.specs, arrays, strict=True):
            if spec.kind == "trained":
                part = vector[start : start + spec.size]
                result.append(part.reshape(spec.shape).astype(spec.dtype))
                start += spec.size
            else:
                result.append(np.array(array, dtype=spec.dtype, copy=True))
        return result

    def update_between(
        self, after: Sequence[NDArray[Any]], before: Sequence[NDArray[Any]]
    ) -> Arrays:
        """Express ``after`` as an update against ``before``.

        Trained arrays become differences; statistics and counters keep their values,
        because a statistic is averaged, never added up (a variance could turn negative).
        """
        return [
            np.asarray(new - old, dtype=spec.dtype) if spec.kind == "trained" else np.array(new)
            for spec, new, old in zip(self.specs, after, before, strict=True)
        ]
