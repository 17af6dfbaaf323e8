from __future__ import annotations

import json
import threading
import time

import pytest

from flwr_afuic.federation.clock import RealClock, VirtualClock
from flwr_afuic.federation.journal import Event, Journal, Span, VersionEntry
from flwr_afuic.federation.worker import Worker

# ---- clocks -----------------------------------------------------------------------------


def test_virtual_sleep_stops_at_the_next_event() -> None:
    events = [5.0]
    clock = VirtualClock(lambda: min(events, default=None))
    assert clock.virtual
    clock.sleep(60)
    assert clock.now() == 5.0
    clock.sleep(60)
    assert clock.now() == 65.0, "an event that has passed holds nothing up"
    clock.sleep(0)
    assert clock.now() == 65.0


def test_every_watched_source_counts_until_unwatched() -> None:
    clock = VirtualClock()

    def soon() -> float:
        return 3.0

    clock.watch(soon)
    clock.watch(lambda: 2.0)
    clock.sleep(10)
    assert clock.now() == 2.0
    clock.sleep(10)
    assert clock.now() == 3.0
    clock = VirtualClock()
    clock.watch(soon)
    clock.unwatch(soon)
    clock.sleep(10)
    assert clock.now() == 10.0


def test_virtual_time_costs_none() -> None:
    began = time.monotonic()
    VirtualClock().sleep(1e6)
    assert time.monotonic() - began < 1


def test_the_real_clock_passes() -> None:
    clock = RealClock()
    before = clock.now()
    clock.sleep(0.01)
    assert clock.now() - before >= 0.01
    assert not clock.virtual


# ---- worker -----------------------------------------------------------------------------


def test_virtual_jobs_run_at_once_and_show_later_one_after_another() -> None:
    clock = VirtualClock()
    worker = Worker(clock)
    thread: list[object] = []
    first = worker.submit(lambda: thread.append(threading.current_thread()), virtual_seconds=3.0)
    second = worker.submit(lambda: "b", virtual_seconds=2.0)
    assert thread == [threading.current_thread()]
    assert (first.start, first.end) == (0.0, 3.0)
    assert (second.start, second.end) == (3.0, 5.0)
    assert not first.done()
    clock.sleep(60)
    assert (clock.now(), first.done(), second.done()) == (3.0, True, False)
    clock.sleep(60)
    assert second.done()
    assert second.result() == "b"
    worker.close()
    clock.sleep(60)
    assert clock.now() == 65.0


def test_a_virtual_job_of_no_length_is_done_at_once() -> None:
    job = Worker(VirtualClock()).submit(lambda: 1)
    assert job.done()


def test_real_jobs_run_beside_the_caller_in_order() -> None:
    worker = Worker(RealClock())
    gate = threading.Event()
    order: list[int] = []
    first = worker.submit(lambda: gate.wait(10) and order.append(1))
    second = worker.submit(lambda: order.append(2))
    assert not first.done()
    assert not second.done()
    gate.set()
    worker.close()
    assert first.done()
    assert second.done()
    assert order == [1, 2]
    assert first.end >= first.start
    assert second.start >= first.end


@pytest.mark.parametrize("clock", [RealClock(), VirtualClock()], ids=["real", "virtual"])
def test_what_a_job_raises_comes_with_its_result(clock: RealClock | VirtualClock) -> None:
    def broken() -> None:
        raise RuntimeError("no proxies")

    worker = Worker(clock)
    job = worker.submit(broken)
    with pytest.raises(RuntimeError, match="no proxies"):
        job.result()
    assert job.done()
    assert worker.submit(lambda: 2).result() == 2, "one failure does not end the worker"
    worker.close()


# ---- journal ----------------------------------------------------------------------------


def test_the_journal_becomes_plain_json() -> None:
    journal = Journal()
    journal.versions.append(VersionEntry(1, 1, 2.5, "merge", ("a", "b")))
    journal.events += [Event(1.0, 0, 0, "failed", "a", "x"), Event(2.0, 0, 0, "stale", "b")]
    journal.spans.append(Span("a", "train", 0.0, 1.0))
    journal.accepted.append((1.0, "a"))
    assert [event.site for event in journal.of_kind("failed")] == ["a"]
    assert journal.of_kind("nothing") == []
    plain = json.loads(json.dumps(journal.to_dict()))
    assert plain["versions"] == [
        {"version": 1, "round": 1, "time": 2.5, "cause": "merge", "sites": ["a", "b"]}
    ]
    assert plain["spans"] == [{"site": "a", "kind": "train", "start": 0.0, "end": 1.0}]
    assert plain["accepted"] == [[1.0, "a"]]
    assert set(plain) == {"versions", "events", "spans", "server_spans", "accepted", "updates"}
