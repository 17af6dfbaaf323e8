"""Flower's round interface: its privacy wrappers and mods around us, secure aggregation not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import LocalDpMod as OldLocalDpMod
from flwr.client.mod import secaggplus_mod
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError, FederationError
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.codec import to_record
from tests.strategies import sites

NODES = 3


def two_arrays() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(2, np.float32)), "b": Array(np.ones(3, np.float32))})


def learning(partition: int, call: int, arrays: list[np.ndarray]) -> Any:
    moved = [a + np.float32(0.5) * (np.float32(partition + 1) - a) for a in arrays]
    return moved, sites.examples_of(partition), {"train_loss": 1.0}


def grid_of(dialect: str = "message", mods: Any = None) -> sites.SpyGrid:
    site = sites.Site(dict.fromkeys(range(NODES), learning))
    return sites.SpyGrid(sites.APPS[dialect](site, mods), NODES)


def run(strategy: Any, *, mods: Any = None, dialect: str = "message", rounds: int = 3) -> Any:
    grid = grid_of(dialect, mods)
    try:
        return strategy.start(grid, two_arrays(), num_rounds=rounds)
    finally:
        grid.close()


def fedavg() -> FedAvg:
    return FedAvg(fraction_train=1.0, fraction_evaluate=1.0, min_available_nodes=NODES)


def ours(dialect: str = "message", **options: Any) -> AsyncStrategy:
    settings: dict[str, Any] = {"mode": "sync", "min_available_nodes": NODES}
    return AsyncStrategy(dialect=dialect, **(settings | options))


def assert_same(left: Any, right: Any) -> None:
    for name, array in sites.values(left.arrays).items():
        np.testing.assert_allclose(sites.values(right.arrays)[name], array, rtol=1e-5, err_msg=name)


# ---- Flower's wrappers ------------------------------------------------------------------------


@pytest.mark.parametrize("clipping", [0.3, 100.0])
def test_under_server_side_clipping_it_is_fedavg(clipping: float) -> None:
    results = [
        run(DifferentialPrivacyServerSideFixedClipping(inner, 0.0, clipping, NODES))
        for inner in (fedavg(), ours())
    ]
    assert_same(*results)
    assert sorted(results[1].train_metrics_clientapp) == [1, 2, 3]
    assert results[1].train_metrics_clientapp[1]["train_loss"] == pytest.approx(1.0)
    assert sorted(results[1].evaluate_metrics_clientapp) == [1, 2, 3]


def test_under_client_side_clipping_it_is_fedavg() -> None:
    results = [
        run(
            DifferentialPrivacyClientSideFixedClipping(inner, 0.0, 0.3, NODES),
            mods=[fixedclipping_mod],
        )
        for inner in (fedavg(), ours())
    ]
    assert_same(*results)
    assert np.abs(sites.values(results[1].arrays)["w"]).max() < 0.9, "it was clipped"


def test_noise_is_added_under_the_wrapper() -> None:
    plain = run(DifferentialPrivacyServerSideFixedClipping(ours(), 0.0, 1.0, NODES))
    noisy = run(DifferentialPrivacyServerSideFixedClipping(ours(), 1.0, 1.0, NODES))
    assert not np.allclose(*(sites.values(r.arrays)["w"] for r in (plain, noisy)))


def test_the_wrapper_drives_numpy_clients_too() -> None:
    # What FedAvg cannot do: NumPyClients behind a new-style strategy.
    wrapped = DifferentialPrivacyServerSideFixedClipping(ours("numpy"), 0.0, 0.3, NODES)
    reference = DifferentialPrivacyServerSideFixedClipping(ours(), 0.0, 0.3, NODES)
    assert_same(run(wrapped, dialect="numpy"), run(reference))


@pytest.mark.parametrize(
    ("dialect", "mod"),
    [("message", LocalDpMod), ("numpy", LocalDpMod), ("numpy", OldLocalDpMod)],
)
def test_local_differential_privacy_at_the_sites(dialect: str, mod: Any) -> None:
    # Sensitivity 0: it only clips, so the bound can be seen.
    result = run(ours(dialect), mods=[mod(0.01, 0.0, 1.0, 1e-5)], dialect=dialect)
    before, after = sites.values(two_arrays()), sites.values(result.arrays)
    moved = np.sqrt(
        sum(float(((after[n] - before[m]) ** 2).sum()) for n, m in zip(after, before, strict=True))
    )
    assert 0 < moved <= 3 * 0.01 * 1.001


def test_privacy_mods_and_clients_that_return_differences() -> None:
    class Deltas(sites.Site):
        def train(self, partition: int, arrays: list[np.ndarray], config: Any) -> Any:
            step = [np.full_like(a, 0.5) for a in arrays]
            if config[wire.WANT_DELTA]:
                return step, 10, {}
            return [a + s for a, s in zip(arrays, step, strict=True)], 10, {}

    grid = sites.SpyGrid(sites.message_app(Deltas(), [LocalDpMod(0.01, 0.0, 1.0, 1e-5)]), NODES)
    result = ours(client_deltas=False).start(grid, two_arrays(), num_rounds=1)
    grid.close()
    # Five entries, each .5 up, clipped to a norm of .01. Were the differences taken for
    # weights, the entries that start at 1 would go down.
    for name, before in sites.values(two_arrays()).items():
        moved = sites.values(result.arrays)[name] - before
        np.testing.assert_allclose(moved, 0.01 / np.sqrt(5), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("dialect", ["message", "numpy"])
def test_secure_aggregation_ends_in_an_error_that_names_it(dialect: str) -> None:
    # Its mod refuses every training message that comes from outside Flower's own workflow,
    # so no masked update reaches us: the run ends, with the model as it was.
    strategy = ours(dialect, max_failures=2)
    with pytest.raises(FederationError, match=r"secure aggregation.*remove its mod"):
        run(strategy, mods=[secaggplus_mod], dialect=dialect)
    assert strategy.run.version == 0


def test_a_masked_reply_never_enters_the_model() -> None:
    def masked(message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        for record in reply.content.array_records.values():
            record.clear()
        reply.content["secaggplus_configs"] = ConfigRecord({"masked_params": [b"x"]})
        return reply

    strategy = ours(max_failures=2)
    with pytest.raises(FederationError, match="0 arrays where the model has 2"):
        run(strategy, mods=[masked])
    assert strategy.run.counters.accepted == 0


# ---- the round interface itself ---------------------------------------------------------------


def reply_of(message: Message, arrays: list[np.ndarray], **metrics: Any) -> Message:
    message.metadata.__dict__["_message_id"] = "m"
    content = RecordDict(
        {"a": to_record(["w", "b"][: len(arrays)], arrays), "m": MetricRecord(metrics)}
    )
    return Message(content, reply_to=message)


def sent(strategy: AsyncStrategy) -> list[Message]:
    grid = grid_of()
    messages = list(strategy.configure_train(1, two_arrays(), ConfigRecord({"lr": 0.1}), grid))
    grid.close()
    return messages


def test_malformed_replies_are_left_out_of_a_round() -> None:
    strategy = ours()
    messages = sent(strategy)
    assert len(messages) == NODES
    assert messages[0].content["config"]["lr"] == 0.1
    good = [np.full(2, 3, np.float32), np.full(3, 5, np.float32)]
    bad = [np.float32([np.nan, 1]), good[1]]
    replies = [
        reply_of(messages[0], good, **{"num-examples": 10, "loss": 2.0}),
        reply_of(messages[0], bad, **{"num-examples": 10, "loss": 9.0}),
        reply_of(messages[0], good[:1], **{"num-examples": 10, "loss": 9.0}),
        reply_of(messages[0], good, **{"num-examples": 0, "loss": 9.0}),
        reply_of(messages[0], good, loss=9.0),
        Message(Error(2, "crash"), reply_to=messages[0]),
    ]
    arrays, metrics = strategy.aggregate_train(1, replies)
    np.testing.assert_array_equal(arrays["w"].numpy(), good[0])  # type: ignore[index]
    assert dict(metrics) == {"loss": 2.0}  # type: ignore[arg-type]
    assert strategy.aggregate_train(1, replies[1:]) == (None, None)


def test_aggregating_before_configuring() -> None:
    with pytest.raises(ConfigError, match="configure_train"):
        ours().aggregate_train(1, [])


def test_evaluations_are_averaged_and_the_empty_ones_left_out() -> None:
    strategy = ours()
    (message, *_) = sent(strategy)
    message.metadata.__dict__["_message_id"] = "m"

    def reply(**metrics: Any) -> Message:
        return Message(RecordDict({"m": MetricRecord(metrics)}), reply_to=message)

    replies = [
        reply(**{"num-examples": 10, "eval_loss": 1.0}),
        reply(**{"num-examples": 30, "eval_loss": 2.0}),
        reply(**{"num-examples": 0, "eval_loss": 9.0}),
        reply(**{"num-examples": -30, "eval_loss": 9.0}),
        reply(eval_loss=9.0),
        Message(Error(2, "crash"), reply_to=message),
    ]
    record = strategy.aggregate_evaluate(1, replies)
    assert dict(record) == {"loss": 1.75, "eval_loss": 1.75}  # type: ignore[arg-type]
    assert strategy.aggregate_evaluate(1, replies[2:]) is None
    assert strategy.aggregate_evaluate(1, []) is None
    no_loss = strategy.aggregate_evaluate(1, [reply(**{"num-examples": 10, "accuracy": 0.5})])
    assert dict(no_loss) == {"accuracy": 0.5}  # type: ignore[arg-type]


def test_configure_evaluate_keeps_evaluate_every() -> None:
    grid = grid_of()
    strategy = ours(evaluate_every=2)
    counts = [
        len(list(strategy.configure_evaluate(r, two_arrays(), ConfigRecord(), grid)))
        for r in (1, 2, 3, 4)
    ]
    grid.close()
    assert counts == [0, NODES, 0, NODES]


def test_a_client_is_never_flowers_numpy_client_by_accident() -> None:
    # The drop-in promise: a NumPyClient behind Flower's FedAvg fails, behind ours it trains.
    assert issubclass(sites.PlainClient, NumPyClient)
    grid = grid_of("numpy")
    theirs = fedavg().start(grid, two_arrays(), num_rounds=1)
    assert len(theirs.train_metrics_clientapp) == 0
    result = ours("numpy").start(grid, two_arrays(), num_rounds=1)
    grid.close()
    assert 1 in result.train_metrics_clientapp
