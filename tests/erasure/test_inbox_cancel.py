"""Taking a request back, and what the server may answer."""

from __future__ import annotations

import pytest

from flwr_afuic.erasure.inbox import (
    CANCELLED,
    CANCELLING,
    CLOSED,
    FILED,
    KNOWN,
    REFUSED,
    SiteInbox,
)
from flwr_afuic.errors import ErasureError, StateTransitionError
from tests.erasure_helpers import request_id

ONE = request_id(1)


@pytest.fixture
def inbox(tmp_path):
    return SiteInbox(tmp_path / "inbox.sqlite")


def file(inbox, number=1, sample="p1"):
    inbox.file(
        scope="samples", sample_ids=[sample], held=["p1", "p2"], request_id=request_id(number)
    )


@pytest.mark.parametrize("before", [FILED, KNOWN])
def test_it_is_taken_back_when_the_server_says_so(inbox, before):
    file(inbox)
    if before == KNOWN:
        inbox.mark([ONE], KNOWN)
    assert inbox.cancel(ONE) == CANCELLING
    assert inbox.tombstones() == {"p1"}  # not yet
    assert inbox.unfinished() == []  # nobody is asked to carry it out any more
    assert inbox.taken_back() == [ONE]
    inbox.mark([ONE], KNOWN)  # what the server says of a request it still knows
    assert inbox.status(ONE) == CANCELLING
    inbox.mark([ONE], CANCELLED)
    assert inbox.tombstones() == set()
    assert inbox.taken_back() == []


@pytest.mark.parametrize(
    ("answer", "after", "erased"),
    [
        (lambda inbox: inbox.keep([ONE]), KNOWN, {"p1"}),
        (lambda inbox: inbox.mark([ONE], CLOSED), CLOSED, {"p1"}),
        (lambda inbox: inbox.mark([ONE], REFUSED), REFUSED, {"p1"}),
        (lambda inbox: inbox.mark([ONE], CANCELLED), CANCELLED, set()),
    ],
)
def test_every_answer_ends_the_asking(inbox, answer, after, erased):
    file(inbox)
    inbox.cancel(ONE)
    answer(inbox)
    assert inbox.status(ONE) == after
    assert inbox.tombstones() == erased
    assert inbox.taken_back() == []


def test_kept_is_said_of_cancellations_only(inbox):
    file(inbox)
    inbox.keep([ONE, request_id(9)])
    assert inbox.status(ONE) == FILED
    inbox.mark([ONE], CLOSED)
    inbox.keep([ONE])
    assert inbox.status(ONE) == CLOSED


def test_a_kept_request_can_be_asked_for_again(inbox):
    file(inbox)
    inbox.cancel(ONE)
    inbox.keep([ONE])
    assert inbox.cancel(ONE) == CANCELLING


def test_twice_is_once(inbox):
    file(inbox)
    assert inbox.cancel(ONE) == inbox.cancel(ONE) == CANCELLING
    inbox.mark([ONE], CANCELLED)
    assert inbox.cancel(ONE) == CANCELLED


def test_a_closed_request_stays(inbox):
    file(inbox)
    inbox.mark([ONE], CLOSED)
    with pytest.raises(StateTransitionError, match="is closed"):
        inbox.cancel(ONE)
    assert inbox.status(ONE) == CLOSED
    assert inbox.tombstones() == {"p1"}


def test_a_refused_request_keeps_its_samples_out_until_it_is_cancelled(inbox):
    file(inbox)
    inbox.mark([ONE], REFUSED)
    assert inbox.tombstones() == {"p1"}
    assert inbox.unfinished() == []
    file(inbox, 2)  # filed anew
    assert inbox.cancel(ONE) == CANCELLED
    assert inbox.taken_back() == []  # the server has refused it: it need not be told
    assert inbox.tombstones() == {"p1"}  # of the new one


def test_an_unknown_request_cannot_be_taken_back(inbox):
    with pytest.raises(ErasureError, match="no request"):
        inbox.cancel(ONE)


def test_a_cancelled_request_that_reaches_the_server_again_is_taken_back_again(inbox):
    for number, sample in ((1, "p1"), (2, "p2")):
        file(inbox, number, sample)
        inbox.cancel(request_id(number))
    inbox.mark([ONE], CANCELLED)
    assert inbox.taken_back() == [request_id(2)]
    assert inbox.taken_back([ONE, request_id(7)]) == [ONE, request_id(2)]


@pytest.mark.parametrize("end", [CLOSED, CANCELLED, REFUSED])
@pytest.mark.parametrize("later", [KNOWN, CLOSED, CANCELLED, REFUSED])
def test_an_end_is_an_end(inbox, end, later):
    file(inbox)
    inbox.mark([ONE], end)
    inbox.mark([ONE], later)
    assert inbox.status(ONE) == end


def test_requests_show_all_a_steward_wants_to_see(inbox):
    file(inbox)
    inbox.file(scope="client", sample_ids=(), held=["p1", "p2"], note="moves away")
    inbox.cancel(ONE)
    found = inbox.requests()
    assert [(r.status, r.note, r.notice.scope) for r in found] == [
        (CANCELLING, "", "samples"),
        (FILED, "moves away", "client"),
    ]
