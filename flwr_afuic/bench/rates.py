"""The codec by itself: bits on a Gaussian source against the limit R(D), and its speed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.history.codec import CodecSettings, decode_record, encode_update
from flwr_afuic.history.dither import dequantize, dither_key, quantize
from flwr_afuic.history.entropy import reader_for, writer_named
from flwr_afuic.history.lattices import LATTICES, Lattice
from flwr_afuic.history.symbols import read_points, write_points
from flwr_afuic.seeds import derive_seed

DISTORTIONS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
NAMED = (0.5, 0.1, 0.01)
"""Distortions that the figures in the JSON name."""

_ENTRIES = 800_000
_SPEED_SHAPES = ((64, 32, 3, 3), (64,), (1024, 950), (950,), (10, 950), (10,))
_SPEED_TRIES = 7


@dataclass(frozen=True)
class Point:
    """One lattice at one distortion.

    Attributes
    ----------
    lattice : str
        Its name.
    distortion : float
        What was asked for: mean squared error over variance.
    found : float
        What came out.
    bits : float
        Bytes of the entropy coder, in bits an entry.
    entropy : float or None
        Empirical entropy of the symbols where they are single integers, as those of Z are.
    limit : float
        R(D), the least any code can do, in bits an entry.
    """

    lattice: str
    distortion: float
    found: float
    bits: float
    entropy: float | None
    limit: float


def rate_distortion(seed: int = 0, entries: int = _ENTRIES) -> list[Point]:
    """Encode a unit Gaussian with every lattice at every distortion."""
    values = np.random.default_rng(derive_seed(seed, "rates")).normal(size=entries)
    source = values.astype(np.float32)
    return [
        _point(source, lattice, distortion)
        for distortion in DISTORTIONS
        for lattice in LATTICES.values()
    ]


def _point(values: NDArray[np.float32], lattice: Lattice, distortion: float) -> Point:
    key = dither_key(0, 0, "rates")
    step = math.sqrt(distortion / lattice.second_moment)
    points = quantize(values, step, lattice, key, 0)
    writer = writer_named("auto")
    write_points(points, lattice, writer)
    data = writer.finish()
    again = read_points(len(points.cosets), lattice, reader_for(writer.code, data))
    back = dequantize(again, len(values), step, lattice, key, 0)
    error = float(np.mean(np.square(back.astype(np.float64) - values)))
    return Point(
        lattice.name,
        distortion,
        error / float(np.mean(np.square(values, dtype=np.float64))),
        8 * len(data) / len(values),
        _entropy(points.floors[0]) if lattice.dimension == 1 else None,
        0.5 * math.log2(1 / distortion),
    )


def _entropy(symbols: NDArray[np.int32]) -> float:
    shares = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(shares * np.log2(shares)).sum())


@dataclass(frozen=True)
class Speed:
    """How fast the codec is at its default setting, in MB of float32 input per second of one core.

    Attributes
    ----------
    encode, decode : float
        Best of several tries, by the processor time of this process.
    load : float
        How many processes wanted a core meanwhile (one-minute average).
    """

    encode: float
    decode: float
    load: float


def speed(seed: int = 0, codec: CodecSettings | None = None) -> Speed:
    """Encode and decode one update of about a million parameters, heavy-tailed as updates are."""
    codec = codec or CodecSettings()
    rng = np.random.default_rng(derive_seed(seed, "speed"))
    arrays = [rng.laplace(size=shape).astype(np.float32) for shape in _SPEED_SHAPES]
    size = sum(array.nbytes for array in arrays) / 1e6
    key = dither_key(0, 0, "speed")
    data = encode_update(arrays, codec, key)
    encode = _best(lambda: encode_update(arrays, codec, key))
    decode = _best(lambda: decode_record(data))
    return Speed(size / encode, size / decode, os.getloadavg()[0])


def _best(work: Callable[[], Any]) -> float:
    """Return the least processor seconds that some work took."""
    times = []
    for _ in range(_SPEED_TRIES):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)
