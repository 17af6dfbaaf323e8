"""Who may ask: expired, forged, repeated and excessive requests are refused and recorded."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies.admission import AdmissionSettings
from tests.erasure_helpers import ScriptedClient, federate, request_id
from tests.strategies.lives import LIFE, file_at, three

DAY = 86400.0


def saying(sites, **changes):
    """An app whose site 1 says more in every reply than it should."""
    from flwr.clientapp import ClientApp

    class Liar(ScriptedClient):
        def get_properties(self, config):
            return {**super().get_properties(config), **changes}

        def fit(self, parameters, config):
            arrays, examples, metrics = super().fit(parameters, config)
            return arrays, examples, {**metrics, **changes}

        def evaluate(self, parameters, config):
            loss, examples, metrics = super().evaluate(parameters, config)
            return loss, examples, {**metrics, **changes}

    def make(context):
        number = int(context.node_config["partition-id"])
        client = Liar if number == 1 else ScriptedClient
        return client(sites[number]).to_client()

    return ClientApp(make)


def notice(number=1, **changes):
    values = {
        "request_id": request_id(number),
        "scope": "client",
        "count": 4,
        "commitment": "ab",
        "reason": "consent-withdrawn",
        "filed_at": time.time(),
    }
    return wire.ErasureNotice(**{**values, **changes})


def refusals(path):
    with StateStore(path) as store:
        return [row.body for row in store.ledger() if row.kind == "refused"]


@pytest.mark.parametrize(
    ("filed", "text"),
    [(-91 * DAY, "it expired: it was filed 91 days ago"), (2 * DAY, "s in the future; set the")],
)
def test_expired_and_postdated_requests_are_refused_recorded_and_told(tmp_path, filed, text):
    sites = three()
    wrong = notice(filed_at=time.time() + filed)
    app = saying(sites, **{wire.PENDING: wire.encode_notices([wrong])})
    outcome = federate(sites, app=app, state_dir=tmp_path)
    assert outcome.states() == ["received", "refused"]
    assert text in outcome.record.reason
    (row,) = refusals(tmp_path)
    assert (row["site"], row["request"]) == ("site-1", wrong.request_id)
    assert text in row["why"]
    told = [m.content for m in outcome.grid.crossed if not m.has_error()]
    configs = [record for content in told for record in content.config_records.values()]
    assert any(record.get(wire.REFUSED) == wrong.request_id for record in configs)
    assert "site-1" not in outcome.strategy.run.hooks.desk.withdrawn


def test_a_count_that_no_table_can_hold_ends_no_run(tmp_path):
    sites = three()
    row = dataclasses.asdict(notice()) | {"count": 10**30}
    app = saying(sites, **{wire.PENDING: json.dumps([row])})
    outcome = federate(sites, app=app, state_dir=tmp_path)
    assert not outcome.strategy.requests
    assert any("count is 1000000" in event.text for event in outcome.events("quarantined"))


def test_a_request_just_within_its_lifetime_is_accepted():
    sites = three()
    app = saying(
        sites, **{wire.PENDING: wire.encode_notices([notice(filed_at=time.time() - 89 * DAY)])}
    )
    outcome = federate(sites, app=app)
    assert outcome.states()[:2] == ["received", "dispatched"]


def test_an_old_request_that_is_known_is_not_expired_by_being_repeated():
    sites = three()
    sites[0].file(number=1)
    settings = AdmissionSettings(lifetime=0.5)
    outcome = federate(sites, at={1: lambda s: time.sleep(0.6)}, admission=settings)
    assert outcome.states() == LIFE


def test_another_sites_request_is_refused_and_recorded(tmp_path):
    sites = three()
    sites[0].file(number=1)
    app = saying(sites, **{wire.PENDING: wire.encode_notices([notice(1)])})
    outcome = federate(sites, app=app, state_dir=tmp_path)
    assert outcome.record.site == "site-0"
    assert outcome.states() == LIFE
    assert {row["site"] for row in refusals(tmp_path)} == {"site-1"}
    assert len(refusals(tmp_path)) == 1  # however often it is repeated


def test_without_authentication_nobody_asks_where_it_is_required(tmp_path):
    sites = three()
    settings = AdmissionSettings(require_authentication=True)
    outcome = federate(sites, at=file_at(2, sites[0]), admission=settings, state_dir=tmp_path)
    assert outcome.states() == ["received", "refused"]
    assert "not authenticated" in outcome.record.reason
    assert "not authenticated" in refusals(tmp_path)[0]["why"]


def test_a_registered_name_is_the_identity_whatever_the_site_says():
    sites = three()
    sites[1].name = "hospital-0"
    names = ["hospital-0", "hospital-1", "hospital-2"]
    outcome = federate(
        sites,
        names=names,
        at=file_at(2, sites[1]),
        admission=AdmissionSettings(require_authentication=True),
    )
    assert outcome.record.site == "hospital-1"
    assert not any("hospital-1" in entry.sites for entry in outcome.entries[-4:])
    assert any("hospital-0" in entry.sites for entry in outcome.entries[-4:])


def test_an_unregistered_node_that_takes_a_registered_name_is_quarantined(tmp_path):
    sites = three()
    sites[1].name = "hospital-0"
    sites[1].file(number=3)
    outcome = federate(
        sites, names=["hospital-0", "", ""], state_dir=tmp_path, rounds=6, max_failures=2
    )
    assert outcome.strategy.requests == []
    assert all("hospital-0" in e.sites or "site-2" in e.sites for e in outcome.entries[1:])
    assert not any(f"node-{102}" in entry.sites for entry in outcome.entries)
    assert "is registered" in refusals(tmp_path)[0]["why"]
    assert "which is registered" in outcome.events("quarantined")[0].text


def test_a_flood_of_requests_is_bounded(tmp_path):
    sites = three()
    flood = [
        dataclasses.replace(notice(), request_id=f"0b6e7a3c-0000-4000-8000-{n:012d}")
        for n in range(wire.MAX_PENDING)
    ]
    app = saying(sites, **{wire.PENDING: wire.encode_notices(flood)})
    settings = AdmissionSettings(max_open=3)
    outcome = federate(sites, app=app, admission=settings, state_dir=tmp_path, rounds=5)
    opened = [record for record in outcome.strategy.requests if record.state != "refused"]
    assert len(opened) == 3
    assert len(refusals(tmp_path)) == wire.MAX_PENDING - 3


def test_a_replayed_request_takes_effect_once(tmp_path):
    sites = three()
    sites[1].file(number=1)
    stored = sites[1].inbox.pending()
    app = saying(sites, **{wire.PENDING: wire.encode_notices(stored)})
    outcome = federate(sites, app=app, state_dir=tmp_path, rounds=20)
    assert len(outcome.strategy.requests) == 1
    assert sum(entry.cause == "erasure" for entry in outcome.entries) == 1
    again = federate(sites, app=app, state_dir=tmp_path, rounds=26)
    assert len(again.strategy.requests) == 1
    assert not any(entry.cause == "erasure" for entry in again.entries)


def test_heads_of_the_ledger_reach_the_sites_and_a_cut_tail_shows(tmp_path):
    sites = three()
    outcome = federate(sites, at=file_at(2, sites[0]), state_dir=tmp_path)
    told = [
        record[wire.LEDGER_HEAD]
        for message in outcome.grid.crossed
        if not message.has_error()
        for record in message.content.config_records.values()
        if record.get(wire.LEDGER_HEAD)
    ]
    heads = [json.loads(text)["head"] for text in told]
    assert [h["seq"] for h in heads] == sorted(h["seq"] for h in heads)
    newest = heads[-1]
    with StateStore(tmp_path) as store:
        assert store.ledger()[newest["seq"] - 1].hash == newest["hash"]
        ahead = {**newest, "seq": newest["seq"] + 1000}
    # Only a head that this server signed counts against it.
    app = saying(sites, **{wire.SEEN_HEAD: json.dumps(ahead)})
    forged = federate(sites, app=app, state_dir=tmp_path, rounds=18)
    (event,) = forged.events("ledger-alarm")
    assert "not signed by this server" in event.text


@pytest.mark.parametrize("changes", [{"lifetime": 0}, {"clock_skew": -1}, {"max_open": 0}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError):
        AdmissionSettings(**changes)
