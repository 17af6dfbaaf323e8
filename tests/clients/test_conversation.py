"""What travels beside a task: cancellations, the ledger's head, certificates."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from flwr_afuic import wire
from flwr_afuic.erasure.inbox import CANCELLED, CANCELLING, CLOSED, KNOWN, REFUSED
from flwr_afuic.errors import StateTransitionError
from tests.erasure.test_server_watch import Server
from tests.erasure_helpers import ScriptedClient, Site, request_id

START = [np.zeros(3, np.float32)]
ONE = request_id(1)


@pytest.fixture
def site():
    return Site(kinds=["trained"])


@pytest.fixture
def client(site):
    return ScriptedClient(site)


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path / "server")


def tasks(client):
    """Each kind of task, as what it replies beside its result."""
    return [
        lambda config: client.get_properties(config),
        lambda config: client.fit(START, {wire.SEED: 1, **config})[2],
        lambda config: client.evaluate(START, config)[2],
    ]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_cancellation_is_told_with_every_reply_until_it_is_answered(site, client, kind):
    task = tasks(client)[kind]
    site.file(["patient-0-1"], number=1)
    site.inbox.cancel(ONE)
    for _ in range(2):
        said = task({wire.KNOWN: ONE})
        assert said[wire.CANCEL] == ONE
        assert wire.PENDING not in said
    assert wire.CANCEL not in task({wire.CANCELLED: ONE})
    assert site.inbox.status(ONE) == CANCELLED


@pytest.mark.parametrize(
    ("key", "after"),
    [(wire.KEPT, KNOWN), (wire.CLOSED, CLOSED), (wire.REFUSED, REFUSED), (wire.KNOWN, CANCELLING)],
)
def test_what_the_server_may_answer(site, client, key, after):
    site.file(["patient-0-1"], number=1)
    site.inbox.cancel(ONE)
    said = client.get_properties({wire.KNOWN: ONE, key: ONE})
    assert site.inbox.status(ONE) == after
    assert (wire.CANCEL in said) is (after == CANCELLING)
    assert "patient-0-1" not in client.retained_ids()


def test_a_refused_request_is_told_no_more_and_its_samples_train_no_more(site, client):
    site.file(["patient-0-1"], number=1)
    said = client.get_properties({wire.REFUSED: ONE})
    assert wire.PENDING not in said
    client.fit(START, {wire.SEED: 1, wire.KNOWN: ""})
    assert site.trained_on == [["patient-0-0", "patient-0-2", "patient-0-3"]]


def test_a_failed_request_has_its_own_status_with_the_code(site, client):
    site.file(["patient-0-1"], number=1)
    client.get_properties({wire.CLOSED: ONE, wire.FAILED: json.dumps({ONE: "level-not-met"})})
    (told,) = site.inbox.requests()
    assert (told.status, told.failure) == ("failed", "level-not-met")
    client.get_properties({wire.CLOSED: ONE, wire.KNOWN: ONE})
    assert site.inbox.status(ONE) == "failed"
    assert "patient-0-1" not in client.retained_ids()
    with pytest.raises(StateTransitionError, match="is failed"):
        site.inbox.cancel(ONE)


@pytest.mark.parametrize("said", ["", "[]", "{", 3, '{"x": "level-not-met"}', f'{{"{ONE}": 1}}'])
def test_a_malformed_word_on_failures_changes_nothing(site, client, said):
    site.file(["patient-0-1"], number=1)
    client.get_properties({wire.FAILED: said})
    assert site.inbox.status(ONE) == "filed"


def test_while_it_waits_for_the_answer_a_site_trains_on(site, client):
    site.file(["patient-0-1"], number=1)
    site.inbox.cancel(ONE)
    client.fit(START, {wire.SEED: 1, wire.KNOWN: ONE})
    assert site.trained_on == [["patient-0-0", "patient-0-2", "patient-0-3"]]


def test_a_cancelled_request_the_server_knows_again_is_cancelled_again(site, client):
    site.file(["patient-0-1"], number=1)
    site.inbox.cancel(ONE)
    client.get_properties({wire.CANCELLED: ONE})
    assert client.get_properties({wire.KNOWN: ONE})[wire.CANCEL] == ONE
    assert wire.CANCEL not in client.get_properties({})


def test_as_many_cancellations_as_a_reply_may_hold(site, client):
    site.ids = [f"p{row:03d}" for row in range(wire.MAX_PENDING + 5)]
    for sample in site.ids:
        site.inbox.cancel(site.file([sample]))
    told = wire.decode_ids(client.get_properties({})[wire.CANCEL], wire.CANCEL)
    assert len(told) == wire.MAX_PENDING
    rest = client.get_properties({wire.CANCELLED: ",".join(told)})[wire.CANCEL]
    assert len(rest.split(",")) == 5


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_newest_head_is_echoed(client, server, kind):
    task = tasks(client)[kind]
    assert wire.SEEN_HEAD not in task({})
    for seq, seen in ((3, 3), (9, 9), (4, 9)):
        said = task({wire.LEDGER_HEAD: server.notice(seq).to_json()})
        assert json.loads(said[wire.SEEN_HEAD])["seq"] == seen
    assert json.loads(task({})[wire.SEEN_HEAD]) == server.head(9).to_json()


def test_an_alarm_is_logged_and_kept_and_training_goes_on(site, client, server, tmp_path, caplog):
    client.fit(START, {wire.SEED: 1, wire.LEDGER_HEAD: server.notice(9).to_json()})
    bad = [server.notice(4), Server(tmp_path / "other").notice(10)]
    with listening(caplog):
        for notice in bad:
            client.fit(START, {wire.SEED: 1, wire.LEDGER_HEAD: notice.to_json()})
            client.fit(START, {wire.SEED: 1, wire.LEDGER_HEAD: notice.to_json()})
    assert [alarm.kind for alarm in site.inbox.alarms()] == ["rollback", "key"]
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lines) == 2
    assert "went back from row 9 to row 4" in lines[0]
    assert len(site.trained_on) == 5


class listening:
    """Let pytest see Flower's log."""

    def __init__(self, caplog):
        self.caplog, self.logger = caplog, logging.getLogger("flwr")

    def __enter__(self):
        self.before = self.logger.propagate
        self.logger.propagate = True

    def __exit__(self, *args):
        self.logger.propagate = self.before


@pytest.mark.parametrize("text", ["{", "[]", 3, '{"head": {}}'])
@pytest.mark.parametrize("key", [wire.LEDGER_HEAD, wire.CERTIFICATE])
def test_what_is_malformed_holds_up_nothing(site, client, key, text, caplog):
    with listening(caplog):
        _, examples, said = client.fit(START, {wire.SEED: 1, key: text})
    assert examples == 4
    assert {wire.SEEN_HEAD, wire.HAVE_CERTIFICATES}.isdisjoint(said)
    assert "malformed" in caplog.text
    assert site.inbox.alarms() == []


@pytest.mark.parametrize("key", [wire.LEDGER_HEAD, wire.CERTIFICATE])
def test_an_empty_one_is_none(client, key, caplog):
    with listening(caplog):
        client.get_properties({key: ""})
    assert caplog.text == ""


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_certificate_is_kept_and_acknowledged(site, client, server, kind):
    task = tasks(client)[kind]
    site.file(["patient-0-1"], number=1)
    notice = server.certificate()
    said = task({wire.CERTIFICATE: notice.to_json(), wire.CLOSED: ONE})
    assert said[wire.HAVE_CERTIFICATES] == f"{ONE}-1"
    assert site.inbox.certificate(ONE).document == notice.document.encode()
    assert task({})[wire.HAVE_CERTIFICATES] == f"{ONE}-1"
    said = task({wire.CERTIFICATE: server.certificate(issue=2).to_json()})
    assert said[wire.HAVE_CERTIFICATES] == f"{ONE}-2"


def test_a_forged_certificate_is_not_acknowledged(site, client, server, tmp_path, caplog):
    site.file(["patient-0-1"], number=1)
    client.get_properties({wire.LEDGER_HEAD: server.notice(1).to_json()})
    forged = Server(tmp_path / "other").certificate()
    with listening(caplog):
        said = client.get_properties({wire.CERTIFICATE: forged.to_json()})
    assert wire.HAVE_CERTIFICATES not in said
    assert "none of the server's; it was not kept" in caplog.text
    assert site.inbox.certificate(ONE) is None
