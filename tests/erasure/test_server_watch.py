"""What a site makes of its server's key, heads and certificates."""

from __future__ import annotations

import dataclasses
import json
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.erasure.delivery import CertificateNotice, LedgerNotice
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.erasure.keys import KeyRing
from flwr_afuic.erasure.ledger import make_row, sign_head
from flwr_afuic.errors import WireError
from tests.erasure_helpers import request_id

FEDERATION = "federation-1"


class Server:
    """Keys and a ledger, as far as a site sees of them."""

    def __init__(self, folder, federation=FEDERATION):
        self.keys = KeyRing(folder)
        self.federation = federation

    def head(self, seq, body=0):
        row = make_row(seq, 1.0 * seq, "test", {"body": body}, "0" * 64)
        return sign_head(self.federation, row, self.keys)

    def notice(self, seq, body=0):
        return LedgerNotice(self.head(seq, body), tuple(self.keys.rotations))

    def certificate(self, number=1, issue=1, text=None):
        document = text or json.dumps({"request": request_id(number), "what": "erased"})
        return CertificateNotice(
            request_id(number),
            issue,
            document,
            self.keys.sign(document.encode()),
            self.keys.public_hex,
        )


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path / "server")


@pytest.fixture
def stranger(tmp_path):
    return Server(tmp_path / "stranger")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "inbox.sqlite"


@pytest.fixture
def inbox(path):
    return SiteInbox(path)


def kinds(inbox):
    return [alarm.kind for alarm in inbox.alarms()]


def newest(inbox):
    head = inbox.server.newest_head()
    return None if head is None else head["seq"]


# ---- heads ---------------------------------------------------------------------------


def test_heads_that_grow_are_kept_and_the_newest_is_said(inbox, path, server):
    assert inbox.server.newest_head() is None
    for seq in (1, 2, 2, 7):
        assert inbox.server.take_head(server.notice(seq)) == []
        assert newest(inbox) == seq
    assert SiteInbox(path).server.newest_head() == server.head(7).to_json()
    assert inbox.alarms() == []
    found = inbox.server.server()
    assert (found.pinned, found.key, found.federation) == (
        server.keys.public_hex,
        server.keys.public_hex,
        FEDERATION,
    )


def test_a_head_that_went_back_is_an_alarm_and_the_newest_stays(inbox, path, server):
    inbox.server.take_head(server.notice(9))
    (alarm,) = inbox.server.take_head(server.notice(4))
    assert alarm.kind == "rollback"
    assert "went back from row 9 to row 4" in alarm.text
    assert inbox.server.take_head(server.notice(5)) == []  # the same trouble, said once
    (kept,) = SiteInbox(path).alarms()
    assert (kept.kind, kept.times, kept.text) == ("rollback", 2, alarm.text)
    assert kept.last_at >= kept.first_at
    assert newest(inbox) == 9


def test_two_rows_of_one_number_are_an_alarm(inbox, server):
    inbox.server.take_head(server.notice(9))
    (alarm,) = inbox.server.take_head(server.notice(9, body="other"))
    assert alarm.kind == "fork"
    assert inbox.server.newest_head() == server.head(9).to_json()


def test_another_ledger_is_an_alarm(inbox, tmp_path, server):
    inbox.server.take_head(server.notice(3))
    server.federation = "federation-2"
    (alarm,) = inbox.server.take_head(server.notice(50))
    assert alarm.kind == "federation"
    assert newest(inbox) == 3


def test_another_key_is_an_alarm_whatever_it_signs(inbox, server, stranger):
    inbox.server.take_head(server.notice(3))
    (alarm,) = inbox.server.take_head(stranger.notice(4))
    assert alarm.kind == "key"
    assert server.keys.key_id in alarm.text
    assert stranger.keys.key_id in alarm.text
    assert newest(inbox) == 3
    assert inbox.server.take_head(server.notice(4)) == []
    assert newest(inbox) == 4


@pytest.mark.parametrize("field", ["federation", "seq", "hash", "time"])
@pytest.mark.parametrize("first", [True, False])
def test_a_changed_head_is_an_alarm_and_pins_nobody(inbox, server, field, first):
    if not first:
        inbox.server.take_head(server.notice(1))
    head = server.head(2)
    value = {"federation": "x", "seq": 9, "hash": "f" * 64, "time": 9.0}[field]
    forged = LedgerNotice(dataclasses.replace(head, **{field: value}))
    (alarm,) = inbox.server.take_head(forged)
    assert alarm.kind == "signature"
    assert newest(inbox) == (None if first else 1)
    assert (inbox.server.server() is None) is first


# ---- keys ----------------------------------------------------------------------------


def test_a_rotated_key_is_followed(inbox, server):
    inbox.server.take_head(server.notice(1))
    for seq in (2, 3):
        server.keys.rotate()
        server.keys.rotate()
        assert inbox.server.take_head(server.notice(seq)) == []
    found = inbox.server.server()
    assert found.pinned == server.keys.rotations[0].old_key
    assert found.key == server.keys.public_hex
    assert inbox.alarms() == []


def test_the_way_back_is_not_followed(inbox, server, tmp_path):
    """A server restored from a backup made before the rotation."""
    inbox.server.take_head(server.notice(1))
    old = server.notice(2)
    server.keys.rotate()
    inbox.server.take_head(server.notice(3))
    (alarm,) = inbox.server.take_head(LedgerNotice(old.head, tuple(server.keys.rotations)))
    assert alarm.kind == "key"


def test_a_forged_rotation_leads_nowhere(inbox, server, stranger):
    inbox.server.take_head(server.notice(1))
    rotation = server.keys.rotate()
    forged = dataclasses.replace(rotation, new_key=stranger.keys.public_hex)
    for rotations in ((), (forged,), (rotation,), (rotation, forged)):
        notice = LedgerNotice(stranger.head(2), rotations)
        inbox.server.take_head(notice)
        assert inbox.server.server().key == rotation.old_key
    assert kinds(inbox) == ["key"]


def test_a_configured_key_is_believed_and_nobody_else(inbox, server, stranger):
    inbox.server.pin(server.keys.public_hex)
    assert [a.kind for a in inbox.server.take_head(stranger.notice(1))] == ["key"]
    assert newest(inbox) is None
    assert inbox.server.take_head(server.notice(1)) == []


def test_the_configured_key_may_hand_over(inbox, server):
    first = server.keys.public_hex
    inbox.server.pin(first)
    server.keys.rotate()
    assert inbox.server.take_head(server.notice(1)) == []
    inbox.server.pin(first)  # the next start, with the same file
    assert inbox.server.server().key == server.keys.public_hex
    assert newest(inbox) == 1
    inbox.server.pin(server.keys.public_hex)  # the operator handed the new file out
    assert newest(inbox) == 1
    assert inbox.server.server().federation == FEDERATION


def test_configuring_another_server_forgets_the_old_ones_ledger_but_no_alarm(
    inbox, server, stranger
):
    inbox.server.take_head(server.notice(9))
    inbox.server.take_head(server.notice(4))
    stranger.federation = "federation-2"
    inbox.server.pin(stranger.keys.public_hex)
    assert newest(inbox) is None
    assert inbox.server.take_head(stranger.notice(1)) == []
    assert [a.kind for a in inbox.server.take_head(server.notice(10))] == ["key"]
    assert kinds(inbox) == ["rollback", "key"]


def test_a_forgotten_server_makes_room_for_the_next(inbox, server, stranger):
    inbox.server.take_head(server.notice(9))
    inbox.server.forget()
    assert inbox.server.take_head(stranger.notice(1)) == []
    assert inbox.server.server().pinned == stranger.keys.public_hex


def test_ever_new_nonsense_does_not_fill_the_disk(inbox, path, server):
    inbox.server.take_head(server.notice(1))
    for body in range(104):
        assert inbox.server.take_head(server.notice(1, body=f"other {body}"))
    assert len(inbox.alarms()) == 100


# ---- certificates --------------------------------------------------------------------


@pytest.fixture
def filed(inbox, server):
    for number in (1, 2):
        inbox.file(scope="samples", sample_ids=["p1"], held=["p1"], request_id=request_id(number))
    inbox.server.take_head(server.notice(1))
    return inbox


def test_a_certificate_is_kept_byte_by_byte(filed, path, server):
    notice = server.certificate(text=f'{{"id": "{request_id(1)}",\n "name": "ü"}}')
    assert filed.certificate(request_id(1)) is None
    assert filed.certificates.take(notice) is None
    found = SiteInbox(path).certificate(request_id(1))
    assert found.document == notice.document.encode()
    assert (found.issue, found.signature, found.key) == (1, notice.signature, notice.key)
    assert filed.certificate(request_id(2)) is None


def test_the_newest_issue_counts(filed, server):
    for issue in (1, 3, 2, 3):
        assert filed.certificates.take(server.certificate(issue=issue)) is None
    assert filed.certificate(request_id(1)).issue == 3
    filed.certificates.take(server.certificate(number=2))
    assert filed.certificates.names() == [f"{request_id(2)}-1", f"{request_id(1)}-3"]
    assert filed.certificates.names(most=1) == [f"{request_id(2)}-1"]


def test_what_does_not_verify_is_stored_as_nothing(filed, path, server, stranger):
    good = server.certificate()
    cases = {
        "does not match": dataclasses.replace(good, document=good.document + " "),
        "does not match its": dataclasses.replace(good, signature=good.signature[:-1] + "x"),
        "another request": dataclasses.replace(good, request_id=request_id(2)),
        "none of the server's": stranger.certificate(),
        "not on file": server.certificate(number=7),
    }
    for why, notice in cases.items():
        assert why in filed.certificates.take(notice)
    assert filed.certificates.names() == []
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM certificate").fetchone() == (0,)
    connection.close()
    assert filed.alarms() == []


def test_a_certificate_from_before_a_rotation_is_good(filed, server):
    old = server.certificate()
    server.keys.rotate()
    middle = server.certificate(number=2)
    server.keys.rotate()
    filed.server.take_head(server.notice(2))
    assert filed.certificates.take(old) is None
    assert filed.certificates.take(middle) is None  # a key the site never saw in use


def test_without_a_head_the_first_certificate_pins_the_key(inbox, server, stranger):
    inbox.file(scope="samples", sample_ids=["p1"], held=["p1"], request_id=request_id(1))
    assert inbox.certificates.take(server.certificate()) is None
    assert "none of the server's" in inbox.certificates.take(stranger.certificate(issue=2))


# ---- on the wire ---------------------------------------------------------------------


def test_notices_come_back_as_they_went(server):
    server.keys.rotate()
    for notice in (server.notice(3), server.certificate(issue=2, text="ü" * 10)):
        assert type(notice).from_json(notice.to_json()) == notice


def rows(server):
    return json.loads(server.notice(3).to_json()), json.loads(server.certificate().to_json())


@pytest.mark.parametrize(
    ("which", "field", "values"),
    [
        (LedgerNotice, "head", [None, 3, "x", [], {}, {"seq": 1}]),
        (LedgerNotice, "rotations", [None, 3, "x", {}, [1], [{}], [[]], [None] * 1001]),
        (CertificateNotice, "request", [None, 3, "x", [], request_id().upper()]),
        (CertificateNotice, "issue", [None, 0, -1, True, 1.0, "1", [], 2**31]),
        (CertificateNotice, "document", [None, 3, [], {}, "\ud800", "x" * 1_000_001]),
        (CertificateNotice, "signature", [None, 3, []]),
        (CertificateNotice, "key", [None, 3, []]),
    ],
)
def test_each_field_is_checked(server, which, field, values):
    row = rows(server)[which is CertificateNotice]
    without = {k: v for k, v in row.items() if k != field}
    for wrong in [without, {**row, "more": 1}, *({**row, field: value} for value in values)]:
        with pytest.raises(WireError):
            which.from_json(json.dumps(wrong))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_text_is_read_or_a_wire_error(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "server-of-any-text"
    server = Server(folder)
    which = data.draw(st.sampled_from([LedgerNotice, CertificateNotice]))
    row = rows(server)[which is CertificateNotice]
    if which is LedgerNotice and data.draw(st.booleans()):
        row["head"][data.draw(st.sampled_from(sorted(row["head"])))] = data.draw(json_values)
    else:
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(json_values)
    text = data.draw(st.sampled_from([json.dumps(row), json.dumps(row)[:-1]]) | st.text())
    try:
        notice = which.from_json(text)
    except WireError as error:
        assert str(error)  # noqa: PT017
    else:
        assert notice.to_json()
