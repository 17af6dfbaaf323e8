"""What all comparators share: requests, the standstill, failures, the state directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from flwr_afuic.erasure.certificate import verify_certificate
from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import TaskSpan, retained_throughput, stall_seconds
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies.comparators import FCU, PGA, FedEraser, FedOSD, NoT, ProxyDistill
from tests.erasure_helpers import PlainClient, ToyClient, toy_sites
from tests.strategies.lives import closed
from tests.strategies.rivals import RIVALS, STOPPING, erase_one

RETAINED = ("site-1", "site-2", "site-3")


def window(outcome) -> tuple[float, float]:
    (request,) = outcome.events("request")
    (end,) = outcome.events("standstill-ended")
    return request.time, end.time


def spans(outcome) -> list[TaskSpan]:
    kinds = ("train", "evaluate", "unlearn", "verify")
    every = outcome.strategy.journal.spans
    return [TaskSpan(s.site, s.kind, s.start, s.end) for s in every if s.kind in kinds]


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("kind", RIVALS)
def test_a_site_is_erased_and_trains_no_more(kind, mode):
    outcome = erase_one(kind, mode=mode)
    states = outcome.states()
    assert states[0] == "received"
    assert "merged" in states
    assert states[states.index("merged") + 1] == "verifying"
    (entry,) = [e for e in outcome.entries if e.cause == "erasure"]
    assert entry.version == outcome.record.merge_version
    began = outcome.events("request")[0].time
    for span in outcome.strategy.journal.spans:
        assert not (span.site == "site-0" and span.kind == "train" and span.start > began)
    assert {site for e in outcome.entries if e.version > entry.version for site in e.sites} == set(
        RETAINED
    )


@pytest.mark.parametrize("kind", STOPPING)
def test_the_federation_stands_still_meanwhile(kind):
    """With a straggler the others wait for it, too: the journal's spans show it."""
    outcome = erase_one(kind, factors={2: 8.0}, rounds=16)
    start, end = window(outcome)
    trained = [s for s in spans(outcome) if s.kind == "train" and start < s.start < end]
    assert trained == []
    late = [s for s in spans(outcome) if s.site == "site-2" and s.kind == "train" and s.end > start]
    waited = max(s.end for s in late if s.start <= start)
    (began,) = outcome.events("standstill")
    assert began.time >= waited  # the straggler's update is in the model that is erased from
    assert stall_seconds(spans(outcome), [(start, end)], RETAINED) > 0
    during = retained_throughput(spans(outcome), [(began.time, end)], RETAINED)
    assert during == 0


@pytest.mark.parametrize("kind", [NoT, ProxyDistill])
def test_who_asks_nobody_stops_nobody(kind):
    outcome = erase_one(kind, factors={2: 8.0}, rounds=16)
    start, end = window(outcome)
    assert stall_seconds(spans(outcome), [(start, end)], RETAINED) == 0
    merge = outcome.record.merge_version
    # What was trained from the model before does not enter the one after.
    later = [u for u in outcome.strategy.journal.updates if u.version >= merge]
    assert all(u.base_version >= merge for u in later if u.fate == "accepted")
    assert any(u.base_version < merge and u.fate == "refused" for u in later)


def test_the_operator_asks_for_a_site():
    outcome = erase_one(FedEraser, at={8: lambda strategy: strategy.request_erasure("site-3")})
    assert outcome.record.site == "site-3"
    assert "merged" in outcome.states()


def test_an_operator_takes_it_back_and_training_goes_on():
    def on_event(event):
        if event.kind == "standstill":
            request = outcome_of[0].requests[0].request_id
            outcome_of[0].cancel_erasure(request)

    outcome_of = []

    def ask(strategy):
        outcome_of.append(strategy)
        strategy.request_erasure("site-0")

    outcome = erase_one(PGA, at={8: ask}, on_event=on_event)
    assert outcome.states()[-1] == "cancelled"
    assert not any(entry.cause == "erasure" for entry in outcome.entries)
    assert any("site-0" in entry.sites for entry in outcome.entries if entry.version > 10)


def test_part_of_a_site_is_refused():
    sites = toy_sites(4)
    some = sites[0].ids[:4]
    outcome = erase_one(PGA, sites=sites, at={8: lambda s: sites[0].file(some, 1)})
    assert outcome.states() == ["received", "refused"]
    assert "whole sites" in outcome.record.reason
    assert any("site-0" in entry.sites for entry in outcome.entries if entry.version > 10)


class Awkward(ToyClient):
    """Fails at what its site says."""

    fails = ""

    def unlearn(self, task):
        if self.fails == "unlearn":
            raise RuntimeError("out of memory")
        return super().unlearn(task)

    def gradient(self, parameters, sample_ids, loss):
        if self.fails == "gradient":
            raise RuntimeError("out of memory")
        return super().gradient(parameters, sample_ids, loss)


def awkward_app(sites, number: int, fails: str) -> ClientApp:
    def make(context):
        partition = int(context.node_config["partition-id"])
        if partition == number and fails == "plain":
            return PlainClient(sites[partition]).to_client()
        client = Awkward(sites[partition])
        client.fails = fails if partition == number else ""
        return client.to_client()

    return ClientApp(make)


def test_a_site_that_cannot_unlearn_fails_its_request_only():
    sites = toy_sites(4)
    outcome = erase_one(PGA, sites=sites, app=awkward_app(sites, 0, "unlearn"), rounds=16)
    assert outcome.states()[-1] == "failed"
    assert "4 times" in outcome.record.reason
    assert outcome.strategy.run.round == 16


def test_a_retained_site_that_cannot_answer_is_left_out():
    sites = toy_sites(4)
    outcome = erase_one(FedOSD, sites=sites, app=awkward_app(sites, 2, "gradient"))
    assert "merged" in outcome.states()
    assert {event.site for event in outcome.events("left-out")} == {"site-2"}


def test_a_site_that_is_gone_holds_the_others_up_for_so_long_only():
    def leave(strategy):
        strategy.request_erasure("site-0")
        grids[0].offline.add(101)
        strategy.run._refreshed = float("-inf")  # it is noticed at once

    grids = []
    outcome = erase_one(FCU, at={8: leave}, on_grid=grids.append, site_timeout=50.0)
    assert outcome.states()[-1] == "failed"
    assert "no usable word from site-0" in outcome.record.reason
    start, end = window(outcome)
    assert 50 <= end - start < 115  # and a minute's sleep with nothing to do
    assert outcome.strategy.run.round == 14


class Fallen(Exception):
    pass


def certified(run) -> bool:
    return closed(run) and all(r.certified for r in run.hooks.book if r.state == "completed")


@pytest.mark.parametrize(
    ("kind", "when"),
    [
        (PGA, "request"),
        (FedEraser, "standstill"),
        (ProxyDistill, "standstill"),
        (FedOSD, "dispatched"),
        (FCU, "merged"),
        (NoT, "merged"),
    ],
)
def test_a_server_that_falls_goes_on(kind, when, tmp_path: Path):
    """Whatever it was at: the erasure is made once, and verified, and certified."""

    def fall(event):
        if event.kind == when:
            raise Fallen

    sites = toy_sites(4)
    options = {"sites": sites, "state_dir": tmp_path, "recovery_rounds": 1}
    with pytest.raises(Fallen):
        erase_one(kind, on_event=fall, **options)
    outcome = erase_one(kind, rounds=40, at={}, stop_when=certified, **options)
    assert outcome.states().count("merged") == 1
    with StateStore(tmp_path) as store:
        merges = [row for row in store.versions() if row.cause == "erasure"]
        assert len(merges) == 1
        if outcome.states()[-1] == "completed":
            document, signature, _ = store.certificate(outcome.record.request_id)
            assert verify_certificate(document, signature, store.keys.public_hex).valid


def test_a_run_that_fell_ends_as_one_that_did_not(tmp_path: Path):
    """What PGA remembers of the sites is on disk: the second run erases from the same model."""

    def fall(event):
        if event.kind == "dispatched":
            raise Fallen

    whole = erase_one(PGA)
    sites = toy_sites(4)
    with pytest.raises(Fallen):
        erase_one(PGA, sites=sites, state_dir=tmp_path, on_event=fall)
    rest = erase_one(PGA, sites=sites, state_dir=tmp_path, at={})
    merge = whole.record.merge_version
    assert rest.record.merge_version == merge
    before, again = whole.models[merge - 1], rest.models[merge - 1]
    assert all(np.array_equal(a, b) for a, b in zip(before, again, strict=True))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (NoT, {"recovery_rounds": -1}),
        (FedEraser, {"effort": 1.5}),
        (FedEraser, {"interval": 0}),
        (FedOSD, {"unlearning_rounds": 0}),
        (FedOSD, {"unlearning_lr": 0.0}),
        (ProxyDistill, {}),
    ],
)
def test_settings_out_of_range_are_refused(kind, wrong):
    with pytest.raises(ConfigError):
        kind(**wrong)
