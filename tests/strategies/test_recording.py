"""Recording: any strategy's updates end up in the history, and nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from flwr_afuic.app.local import LocalGrid
from flwr_afuic.errors import ConfigError, HistoryError
from flwr_afuic.history.codec import CodecSettings, decode_record
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.sparsify import Threshold
from flwr_afuic.history.store import AGGREGATE
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.recording import Recording
from tests.erasure_helpers import AFUIC, federate, request_id
from tests.strategies import sites
from tests.strategies.lives import file_at, three

FINE = CodecSettings(threshold=Threshold("none"), step=1e-3)


def recorder(**changes) -> Recorder:
    return Recorder(MemoryStore(), RecorderSettings(codec=FINE, aggregate=FINE, **changes))


def steps(store) -> list[np.ndarray]:
    """What each window added to the model's first array, as the history has it."""
    found = []
    for window in store.windows():
        data = store.record(window.number, AGGREGATE)
        key = store.key(window.number, AGGREGATE)
        found.append(decode_record(data, key=key).arrays[0])
    return found


@pytest.mark.parametrize("dialect", ["message", "numpy"])
@pytest.mark.parametrize("theirs", [True, False])
def test_the_history_adds_up_to_the_training(dialect, theirs):
    if theirs and dialect == "numpy":
        pytest.skip("Flower's FedAvg speaks to Message-API clients only")
    history, site = recorder(), sites.Site()
    if theirs:
        grid = LocalGrid(sites.message_app(site), 4)
        inner = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=4)
    else:
        grid = sites.grid_of(dialect, site, 4)
        inner = AsyncStrategy(mode="sync", dialect=dialect, min_available_nodes=4)
    result = Recording(inner, history).start(grid, sites.initial(), num_rounds=3)
    grid.close()
    windows = list(history.store.windows())
    assert [window.version for window in windows] == [1, 2, 3]
    assert all(len(window.participants) == 4 for window in windows)
    assert sum(p.weight for p in windows[0].participants) == pytest.approx(1.0)
    name = next(name for name in sites.values(result.arrays) if name != sites.COUNTER)
    moved = sites.values(result.arrays)[name] - sites.values(sites.initial())[name]
    np.testing.assert_allclose(sum(steps(history.store)), moved, atol=2e-3)


def test_the_asynchronous_engine_records_staleness_and_the_server_rate():
    history = recorder()
    outcome = federate(three(), recorder=history, rounds=6, factors={0: 3.0}, server_lr=0.5)
    windows = list(history.store.windows())
    assert windows[-1].version <= outcome.strategy.run.version
    last = windows[-1].version
    moved = outcome.models[last][0] - outcome.models[0][0]
    np.testing.assert_allclose(sum(steps(history.store)), moved, atol=2e-3)
    assert {p.site for window in windows for p in window.participants} == {
        "site-0",
        "site-1",
        "site-2",
    }


def test_what_a_site_withdraws_is_not_recorded():
    history, group = recorder(), three()
    outcome = federate(group, recorder=history, at=file_at(3, group[0]))
    merged = outcome.events("request")[0].version
    late = [w for w in history.store.windows() if w.version > merged]
    assert late
    assert not any(p.site == "site-0" for window in late for p in window.participants)


def test_a_resumed_run_cuts_the_history_back_to_its_model(tmp_path):
    history = recorder()
    first = federate(three(), recorder=history, rounds=4, state_dir=tmp_path)
    history.merged(first.strategy.run.version + 1, 9)  # nothing was added: no window
    history.add("site-0", [np.ones(3, np.float32)], 1.0)
    history.add("site-1", [np.ones(3, np.float32)], 1.0)
    history.merged(first.strategy.run.version + 1, 9)  # merged, and then the server fell
    federate(three(), recorder=history, rounds=6, state_dir=tmp_path)
    versions = [window.version for window in history.store.windows()]
    assert versions == sorted(set(versions))


def test_a_strategy_is_wrapped_once():
    with pytest.raises(ConfigError, match="wrap it once"):
        Recording(Recording(FedAvg(), recorder()), recorder())


def test_ours_records_with_erasures_too():
    history, group = recorder(), three()
    strategy = Recording(AFUIC(), history)
    assert strategy.strategy.recorder is None
    outcome = federate(group, recorder=history, at=file_at(3, group[0]))
    assert outcome.record.state == "completed"


def test_afuic_deletes_the_updates_of_an_erased_site_and_certifies_it(tmp_path):
    history, group = recorder(), three()
    federate(group, recorder=history, at=file_at(3, group[0]), state_dir=tmp_path)
    parts = [p for w in history.store.windows() for p in w.participants if p.site == "site-0"]
    assert parts
    assert {p.status for p in parts} == {"purged"}
    with StateStore(tmp_path) as store:
        document, _, _ = store.certificate(request_id(1))
    purged = json.loads(document)["purged"]
    assert any("records of the update history" in entry["file"] for entry in purged)


def test_a_new_model_needs_a_new_history():
    history = recorder()
    federate(three(), recorder=history, rounds=3)
    with pytest.raises(HistoryError, match="name a new history"):
        federate(three(), recorder=history, rounds=3)


def test_a_history_that_cannot_be_written_ends_no_training(monkeypatch):
    history = recorder()

    def full(*arguments, **named):
        raise HistoryError("no space left on device")

    monkeypatch.setattr(history, "merged", full)
    outcome = federate(three(), recorder=history, rounds=3)
    assert outcome.strategy.run.round == 3
    assert "no space left" in outcome.events("not-recorded")[0].text
