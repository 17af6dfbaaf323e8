"""Clients that fail, fall silent, leave, return or arrive late: the others go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from flwr_afuic.errors import FederationError
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.bounds import NoUnlearning
from tests.strategies import sites

DIALECTS = ["numpy", "message"]


class Broken:
    """Raises in the first ``times`` trainings."""

    def __init__(self, times: float = float("inf"), error: Exception | None = None) -> None:
        self.times, self.error = times, error or RuntimeError("CUDA out of memory")

    def __call__(self, partition: int, call: int, arrays: list[np.ndarray]) -> None:
        if call < self.times:
            raise self.error


def start(
    site: sites.Site | None = None,
    *,
    nodes: int = 3,
    dialect: str = "numpy",
    rounds: int = 10,
    prepare: Callable[[sites.SpyGrid], None] | None = None,
    timeout: float = 3600,
    strategy: type[AsyncStrategy] = AsyncStrategy,
    **options: Any,
) -> tuple[AsyncStrategy, Any, sites.SpyGrid]:
    options = {"evaluate_every": 0, "poll_newcomers": False, "buffer_size": 1} | options
    grid = sites.grid_of(dialect, site or sites.Site(), nodes)
    if prepare is not None:
        prepare(grid)
    engine = strategy(dialect=dialect, **options)
    try:
        result = engine.start(grid, sites.small(), num_rounds=rounds, timeout=timeout)
    finally:
        grid.close()
    return engine, result, grid


# ---- failures and backoff -------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_raises_is_asked_again_ever_later(dialect: str) -> None:
    engine, _, grid = start(sites.Site({2: Broken()}), dialect=dialect, rounds=20, max_backoff=8.0)
    # Each attempt takes a second; then the pause doubles: 1, 2, 4, 8, 8, ...
    times = grid.pushed(103)
    gaps = np.diff(times)
    expected = [1.0 + pause for pause in (1, 2, 4, 8, 8, 8)]
    assert len(gaps) >= 3
    assert gaps.tolist() == expected[: len(gaps)]
    assert engine.run.counters.failed >= len(gaps)
    event = engine.journal.of_kind("task-failed")[0]
    assert event.site == "node-103"
    assert "error 2: RuntimeError: CUDA out of memory" in event.text
    assert "asked again in 1 s" in event.text
    assert {site for _, site in engine.journal.accepted} == {"node-101", "node-102"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_recovers_takes_part_again(dialect: str) -> None:
    engine, _, _ = start(sites.Site({2: Broken(times=3)}), dialect=dialect, rounds=20)
    member = engine.run.roster.of_node(103)
    assert engine.run.counters.failed == 3
    assert (member.failures, engine.run.roster.healthy(member)) == (0, True)
    assert len([s for _, s in engine.journal.accepted if s == "node-103"]) > 5


def test_rounds_stop_counting_a_client_that_keeps_failing() -> None:
    engine, _, _ = start(sites.Site({2: Broken()}), rounds=12, max_failures=2, max_backoff=1.0)
    last = engine.journal.versions[-1]
    # A round is three updates until the second failure at 3 s, then two.
    assert last.version < 3 * 12
    late = [e for e in engine.journal.versions if e.time > 4.0]
    assert late[-1].round - late[0].round == (late[-1].version - late[0].version + 1) // 2


def test_a_client_without_words() -> None:
    # An error whose reason is blank must not end the run.
    def silence(grid: sites.SpyGrid) -> None:
        call = grid._call

        def blank(message: Message) -> Message:
            if message.metadata.dst_node_id == 103:
                return Message(Error(2, "  \n"), reply_to=message)
            return call(message)

        grid._call = blank  # type: ignore[method-assign]

    engine, _, _ = start(prepare=silence, rounds=4)
    assert "error 2: no reason given" in engine.journal.of_kind("task-failed")[0].text


def test_no_hot_loop_where_flower_takes_no_message() -> None:
    engine, _, grid = start(prepare=lambda grid: grid.mute.add(103), rounds=12)
    assert grid.pushed(103)[:4] == [0.0, 1.0, 3.0, 7.0]
    assert "Flower took no message" in engine.run.roster.of_node(103).last_failure
    assert len(engine.run.intake.snapshots) == 0, "what the message would have needed is let go"


# ---- evaluation is apart from training ------------------------------------------------------


class NoEvaluation(sites.Site):
    def __init__(self, partition: int, behaviours: Any = None) -> None:
        super().__init__(behaviours)
        self.partition = partition

    def evaluate(self, partition: int, arrays: Any, config: Any) -> Any:
        if partition == self.partition:
            raise RuntimeError("no validation set")
        return super().evaluate(partition, arrays, config)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_client_that_cannot_evaluate_trains_on(dialect: str, mode: str) -> None:
    site = NoEvaluation(2)
    engine, result, _ = start(site, dialect=dialect, mode=mode, rounds=6, evaluate_every=1)
    assert site.calls[2] >= 5
    assert engine.run.roster.of_node(103).failures == 0
    assert "left out of this evaluation" in engine.journal.of_kind("task-failed")[0].text
    # 5 and 10 examples at the sites 0 and 1.
    last = result.evaluate_metrics_clientapp[6]
    assert last["partition"] == pytest.approx(2 / 3)


def test_an_evaluation_forgives_no_failed_training() -> None:
    _, _, grid = start(
        sites.Site({2: Broken()}), rounds=40, evaluate_every=1, max_failures=50, max_backoff=8.0
    )
    times = grid.pushed(103)
    gaps = np.diff(times)
    assert gaps[0] >= 2
    assert gaps[1] >= 3
    assert gaps[2] >= 5
    assert (gaps[3:] >= 9).all()
    assert grid.pushed(103, "evaluate"), "it still evaluates"


def test_a_numpy_client_without_evaluate_trains_unchanged() -> None:
    from flwr.client import NumPyClient
    from flwr.clientapp import ClientApp

    class OnlyFit(NumPyClient):
        def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
            return [parameters[0] + 1], 10, {}

    app = ClientApp(client_fn=lambda context: OnlyFit().to_client())
    grid = sites.SpyGrid(app, 2)
    engine = AsyncStrategy(mode="sync")
    result = engine.start(grid, sites.small(), num_rounds=4)
    grid.close()
    assert sites.values(result.arrays)["w"].tolist() == [4.0, 4.0]
    assert engine.run.counters.accepted == 8
    assert all(member.failures == 0 for member in engine.run.roster.members)
    assert result.evaluate_metrics_clientapp == {}


# ---- sync rounds with failures --------------------------------------------------------------


def test_a_sync_round_is_never_one_returning_site_alone() -> None:
    # The third site's pause ends while the others evaluate: it must wait for the next round.
    engine, _, _ = start(sites.Site({2: Broken(times=1)}), mode="sync", rounds=6, evaluate_every=1)
    sizes = [len(entry.sites) for entry in engine.journal.versions]
    assert sizes[0] == 2
    assert min(sizes) >= 2
    assert sizes[-1] == 3


def test_a_sync_round_waits_no_longer_than_the_timeout() -> None:
    engine, result, _ = start(
        prepare=lambda grid: (grid.deaf.add(103), setattr(grid, "forgive_late", True)),
        mode="sync",
        rounds=3,
        evaluate_every=1,
        timeout=10.0,
    )
    assert engine.journal.versions[0].time == 10.0
    assert engine.journal.versions[0].sites == ("node-101", "node-102")
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2, 3]


# ---- silence, leaving, returning, arriving --------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_deaf_client_expires_and_is_asked_again(dialect: str) -> None:
    def deafen(grid: sites.SpyGrid) -> None:
        grid.deaf.add(103)
        grid.forgive_late = True  # its first message is never answered, a second one follows

    engine, _, grid = start(dialect=dialect, prepare=deafen, rounds=25, timeout=10.0)
    # Ten seconds each, then 1, 2, ... more.
    assert grid.pushed(103)[:3] == [0.0, 11.0, 23.0]
    assert engine.run.counters.expired >= 2
    assert "no reply within 10 s" in engine.journal.of_kind("task-failed")[0].text
    assert engine.run.counters.accepted >= 50


def test_a_client_that_leaves_and_returns() -> None:
    def script(grid: sites.SpyGrid) -> None:
        def at(now: float, node: int) -> None:
            if 5.0 <= now < 20.0:
                grid.offline.add(103)
            else:
                grid.offline.discard(103)

        grid.on_push = at

    engine, _, grid = start(prepare=script, rounds=30)
    times = np.array(grid.pushed(103))
    # The list of nodes is read every two seconds at most.
    assert not ((times > 7.0) & (times < 20.0)).any()
    assert (times > 20.0).sum() >= 3
    assert engine.run.roster.of_node(103).failures == 0
    others = np.array(grid.pushed(101))
    assert ((others > 7.0) & (others < 20.0)).sum() >= 12


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_newcomer_in_the_middle(dialect: str) -> None:
    def script(grid: sites.SpyGrid) -> None:
        grid.offline.add(103)
        grid.on_push = lambda now, node: grid.offline.discard(103) if now >= 6.0 else None

    engine, _, grid = start(dialect=dialect, prepare=script, rounds=15, poll_newcomers=True)
    first = grid.pushed(103)[0]
    assert 6.0 <= first <= 9.0
    assert any(site == "node-103" for _, site in engine.journal.accepted)
    polled = next(kind for _, node, kind in grid.pushes if node == 103)
    assert polled == ("get_properties" if dialect == "numpy" else "train")


def test_registered_names_are_the_sites() -> None:
    grid = sites.SpyGrid(sites.numpy_app(sites.Site()), 2, names=["berlin", "paris"])
    engine = AsyncStrategy(evaluate_every=0)
    engine.start(grid, sites.small(), num_rounds=2)
    grid.close()
    assert {site for _, site in engine.journal.accepted} == {"berlin", "paris"}


# ---- when nobody is left --------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_nobody_returns_a_usable_update(dialect: str, mode: str) -> None:
    site = sites.Site({p: Broken() for p in range(3)})
    grid = sites.grid_of(dialect, site, 3)
    engine = AsyncStrategy(mode=mode, dialect=dialect, max_failures=3)
    with pytest.raises(FederationError, match="no site returns a usable update") as caught:
        engine.start(grid, sites.small(0.5), num_rounds=2)
    grid.close()
    text = str(caught.value)
    assert all(f"node-10{n}: error 2: RuntimeError: CUDA out of memory" in text for n in (1, 2, 3))
    assert sites.values(engine.arrays)["w"].tolist() == [0.5, 0.5], "the last model is kept"
    assert site.calls[0] == 3


def test_too_few_nodes_is_an_error_in_the_end() -> None:
    with pytest.raises(FederationError, match="1 nodes are connected and min_available_nodes is 2"):
        start(nodes=1, timeout=30.0)


def test_no_nodes_at_all() -> None:
    with pytest.raises(FederationError, match=r"0 nodes are connected.*start the sites"):
        start(prepare=lambda grid: grid.offline.update({101, 102, 103}), timeout=30.0)


def test_everyone_refused() -> None:
    everyone = ("node-101", "node-102", "node-103")
    with pytest.raises(FederationError, match="every connected site is refused training"):
        start(strategy=NoUnlearning, without=everyone, timeout=30.0)


def test_sites_left_out_are_never_sent_anything() -> None:
    engine, _, grid = start(strategy=NoUnlearning, without=("node-102",), rounds=4)
    assert grid.pushed(102) == []
    assert engine.run.counters.accepted == 8, "a round is as many updates as sites that train"


def test_training_waits_for_enough_nodes() -> None:
    def script(grid: sites.SpyGrid) -> None:
        grid.offline.update({102, 103})
        nodes = grid.get_nodes
        grid.get_nodes = lambda: (  # type: ignore[method-assign]
            grid.offline.clear() if grid.clock.now() >= 120 else None,
            nodes(),
        )[1]

    _, _, grid = start(prepare=script, rounds=2, min_available_nodes=3)
    assert min(time for time, _, _ in grid.pushes) >= 120
