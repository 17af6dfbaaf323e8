"""Static models of the symbols of a record, stored in it: a table, or two numbers of a curve.

Whichever is shorter in all, model and symbols together, is kept. Frequencies are computed
with additions, multiplications and powers of two alone, which every machine rounds alike: encoder
and decoder must agree to the last bit.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import RecordError
from flwr_afuic.history.packing import Reader, pack_number, pack_signed

Counts = NDArray[np.int64]
Weights = NDArray[np.float64]

_TABLE, _CURVE, _SINGLE = 0, 1, 2
# A table's byte is a logarithm in sixteenths of a bit below the most frequent symbol's.
_STEPS = 16
_SIXTEENTHS = np.array(
    [
        float.fromhex(text)
        for text in (
            "0x1.0000000000000p+0", "0x1.0b5586cf9890fp+0", "0x1.172b83c7d517bp+0",
            "0x1.2387a6e756238p+0", "0x1.306fe0a31b715p+0", "0x1.3dea64c123422p+0",
            "0x1.4bfdad5362a27p+0", "0x1.5ab07dd485429p+0", "0x1.6a09e667f3bcdp+0",
            "0x1.7a11473eb0187p+0", "0x1.8ace5422aa0dbp+0", "0x1.9c49182a3f090p+0",
            "0x1.ae89f995ad3adp+0", "0x1.c199bdd85529cp+0", "0x1.d5818dcfba487p+0",
            "0x1.ea4afa2a490dap+0",
        )
    ]
)  # fmt: skip
_MOST_SYMBOLS = 4096
_NEWTON_STEPS = 12


@dataclass(frozen=True)
class Model:
    """Frequencies of the symbols ``first``, ``first + 1``, ...

    Attributes
    ----------
    first : int
        Lowest symbol.
    weights : ndarray of float64, shape (n,)
        Unnormalised frequencies.
    data : bytes
        The model as the record stores it.
    """

    first: int
    weights: Weights
    data: bytes


def ideal_bits(counts: Counts, weights: Weights) -> float:
    """Return how many bits ``counts`` symbols take under a model with ``weights``."""
    used = counts > 0
    if not used.any():
        return 0.0
    if not np.all(weights[used] > 0):
        return math.inf
    total = float(weights.sum())
    return float(-(counts[used] * np.log2(weights[used] / total)).sum())


def fit_model(first: int, counts: Counts, center: float) -> Model:
    """Choose the model that makes symbols and model together shortest.

    Parameters
    ----------
    first : int
        Lowest symbol.
    counts : ndarray of int64, shape (n,)
        How often each symbol occurs; the first and the last at least once.
    center : float
        What is added to a symbol to get the coordinate it stands for: the curve is
        symmetric about coordinate zero.
    """
    if len(counts) == 1:
        data = bytes([_SINGLE]) + pack_signed(first)
        return Model(first, np.ones(1), data)
    best = _table(first, counts)
    curve = _fitted_curve(first, counts, center)
    if curve is not None and _size(curve, counts) < _size(best, counts):
        return curve
    return best


def _size(model: Model, counts: Counts) -> float:
    return 8 * len(model.data) + ideal_bits(counts, model.weights)


def _table(first: int, counts: Counts) -> Model:
    top = counts.max()
    with np.errstate(divide="ignore"):
        depth = np.rint(-_STEPS * np.log2(counts / top))
    codes = np.where(counts > 0, 255 - np.minimum(depth, 254), 0).astype(np.uint8)
    head = bytes([_TABLE]) + pack_signed(first) + pack_number(len(codes))
    return Model(first, _table_weights(codes), head + codes.tobytes())


def _table_weights(codes: NDArray[np.uint8]) -> Weights:
    depth = codes.astype(np.int64)
    weights = np.ldexp(_SIXTEENTHS[depth % _STEPS], depth // _STEPS)
    return np.where(codes > 0, weights, 0.0)


# ---- the curve exp(a |v| - b v^2): Gaussian, Laplace, and two humps where a threshold cut ------


def _distances(first: int, size: int, center: float) -> NDArray[np.int64]:
    """Twice the distance of each symbol's coordinate from zero, a whole number."""
    return np.abs(2 * (first + np.arange(size)) + round(2 * center))


def _curve_weights(linear: float, square: float, distances: NDArray[np.int64]) -> Weights:
    """Weights ``linear**t * square**(t*t)``, by products alone."""
    furthest = int(distances.max())
    ratios = np.full(furthest, square * square)
    if furthest:
        ratios[0] = linear * square
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        levels = np.concatenate([[1.0], np.cumprod(np.cumprod(ratios))])
    weights: Weights = levels[distances]
    return weights


def _fitted_curve(first: int, counts: Counts, center: float) -> Model | None:
    distances = _distances(first, len(counts), center)
    # Scaled, so that Newton's matrix is well conditioned whatever the width.
    scale = max(1.0, float(np.sqrt((counts * distances.astype(np.float64) ** 2).sum()
                                   / counts.sum())))  # fmt: skip
    basis = np.stack([distances / scale, -((distances / scale) ** 2)])
    target = basis @ counts / counts.sum()
    theta = np.array([0.0, 0.5])
    for _ in range(_NEWTON_STEPS):
        energy = theta @ basis
        chances = np.exp(energy - energy.max())
        chances /= chances.sum()
        mean = basis @ chances
        centred = basis - mean[:, None]
        matrix = (centred * chances) @ centred.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(matrix, target - mean)
        theta = theta + np.clip(step, -2.0, 2.0)
    linear, square = theta[0] / scale, theta[1] / scale**2
    if not (np.isfinite(theta).all() and abs(linear) < 80 and abs(square) < 80):
        return None
    data = struct.pack("<ff", math.exp(linear), math.exp(-square))
    rounded: tuple[float, float] = struct.unpack("<ff", data)
    weights = _curve_weights(rounded[0], rounded[1], distances)
    if not _usable(weights):
        return None
    head = bytes([_CURVE]) + pack_signed(first) + pack_number(len(counts))
    return Model(first, weights, head + data)


def _usable(weights: Weights) -> bool:
    return bool(np.isfinite(weights).all() and weights.max() > 1e-290 and weights.max() < 1e290)


def read_model(reader: Reader, center: float) -> Model:
    """Read a model back; ``center`` as :func:`fit_model` was given it.

    Raises
    ------
    RecordError
        If the bytes are no model.
    """
    start = reader.position
    kind, first = reader.take(1)[0], reader.signed()
    if kind == _SINGLE:
        return Model(first, np.ones(1), b"")
    size = reader.number()
    if kind not in (_TABLE, _CURVE) or not 2 <= size <= _MOST_SYMBOLS or abs(first) > 2**31:
        raise RecordError(
            f"the symbol model at byte {start} has kind {kind} and {size} symbols; the record is "
            "damaged"
        )
    if kind == _TABLE:
        codes: NDArray[Any] = np.frombuffer(reader.take(size), dtype=np.uint8)
        weights = _table_weights(codes)
    else:
        linear, square = struct.unpack("<ff", reader.take(8))
        weights = _curve_weights(linear, square, _distances(first, size, center))
    if not _usable(weights):
        raise RecordError("a symbol model of the record has no usable frequency; it is damaged")
    return Model(first, weights, b"")
