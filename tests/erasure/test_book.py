"""The request book: what may follow what, and that history only grows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from flwr_afuic.erasure.book import CLOSED, FOLLOWS, RequestBook, State
from flwr_afuic.errors import DuplicateRequestError, ErasureError, StateTransitionError
from flwr_afuic.wire import ErasureNotice
from tests.erasure_helpers import request_id

ALLOWED = {
    "received": "dispatched held merged refused failed cancelled",
    "dispatched": "unlearned received failed cancelled",
    "unlearned": "merged held failed cancelled",
    "held": "merged failed cancelled",
    "merged": "verifying",
    "verifying": "completed completed-unverified received failed",
    "completed": "verifying",
    "completed-unverified": "verifying",
    "refused": "",
    "failed": "",
    "cancelled": "",
}


def notice(number=1, **changes):
    values = {
        "request_id": request_id(number),
        "scope": "client",
        "count": 3,
        "commitment": "ab",
        "reason": "consent-withdrawn",
        "filed_at": 1.0,
    }
    return ErasureNotice(**{**values, **changes})


def test_the_table_of_transitions_is_the_designs():
    table = {str(a): " ".join(sorted(str(b) for b in follows)) for a, follows in FOLLOWS.items()}
    assert table == {a: " ".join(sorted(b.split())) for a, b in ALLOWED.items()}
    assert {str(state) for state in State} == set(ALLOWED)


@pytest.mark.parametrize("start", list(State))
@pytest.mark.parametrize("goal", list(State))
def test_only_moves_of_the_table_are_made(start, goal):
    book = RequestBook()
    record, _ = book.file(notice(), "a")
    record.state = start
    before = list(record.history)
    if str(goal) in ALLOWED[str(start)].split():
        book.move(record, goal, "why", time=2.0, round=3, version=4)
        assert record.state is goal
        assert record.reason == "why"
        step = record.history[-1]
        assert (step.state, step.time, step.round, step.version) == (goal, 2.0, 3, 4)
        assert record.history[:-1] == before
    else:
        with pytest.raises(StateTransitionError, match=f"is {start}; {goal} cannot follow"):
            book.move(record, goal, "why")
        assert record.state is start
        assert record.history == before


def test_open_means_not_closed():
    book = RequestBook()
    record, _ = book.file(notice(), "a")
    for state in State:
        record.state = state
        assert record.open is (state not in CLOSED)


def test_filing_twice_changes_nothing():
    book = RequestBook()
    record, new = book.file(notice(), "a", time=1.0)
    book.move(record, State.DISPATCHED, "go")
    again, new_again = book.file(notice(), "a", time=9.0)
    assert (new, new_again) == (True, False)
    assert again is record
    assert [step.time for step in record.history] == [1.0, 0.0]
    assert len(book) == 1


@pytest.mark.parametrize(
    ("changes", "site"),
    [({"count": 4}, "a"), ({"scope": "samples"}, "a"), ({"commitment": "cd"}, "a"), ({}, "b")],
)
def test_an_id_with_other_content_or_of_another_site_is_refused(changes, site):
    book = RequestBook()
    record, _ = book.file(notice(), "a")
    with pytest.raises(DuplicateRequestError, match="on file for a with other content"):
        book.file(notice(**changes), site)
    assert list(book) == [record]
    assert record.notice == notice()


def test_cancelling_is_over_once_merged_even_when_sent_back():
    book = RequestBook()
    record, _ = book.file(notice(), "a")
    record.merge_version = 7
    with pytest.raises(StateTransitionError, match="merged as version 7"):
        book.move(record, State.CANCELLED, "no")
    assert record.state is State.RECEIVED


def test_an_unknown_id_is_named():
    with pytest.raises(ErasureError, match=f"no erasure request '{request_id()}'; 0 are on file"):
        RequestBook().get(request_id())


def test_requests_follow_a_site_to_its_name():
    book = RequestBook()
    book.file(notice(1), "node-101")
    book.file(notice(2), "b")
    book.rename("node-101", "a")
    assert [record.site for record in book] == ["a", "b"]
    assert [record.request_id for record in book.of_site("a")] == [request_id(1)]


class BookMachine(RuleBasedStateMachine):
    """Any sequence of filings, moves, merges and renames."""

    requests = Bundle("requests")

    @initialize()
    def start(self):
        self.book = RequestBook()
        self.seen = {}

    @rule(
        target=requests,
        number=st.integers(0, 4),
        site=st.sampled_from("ab"),
        count=st.integers(1, 2),
    )
    def file(self, number, site, count):
        before = {record.request_id: (record.notice, record.site) for record in self.book}
        wanted = notice(number, count=count)
        known = before.get(wanted.request_id)
        try:
            record, new = self.book.file(wanted, site)
        except DuplicateRequestError:
            assert known is not None
            assert known != (wanted, site)
            return self.book.get(wanted.request_id)
        assert new is (known is None)
        assert (record.notice, record.site) == (wanted, site)
        return record

    @rule(record=requests, state=st.sampled_from(list(State)))
    def move(self, record, state):
        before = record.state
        legal = str(state) in ALLOWED[str(before)].split()
        if state is State.CANCELLED and record.merge_version is not None:
            legal = False
        try:
            self.book.move(record, state, "text")
        except StateTransitionError:
            assert not legal
            assert record.state is before
        else:
            assert legal
            if state is State.MERGED:
                record.merge_version = 5

    @invariant()
    def history_only_grows_and_every_step_is_legal(self):
        for record in self.book:
            states = [str(step.state) for step in record.history]
            seen = self.seen.get(record.request_id, [])
            assert record.history[: len(seen)] == seen
            self.seen[record.request_id] = list(record.history)
            assert states[0] == "received"
            assert states[-1] == str(record.state)
            for a, b in pairwise(states):
                assert b in ALLOWED[a].split()
            if "merged" in states:
                assert "cancelled" not in states


TestBookMachine = BookMachine.TestCase
TestBookMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
