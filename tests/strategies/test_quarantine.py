"""Malformed updates through the whole engine: named, left out, and never the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flwr_afuic.errors import FederationError
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from tests.strategies import sites

Change = Callable[[list[np.ndarray]], tuple[Any, Any]]


def first(arrays: list[np.ndarray], value: Any) -> list[np.ndarray]:
    return [value, *arrays[1:]]


def poisoned(arrays: list[np.ndarray], value: float) -> list[np.ndarray]:
    bad = arrays[0].copy()
    bad[0, 0] = value
    return first(arrays, bad)


MALFORMED: dict[str, tuple[Change, str]] = {
    "one array too few": (lambda a: (a[:-1], 10), "4 arrays where the model has 5"),
    "one array too many": (lambda a: ([*a, a[0]], 10), "6 arrays where the model has 5"),
    "no arrays": (lambda a: ([], 10), "arra"),  # Flower's NumPyClient sends a stand-in
    "wrong shape": (
        lambda a: (first(a, a[0].T.copy()), 10),
        "'layer.weight' has shape (3, 2), not (2, 3)",
    ),
    "wrong dtype": (
        lambda a: (first(a, a[0].astype(np.float64)), 10),
        "'layer.weight' has dtype float64, not float32",
    ),
    "counter of floats": (
        lambda a: ([*a[:4], a[4].astype(np.float64)], 10),
        "'norm.num_batches_tracked' has dtype float64",
    ),
    "NaN": (lambda a: (poisoned(a, np.nan), 10), "'layer.weight' holds NaN or infinity"),
    "infinity": (lambda a: (poisoned(a, np.inf), 10), "'layer.weight' holds NaN or infinity"),
    "NaN statistic": (
        lambda a: ([*a[:3], np.float32([np.nan, 1]), a[4]], 10),
        "'norm.running_var' holds NaN",
    ),
    "zero examples": (lambda a: (a, 0), "num_examples is 0"),
    "negative examples": (lambda a: (a, -5), "num_examples is -5"),
    "absurdly many examples": (lambda a: (a, 2**60), "no site holds that many"),
}


def misbehaving(change: Change, until: int = 10**9) -> sites.Behaviour:
    def behave(partition: int, call: int, arrays: list[np.ndarray]) -> Any:
        if call >= until:
            return None
        changed, examples = change(sites.learn(partition, arrays))
        return changed, examples, {"train_loss": 0.0}

    return behave


def run(
    behaviours: dict[int, sites.Behaviour],
    *,
    nodes: int = 3,
    dialect: str = "numpy",
    **options: Any,
) -> tuple[AsyncStrategy, Any]:
    grid = sites.grid_of(dialect, sites.Site(behaviours), nodes)
    rounds = options.pop("rounds", 8)
    settings = {"buffer_size": 2, "evaluate_every": 0, "poll_newcomers": False}
    engine = AsyncStrategy(dialect=dialect, **(settings | options))
    try:
        return engine, engine.start(grid, sites.initial(), num_rounds=rounds)
    finally:
        grid.close()


@pytest.mark.parametrize("dialect", ["numpy", "message"])
@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str, mode: str, dialect: str) -> None:
    change, reason = MALFORMED[name]
    engine, result = run({2: misbehaving(change)}, dialect=dialect, mode=mode)
    events = engine.journal.of_kind("quarantined")
    assert events
    assert engine.run.counters.quarantined == len(events)
    assert {event.site for event in events} == {"node-103"}
    assert reason in events[0].text
    assert "asked again in 1 s" in events[0].text
    assert "asked again in 2 s" in events[1].text
    merged = {site for entry in engine.journal.versions for site in entry.sites}
    assert merged == {"node-101", "node-102"}
    for array in sites.values(result.arrays).values():
        assert np.isfinite(array).all()
    # Targets are 1 and 2 at the sound sites.
    assert 0.5 < sites.values(result.arrays)["layer.weight"].mean() < 2.0
    assert all(record["train_loss"] > 0 for record in result.train_metrics_clientapp.values())


@pytest.mark.parametrize("dialect", ["numpy", "message"])
def test_a_norm_far_out_is_left_out_once_norms_are_known(dialect: str) -> None:
    def wild(partition: int, call: int, arrays: list[np.ndarray]) -> Any:
        if call < 3:
            return None
        learned = sites.learn(partition, arrays)
        return first(learned, learned[0] + np.float32(1e6)), 30, {}

    engine, result = run({2: wild}, dialect=dialect, rounds=12)
    events = engine.journal.of_kind("quarantined")
    assert events
    assert all("times the median" in event.text for event in events)
    assert np.abs(sites.values(result.arrays)["layer.weight"]).max() < 10


def test_a_site_that_mends_itself_is_taken_back() -> None:
    engine, _ = run({2: misbehaving(MALFORMED["NaN"][0], until=2)}, rounds=15)
    assert engine.run.counters.quarantined == 2
    assert engine.run.roster.of_node(103).failures == 0
    assert any("node-103" in entry.sites for entry in engine.journal.versions)


def test_one_malformed_reply_in_a_sync_round_leaves_the_round_to_the_others() -> None:
    engine, _ = run({2: misbehaving(MALFORMED["NaN"][0], until=1)}, mode="sync", rounds=3)
    assert engine.journal.versions[0].sites == ("node-101", "node-102")


@pytest.mark.parametrize("dialect", ["numpy", "message"])
def test_another_model_at_one_site(dialect: str) -> None:
    def other(partition: int, call: int, arrays: list[np.ndarray]) -> Any:
        return [np.zeros((7, 7), np.float32), *arrays[1:]], 10, {}

    engine, _ = run({0: other}, dialect=dialect)
    assert {site for _, site in engine.journal.accepted} == {"node-102", "node-103"}


@pytest.mark.parametrize("dialect", ["numpy", "message"])
def test_another_model_everywhere_names_the_sites(dialect: str) -> None:
    def other(partition: int, call: int, arrays: list[np.ndarray]) -> Any:
        return [np.zeros((7, 7), np.float32), *arrays[1:]], 10, {}

    with pytest.raises(FederationError) as caught:
        run({0: other, 1: other}, nodes=2, dialect=dialect, max_failures=3)
    for name in ("node-101", "node-102"):
        assert f"{name}: update of {name}: 'layer.weight' has shape (7, 7), not (2, 3)" in str(
            caught.value
        )
