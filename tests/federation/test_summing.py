"""Sums of updates: what a batch is, and that pieces and threads change no bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from flwr_afuic.federation import chunks, summing
from flwr_afuic.federation.chunks import slices, spread, squared_norm
from flwr_afuic.federation.layout import Layout
from flwr_afuic.federation.summing import Scratch, WeightedSum


def summed(own: WeightedSum, size: int) -> np.ndarray:
    out = np.empty(size)
    for piece in slices(0, size):
        own.total(0, piece, out[piece], Scratch(size))
    return out


def a_sum(size: int) -> WeightedSum:
    return WeightedSum(Layout.of(["w"], [np.zeros(size, np.float32)]).specs)


def drawn(number: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=size).astype(np.float32) for _ in range(number)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 8)
    monkeypatch.setattr(summing, "CHUNK", 8)
    monkeypatch.setattr(chunks, "SHARED_FROM", 20)
    monkeypatch.setattr(chunks, "cores", lambda: 3)


def test_small_terms_survive_a_large_one() -> None:
    own = WeightedSum(Layout.of(["w"], [np.zeros(1)]).specs)
    for term in (1e16, 1.0, 1.0, -1e16):
        own.add([np.array([term])], 1.0)
    assert summed(own, 1) == 2.0


def test_a_batch_is_rounded_once() -> None:
    own, terms, weights = a_sum(5), drawn(9, 5), [0.1 * n for n in range(1, 10)]
    for term, weight in zip(terms, weights, strict=True):
        own.add([term], weight)
    exact = [
        sum(Fraction(float(term[i]) * weight) for term, weight in zip(terms, weights, strict=True))
        for i in range(5)
    ]
    np.testing.assert_array_equal(summed(own, 5), [float(value) for value in exact])


def test_large_models_are_summed_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "HELD_BYTES", 0)
    own, terms = a_sum(1000), drawn(40, 1000)
    kept = []
    for term in terms:
        own.add([term], 0.3)
        kept.append(own.bytes_kept)
    assert kept == [8000] * 40, "one float64 sum, and nothing else"
    plain = np.zeros(1000)
    for term in terms:
        plain += term.astype(np.float64) * 0.3
    np.testing.assert_array_equal(summed(own, 1000), plain)
    own.clear()
    own.add([terms[0]], 2.0)
    np.testing.assert_array_equal(summed(own, 1000), 2.0 * terms[0].astype(np.float64))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("held", [0, 400, 1 << 20])
def test_pieces_and_threads_change_no_bit(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "HELD_BYTES", held)
    terms = drawn(7, 50)

    def run() -> np.ndarray:
        own = a_sum(50)
        for number, term in enumerate(terms):
            own.add([term], 1.0 / (1 + number))
        return summed(own, 50)

    pieces = run()
    monkeypatch.setattr(chunks, "CHUNK", 1 << 15)
    monkeypatch.setattr(summing, "CHUNK", 1 << 15)
    monkeypatch.setattr(chunks, "SHARED_FROM", 1 << 20)
    assert run().tobytes() == pieces.tobytes()


@pytest.mark.usefixtures("small_pieces")
def test_every_piece_is_worked_on_once_and_errors_are_raised() -> None:
    seen = np.zeros(50, int)

    def work(pieces: Iterator[slice]) -> None:
        for piece in pieces:
            seen[piece] += 1

    spread(50, work)
    assert seen.tolist() == [1] * 50

    def fails(pieces: Iterator[slice]) -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        spread(50, fails)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite(bad: float) -> None:
    array = np.full((5, 10), 1e30, np.float32)  # its squares overflow float32
    assert math.sqrt(squared_norm(array)) == pytest.approx(1e30 * math.sqrt(50))
    array[3, 7] = bad
    assert not math.isfinite(squared_norm(array))
