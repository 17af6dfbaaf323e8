"""The asynchronous engine on real ClientApps: merges, staleness, rounds, evaluation, memory."""

from __future__ import annotations

import math
import threading
import types
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError, LayoutError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from tests.strategies import sites
from tests.strategies.realtime import RealTimeGrid

DIALECTS = ["numpy", "message"]


def start(
    site: sites.Site | None = None,
    *,
    nodes: int = 2,
    dialect: str = "numpy",
    initial: ArrayRecord | None = None,
    rounds: int = 3,
    factors: dict[int, float] | None = None,
    threads: int = 2,
    start_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[AsyncStrategy, Any, sites.SpyGrid]:
    """Run a federation in which a training takes one virtual second, times the factor."""
    settings = {"evaluate_every": 0, "poll_newcomers": False, "buffer_size": 1, "server_lr": 1.0}
    grid = sites.grid_of(dialect, site or sites.Site(), nodes, factors=factors, threads=threads)
    strategy = AsyncStrategy(dialect=dialect, **(settings | options))
    arrays = sites.small() if initial is None else initial
    result = strategy.start(grid, arrays, num_rounds=rounds, **(start_options or {}))
    grid.close()
    return strategy, result, grid


def weight(result: Any) -> float:
    array = sites.values(result.arrays)["w"]
    assert array[0] == array[1]
    return float(array[0])


# ---- merges and staleness -----------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_fedasync_by_hand(dialect: str) -> None:
    strategy, result, _ = start(dialect=dialect, rounds=2, factors={1: 3.5})
    # Site 0 (target 1) merges at 1, 2 and 3 s: 0 -> .5 -> .75 -> .875. Site 1 (target 2)
    # started from version 0 and returns a step of 1 at 3.5 s, three versions late: times .5.
    entries = strategy.journal.versions
    assert [(e.version, e.round, e.time) for e in entries] == [
        (1, 0, 1.0),
        (2, 1, 2.0),
        (3, 1, 3.0),
        (4, 2, 3.5),
    ]
    assert [e.sites for e in entries[-2:]] == [("node-101",), ("node-102",)]
    assert weight(result) == 1.375


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"staleness": "constant"}, 1.0),
        ({"staleness": "polynomial", "staleness_a": 1.0}, 0.25),
        ({"staleness": "hinge", "staleness_a": 0.5, "staleness_b": 1.0}, 0.5),
        ({"staleness": "constant", "server_lr": 0.5}, None),
    ],
    ids=str,
)
def test_staleness_rules_and_server_lr(options: dict[str, Any], factor: float | None) -> None:
    _, result, _ = start(rounds=2, factors={1: 3.5}, **options)
    if factor is None:
        # 0 -> .25 -> .4375 -> .578125, then half of site 1's step of 1.
        assert weight(result) == 1.078125
    else:
        assert weight(result) == 0.875 + factor


def test_server_lr_defaults_to_half_a_step_where_updates_are_stale() -> None:
    assert AsyncStrategy().server_lr == 0.5
    assert AsyncStrategy(mode="sync").server_lr == 1.0
    assert AsyncStrategy(server_lr=0.7).server_lr == 0.7


def test_fedbuff_by_hand() -> None:
    strategy, result, _ = start(rounds=2, buffer_size=2, factors={1: 3.5})
    # Site 0 returns .5 from version 0 at 1 and 2 s: merged to .5. Then .25 from version 1,
    # and site 1 its step of 1 from version 0 with twice the examples, one version late.
    assert [e.time for e in strategy.journal.versions] == [2.0, 3.5]
    assert strategy.journal.versions[1].sites == ("node-101", "node-102")
    step = (10 * 0.25 + 20 * 1.0 / math.sqrt(2)) / 30
    assert weight(result) == pytest.approx(0.5 + step, rel=1e-7)


def test_updates_that_are_too_stale_are_dropped_and_counted() -> None:
    strategy, result, _ = start(rounds=3, factors={1: 3.5}, max_staleness=2)
    assert strategy.run.counters.stale == 1
    assert strategy.run.counters.accepted == 6
    (event,) = strategy.journal.of_kind("stale")
    assert (event.site, event.time) == ("node-102", 3.5)
    assert "staleness 3 exceeds 2" in event.text
    assert all(e.sites == ("node-101",) for e in strategy.journal.versions)
    assert weight(result) == 1 - 0.5**6
    assert strategy.run.roster.of_node(102).failures == 0, "being slow is no failure"


def test_max_staleness_zero_takes_fresh_updates() -> None:
    strategy, _, _ = start(nodes=1, rounds=4, max_staleness=0, min_available_nodes=1)
    assert strategy.run.counters.accepted == 4


@pytest.mark.parametrize("dialect", DIALECTS)
def test_statistics_and_counters_survive_asynchrony(dialect: str) -> None:
    _, result, _ = start(
        nodes=4, dialect=dialect, initial=sites.initial(), rounds=6, buffer_size=2,
        factors={0: 1.0, 1: 1.3, 2: 2.1, 3: 4.7},
    )  # fmt: skip
    arrays = sites.values(result.arrays)
    assert list(arrays) == list(sites.values(sites.initial()))
    assert arrays[sites.COUNTER].dtype == np.int64
    assert arrays[sites.COUNTER].shape == ()
    assert 3 <= arrays[sites.COUNTER] <= 3 * 24
    assert (arrays["norm.running_var"] >= 1).all()
    assert (arrays["norm.running_var"] <= 3).all()
    assert all(np.isfinite(a).all() for a in arrays.values())


# ---- rounds, results, evaluation ------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("buffer_size", [1, 3])
def test_results_are_keyed_by_rounds(dialect: str, buffer_size: int) -> None:
    strategy, result, _ = start(
        nodes=3, dialect=dialect, rounds=5, buffer_size=buffer_size, evaluate_every=1
    )
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3, 4, 5]
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2, 3, 4, 5]
    assert strategy.run.round == 5
    assert strategy.run.counters.accepted == 15
    assert strategy.run.version == 15 // buffer_size
    assert "train_loss" in result.train_metrics_clientapp[1]


def test_the_last_evaluation_hears_every_site_and_the_last_model() -> None:
    _, result, _ = start(nodes=3, rounds=4, evaluate_every=1, factors={2: 9.0})
    record = result.evaluate_metrics_clientapp[4]
    shares = [sites.examples_of(p) // 2 for p in range(3)]
    assert record["partition"] == pytest.approx(np.average([0, 1, 2], weights=shares))
    losses = [(weight(result) - (p + 1)) ** 2 for p in range(3)]
    assert record["loss"] == pytest.approx(np.average(losses, weights=shares), rel=1e-5)


def test_the_ending_is_bounded() -> None:
    _, result, grid = start(
        nodes=3, rounds=4, evaluate_every=1, factors={2: 1000.0}, drain_seconds=5.0
    )
    assert grid.clock.now() < 30
    assert 4 in result.evaluate_metrics_clientapp
    assert result.evaluate_metrics_clientapp[4]["partition"] == pytest.approx(2 / 3)


def test_evaluate_every_counts_crossed_rounds() -> None:
    # Six updates of two sites are three rounds at once; every second round falls inside.
    _, result, _ = start(rounds=9, buffer_size=6, evaluate_every=2)
    assert sorted(result.evaluate_metrics_clientapp) == [3, 6, 9]
    _, result, _ = start(rounds=6, evaluate_every=4)
    assert sorted(result.evaluate_metrics_clientapp) == [4]


def test_metrics_are_averaged_over_those_who_report_them() -> None:
    def extra(partition: int, call: int, arrays: list[np.ndarray]) -> Any:
        return sites.learn(partition, arrays), sites.examples_of(partition), {"dice": 0.8}

    _, result, _ = start(sites.Site({1: extra}), mode="sync", rounds=1)
    record = result.train_metrics_clientapp[1]
    assert record["dice"] == pytest.approx(0.8)
    assert record["train_loss"] == 1.0


def test_evaluate_fn_sees_every_round_from_zero() -> None:
    seen: list[tuple[int, float]] = []

    def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord | None:
        seen.append((round_, float(sites.values(arrays)["w"][0])))
        return None if round_ == 1 else MetricRecord({"w": seen[-1][1]})

    _, result, _ = start(rounds=2, factors={1: 3.5}, start_options={"evaluate_fn": evaluate})
    assert seen == [(0, 0.0), (1, 0.75), (2, 1.375)]
    assert sorted(result.evaluate_metrics_serverapp) == [0, 2]
    assert result.evaluate_metrics_serverapp[2]["w"] == 1.375


def test_evaluate_fn_holds_up_no_client() -> None:
    enough = threading.Event()

    def counting(partition: int, call: int, arrays: list[np.ndarray]) -> None:
        if call == 10:
            enough.set()

    def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord:
        # Were the loop to wait for this, the clients would never train ten times.
        return MetricRecord({"trained_meanwhile": int(round_ > 0 or enough.wait(20))})

    grid = RealTimeGrid(sites.numpy_app(sites.Site({0: counting})), 2)
    strategy = AsyncStrategy(buffer_size=1, evaluate_every=0, poll_interval=0.001)
    result = strategy.start(grid, sites.small(), num_rounds=15, evaluate_fn=evaluate)
    grid.close()
    assert result.evaluate_metrics_serverapp[0]["trained_meanwhile"] == 1
    assert sorted(result.evaluate_metrics_serverapp) == list(range(16))


def test_the_longer_nothing_happens_the_less_often_it_looks() -> None:
    grid = RealTimeGrid(sites.numpy_app(sites.Site()), 2)
    strategy = AsyncStrategy(buffer_size=1, evaluate_every=0, poll_interval=0.05)
    strategy.start(grid, sites.small(), num_rounds=2)
    grid.close()
    run = strategy.run
    run._last_event = 1000.0

    def waits(now: float) -> float:
        run.clock = types.SimpleNamespace(virtual=False, now=lambda: now)
        return run.idle_seconds

    times = (1000.0, 1000.4, 1002.0, 1005.0, 1600.0)
    assert [waits(now) for now in times] == pytest.approx([0.05, 0.05, 0.2, 0.5, 1.0])
    run.settings.poll_interval = 3.0
    assert waits(1600.0) == 3.0


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_what_evaluate_fn_raises_reaches_the_caller_and_loses_no_model(mode: str) -> None:
    def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord:
        if round_ == 2:
            raise ZeroDivisionError("no test images")
        return MetricRecord({"ok": 1})

    grid = sites.grid_of("numpy", sites.Site(), 2)
    strategy = AsyncStrategy(mode=mode, evaluate_every=0)
    with pytest.raises(ZeroDivisionError, match="no test images"):
        strategy.start(grid, sites.small(), num_rounds=3, evaluate_fn=evaluate)
    assert weight(strategy) > 0
    # The grid's clock is left as it was found, and the next run on it works.
    assert len(grid.clock._sources) == 1
    assert weight(AsyncStrategy(mode=mode).start(grid, sites.small(), num_rounds=1)) > 0
    grid.close()


def test_stop_when_ends_early() -> None:
    strategy, result, _ = start(rounds=100, stop_when=lambda run: run.version >= 3)
    assert strategy.run.version == 3
    assert strategy.run.round == 1
    assert sorted(result.train_metrics_clientapp) == [1]


def test_on_version_sees_the_initial_model_and_each_version() -> None:
    seen: list[tuple[VersionEntry, float]] = []
    strategy, result, _ = start(
        rounds=2, on_version=lambda entry, arrays: seen.append((entry, float(arrays[0][0])))
    )
    assert [entry.version for entry, _ in seen] == [0, 1, 2, 3, 4]
    assert seen[0][0].cause == "initial"
    assert [entry for entry, _ in seen[1:]] == strategy.journal.versions
    assert seen[0][1] == 0.0
    assert seen[-1][1] == weight(result)


def test_configs_carry_the_users_entries_and_the_protocols() -> None:
    site = sites.Site()
    start(
        site,
        rounds=2,
        evaluate_every=1,
        seed=5,
        start_options={
            "train_config": ConfigRecord({"lr": 0.1}),
            "evaluate_config": ConfigRecord({"batch": 8}),
        },
    )
    trains = [config for _, kind, config in site.configs if kind == "train"]
    evaluations = [config for _, kind, config in site.configs if kind == "evaluate"]
    assert all(config["lr"] == 0.1 and config[wire.TASK] == "train" for config in trains)
    assert all(config["batch"] == 8 and "lr" not in config for config in evaluations)
    assert {config["server-round"] for config in evaluations} == {1, 2}
    seeds = [config[wire.SEED] for config in trains]
    assert len(set(seeds)) == len(seeds), "every task has its own seed"


# ---- one message per client, memory, determinism --------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_one_message_per_client_at_any_time(dialect: str, mode: str) -> None:
    # SpyGrid fails the push that breaks it.
    _, _, grid = start(
        nodes=5,
        dialect=dialect,
        rounds=15,
        mode=mode,
        buffer_size=2,
        evaluate_every=1,
        poll_newcomers=True,
        factors={4: 7.3, 1: 0.2},
    )
    trained = {node for _, node, kind in grid.pushes if kind == "train"}
    assert trained == {101, 102, 103, 104, 105}


def test_nobody_waits_for_a_straggler() -> None:
    strategy, _, grid = start(nodes=3, rounds=8, factors={2: 1000.0}, max_staleness=100)
    assert strategy.run.counters.accepted == 24
    assert all(len(grid.pushed(node)) >= 12 for node in (101, 102))
    assert len(grid.pushed(103)) == 1
    for node in (101, 102):
        gaps = np.diff(grid.pushed(node))
        assert np.allclose(gaps, 1.0), "each is sent its next task the moment it is free"


def test_a_slow_site_that_is_always_due_to_evaluate_trains_all_the_same() -> None:
    _, _, grid = start(nodes=3, rounds=20, evaluate_every=1, factors={2: 6.0})
    assert len(grid.pushed(103, "train")) >= 3
    assert len(grid.pushed(103, "evaluate")) >= 2


@pytest.mark.parametrize("most", [1, 2, 3])
def test_held_snapshots_are_bounded(most: int) -> None:
    held: list[int] = []

    def watch(run: Any) -> bool:
        held.append(len(run.intake.snapshots))
        assert all(
            not isinstance(value, list | np.ndarray)
            for entry in run.buffer._entries
            for value in vars(entry).values()
        )
        return False

    strategy, result, _ = start(
        nodes=12,
        rounds=6,
        max_snapshots=most,
        stop_when=watch,
        factors={n: 1 + 0.37 * n for n in range(12)},
        max_staleness=1000,
    )
    assert max(held) == most
    assert len(strategy.run.intake.snapshots) == 0, "the last ones go when the last tasks come home"
    assert strategy.run.counters.accepted == 72
    assert np.isfinite(weight(result))


def test_a_client_that_returns_deltas_needs_no_snapshot() -> None:
    held: list[int] = []

    def delta(partition: int, call: int, arrays: list[np.ndarray]) -> Any:
        step = [sites.learn(partition, arrays)[0] - arrays[0]]
        return step, sites.examples_of(partition), {wire.KIND: wire.KIND_DELTA}

    options: dict[str, Any] = {"rounds": 5, "factors": {1: 3.5}}
    _, weights, _ = start(**options)
    strategy, deltas, _ = start(
        sites.Site({0: delta, 1: delta}),
        stop_when=lambda run: bool(held.append(len(run.intake.snapshots))),
        **options,
    )
    assert weight(deltas) == weight(weights)
    assert held[-1] == 0, "once known to return deltas"
    assert strategy.run.roster.of_node(101).returns_delta


def test_a_client_that_goes_back_to_weights_is_taken_back() -> None:
    def undecided(partition: int, call: int, arrays: list[np.ndarray]) -> Any:
        if call == 0:
            return [np.float32([0.1, 0.1])], 10, {wire.KIND: wire.KIND_DELTA}
        return None

    strategy, _, _ = start(sites.Site({1: undecided}), rounds=5)
    assert strategy.run.counters.quarantined == 1
    (event,) = strategy.journal.of_kind("quarantined")
    assert "returned weights where it returned deltas" in event.text
    assert len([s for _, s in strategy.journal.accepted if s == "node-102"]) >= 3


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_the_same_seed_gives_the_same_numbers(dialect: str, mode: str) -> None:
    def flaky(partition: int, call: int, arrays: list[np.ndarray]) -> None:
        if call % 3 == 1:
            raise RuntimeError("flaky")

    def run(threads: int) -> tuple[Any, ...]:
        site = sites.Site({2: flaky})
        strategy, result, grid = start(
            site,
            nodes=5,
            dialect=dialect,
            mode=mode,
            initial=sites.initial(),
            rounds=6,
            buffer_size=3,
            evaluate_every=2,
            poll_newcomers=True,
            factors={0: 0.7, 1: 1.9, 3: 3.3},
            threads=threads,
        )
        arrays = [a.tobytes() for a in sites.values(result.arrays).values()]
        metrics = [
            {r: dict(m) for r, m in field.items()}
            for field in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp)
        ]
        return arrays, metrics, strategy.journal.to_dict(), grid.pushes

    first = run(2)
    assert run(2) == first
    assert run(1) == first
    assert run(4) == first


def test_the_engine_leaves_the_process_wide_generators_alone() -> None:
    np.random.seed(3)  # noqa: NPY002 - the very generator that must not be touched
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    start(rounds=2, evaluate_every=1)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_a_strategy_can_be_started_again() -> None:
    grid = sites.grid_of("numpy", sites.Site(), 2)
    strategy = AsyncStrategy()
    first = strategy.start(grid, sites.small(), num_rounds=2)
    again = strategy.start(grid, first.arrays, num_rounds=2)
    assert weight(again) > weight(first)
    grid.close()


# ---- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mode": "semi"}, "mode is 'semi'; use 'async' or 'sync'"),
        ({"buffer_size": 0}, "buffer_size is 0; it must be an integer of at least 1"),
        ({"buffer_size": True}, "buffer_size is True"),
        ({"buffer_size": 2.0}, "buffer_size is 2.0"),
        ({"max_staleness": -1}, "max_staleness is -1"),
        ({"max_snapshots": 0}, "max_snapshots"),
        ({"min_available_nodes": 0}, "min_available_nodes"),
        ({"evaluate_every": -1}, "evaluate_every"),
        ({"max_failures": 0}, "max_failures"),
        ({"server_lr": 0}, "server_lr is 0"),
        ({"server_lr": float("nan")}, "server_lr"),
        ({"server_lr": 11}, "server_lr"),
        ({"retry_backoff": 0}, "retry_backoff"),
        ({"retry_backoff": 2, "max_backoff": 1}, "max_backoff"),
        ({"norm_factor": 1}, "norm_factor is 1"),
        ({"poll_interval": 0}, "poll_interval"),
        ({"drain_seconds": -1}, "drain_seconds"),
        ({"staleness": "linear"}, "unknown staleness rule 'linear'"),
        ({"staleness_a": 0}, "a > 0"),
        ({"dialect": "grpc"}, "unknown client dialect 'grpc'"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        AsyncStrategy(**settings)


@pytest.mark.parametrize("options", [{"num_rounds": 0}, {"timeout": 0}], ids=str)
def test_start_out_of_range(options: dict[str, Any]) -> None:
    grid = sites.grid_of("numpy", sites.Site(), 2)
    with pytest.raises(ConfigError, match="num_rounds"):
        AsyncStrategy().start(grid, sites.small(), **options)
    grid.close()


def test_before_the_start_there_is_no_run() -> None:
    for name in ("run", "journal", "arrays"):
        with pytest.raises(ConfigError, match="call start"):
            getattr(AsyncStrategy(), name)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({}, "none of the 0 arrays is trained"),
        ({"n": np.zeros(2, np.int64)}, "none of the 1 arrays is trained"),
        ({"w": np.float32([1, np.nan])}, "initial_arrays: 'w' holds NaN"),
    ],
    ids=["empty", "counters", "nan"],
)
def test_initial_arrays_that_are_no_model(arrays: dict[str, np.ndarray], match: str) -> None:
    grid = sites.grid_of("numpy", sites.Site(), 2)
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    with pytest.raises(LayoutError, match=match):
        AsyncStrategy().start(grid, record)
    assert grid.pushes == []
    grid.close()
