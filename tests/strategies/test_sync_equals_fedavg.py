"""``mode="sync"`` against Flower's own FedAvg, on the same Message-API clients."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

from flwr_afuic.app.local import LocalGrid
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from tests.strategies import sites

ROUNDS = 4
NODES = 5


def central(round_: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"norm": float(np.linalg.norm(sites.values(arrays)["layer.weight"]))})


def run_fedavg() -> tuple[sites.Site, object]:
    site = sites.Site()
    grid = LocalGrid(sites.message_app(site), NODES)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0, min_available_nodes=NODES)
    result = strategy.start(
        grid,
        sites.initial(),
        num_rounds=ROUNDS,
        train_config=ConfigRecord({"lr": 0.1}),
        evaluate_fn=central,
    )
    grid.close()
    return site, result


def run_sync(dialect: str = "message", **options: object) -> tuple[sites.Site, object]:
    site = sites.Site()
    grid = sites.grid_of(dialect, site, NODES)
    strategy = AsyncStrategy(mode="sync", dialect=dialect, min_available_nodes=NODES, **options)
    result = strategy.start(
        grid,
        sites.initial(),
        num_rounds=ROUNDS,
        train_config=ConfigRecord({"lr": 0.1}),
        evaluate_fn=central,
    )
    grid.close()
    assert strategy.run.counters.accepted == ROUNDS * NODES, strategy.journal.events
    return site, result


@pytest.mark.parametrize("dialect", ["message", "numpy"])
def test_arrays_equal(dialect: str) -> None:
    _, theirs = run_fedavg()
    _, ours = run_sync(dialect)
    expected, found = sites.values(theirs.arrays), sites.values(ours.arrays)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, err_msg=name)
    assert found[sites.COUNTER] == 3 * ROUNDS
    assert found[sites.COUNTER].dtype == np.int64
    assert found["layer.weight"].dtype == np.float32


@pytest.mark.parametrize(
    "field",
    ["train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"],
)
def test_metrics_equal_in_every_round(field: str) -> None:
    theirs = getattr(run_fedavg()[1], field)
    ours = getattr(run_sync()[1], field)
    assert sorted(ours) == sorted(theirs)
    for round_, record in theirs.items():
        for key, value in record.items():
            assert ours[round_][key] == pytest.approx(value, rel=1e-6), (round_, key)
        # FedAvg has no name for the loss; ours always has one.
        assert set(ours[round_]) - set(record) <= {"loss"}


def test_clients_are_told_the_same_round() -> None:
    def told(site: sites.Site) -> list[tuple[int, str, int]]:
        return sorted((p, kind, config["server-round"]) for p, kind, config in site.configs)

    theirs, ours = run_fedavg()[0], run_sync()[0]
    assert told(ours) == told(theirs)
    assert all(config["lr"] == 0.1 for _, kind, config in ours.configs if kind == "train")


def test_the_last_rounds_evaluation_is_there_and_of_the_last_model() -> None:
    _, result = run_sync("numpy")
    weight = sites.values(result.arrays)["layer.weight"]
    losses = [float(np.mean((weight - (p + 1)) ** 2)) for p in range(NODES)]
    shares = [sites.examples_of(p) // 2 for p in range(NODES)]
    expected = np.average(losses, weights=shares)
    assert result.evaluate_metrics_clientapp[ROUNDS]["loss"] == pytest.approx(expected, rel=1e-6)


def test_evaluate_every_second_round() -> None:
    _, result = run_sync(evaluate_every=2)
    assert sorted(result.evaluate_metrics_clientapp) == [2, 4]


def test_no_evaluation() -> None:
    site, result = run_sync(evaluate_every=0)
    assert result.evaluate_metrics_clientapp == {}
    assert {kind for _, kind, _ in site.configs} == {"train"}


def test_a_failing_site_leaves_the_round_to_the_others() -> None:
    # FedAvg leaves an error reply out of the average; so must we.
    def broken(partition: int, call: int, arrays: list) -> None:
        if call == 0:
            raise RuntimeError("disk full")

    results = []
    for dialect in ("fedavg", "message"):
        site = sites.Site({0: broken})
        grid = sites.grid_of("message", site, 3)
        if dialect == "fedavg":
            strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=3)
        else:
            strategy = AsyncStrategy(
                mode="sync", dialect="message", min_available_nodes=3, evaluate_every=0
            )
        results.append(strategy.start(grid, sites.initial(), num_rounds=1))
        grid.close()
    theirs, ours = (sites.values(result.arrays) for result in results)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-6, err_msg=name)
