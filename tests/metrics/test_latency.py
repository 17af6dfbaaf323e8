import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import (
    TaskSpan,
    retained_throughput,
    stall_by_site,
    stall_seconds,
    time_to_forget,
)


def spans(site, *times, kind="train"):
    return [TaskSpan(site, kind, start, end) for start, end in times]


def steady(site, stop, length=1.0, gap=0.0):
    count = int(stop / (length + gap))
    return spans(site, *((i * (length + gap), i * (length + gap) + length) for i in range(count)))


def test_no_stall_where_work_goes_on():
    work = steady("a", 20) + steady("b", 20, length=3.0)
    assert stall_by_site(work, [(5.5, 20.0)], ["a", "b"], until=18.0) == {"a": 0.0, "b": 0.0}


def test_gaps_that_are_there_anyway_are_no_stall():
    assert stall_seconds(steady("a", 30, gap=2.0), [(10.0, 25.0)], ["a"]) == 0.0


def test_only_the_excess_within_the_request_counts():
    # Typical gap 2. The gap from 7 to 20 exceeds it from 9 on; the request is open 11 to 15.
    work = spans("a", (0, 1), (3, 4), (6, 7), (20, 21))
    assert stall_seconds(work, [(11.0, 15.0)], ["a"]) == 4.0
    assert stall_seconds(work, [(8.0, 15.0)], ["a"]) == 6.0
    assert stall_seconds(work, [(8.0, 30.0)], ["a"], until=21.0) == 11.0


def test_requests_that_overlap_count_once():
    work = spans("a", (0, 1), (1, 2), (10, 11))
    assert stall_seconds(work, [(1.5, 8.0), (4.0, 9.0)], ["a"]) == 7.0
    assert stall_seconds(work, [(1.5, 3.0), (8.0, 9.0)], ["a"]) == 2.0


def test_the_median_gap_is_typical_not_the_mean():
    # Gaps before the request 0, 0, 9: a mean of 3 would hide the stall of 3.
    work = spans("a", (0, 1), (1, 2), (2, 3), (12, 13), (16, 17))
    assert stall_seconds(work, [(12.5, 20.0)], ["a"], until=17.0) == 3.0


def test_excess_up_to_the_tolerance_is_exactly_zero_and_counts_in_full_beyond():
    work = spans("a", (0, 1), (1, 2), (2.0625, 3))
    assert stall_seconds(work, [(1.5, 3.0)], ["a"]) == 0.0
    assert stall_seconds(work, [(1.5, 3.0)], ["a"], tolerance=0.0) == 0.0625


def test_a_site_that_gets_no_task_any_more_stalls_until_the_request_closes():
    work = spans("a", (0, 1), (1, 2)) + steady("b", 12)
    assert stall_by_site(work, [(1.5, 10.0)], ["a", "b"]) == {"a": 8.0, "b": 0.0}
    assert stall_by_site(work, [(1.5, math.inf)], ["a"])["a"] == 10.0
    assert stall_by_site(work, [(1.5, math.inf)], ["a"], until=6.0)["a"] == 4.0


def test_only_retained_sites_count_but_any_of_their_tasks_is_one():
    work = spans("target", (0, 1), (9, 10), kind="unlearn")
    work += spans("a", (0, 1), (1, 2), (6, 9)) + spans("a", (2, 6), kind="evaluate")
    assert stall_by_site(work, [(1.5, 9.0)], ["a"]) == {"a": 0.0}


def test_tasks_of_one_site_may_overlap():
    work = spans("a", (0, 1), (1, 5), (2, 3), (5, 8))
    assert stall_seconds(work, [(1.5, 8.0)], ["a"]) == 0.0


def test_without_a_gap_of_its_own_a_site_is_measured_by_the_others():
    work = steady("a", 30, gap=2.0) + spans("b", (8, 9), (14, 29))
    assert stall_by_site(work, [(10.0, 25.0)], ["a", "b"])["b"] == 3.0
    assert stall_by_site(spans("b", (8, 9), (14, 29)), [(5.0, 25.0)], ["b"])["b"] == 5.0


def test_gaps_within_an_earlier_request_are_not_typical():
    work = spans("a", (0, 1), (1, 2), (6, 7), (11, 12))
    assert stall_seconds(work, [(1.5, 6.0), (7.5, 11.0)], ["a"]) == 7.5


def test_a_request_after_the_end_changes_nothing():
    work = steady("a", 10)
    assert retained_throughput(work, [(4.0, 8.0), (20.0, 30.0)], ["a"]) == 1.0
    assert stall_seconds(work, [(4.0, 8.0), (20.0, 30.0)], ["a"]) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.floats(0.5, 5), st.floats(0.0, 3), st.floats(0.5, 40), st.integers(4, 8))
def test_a_stop_of_the_federation_is_found_in_full(length, gap, stop, tasks):
    before = [(i * (length + gap), i * (length + gap) + length) for i in range(tasks)]
    again = before[-1][1] + gap + stop
    work = spans("a", *before, (again, again + length))
    request = (before[-1][0] + length / 2, again)
    assert stall_seconds(work, [request], ["a"]) == pytest.approx(stop, abs=1e-6)


def test_throughput_is_one_where_work_goes_on_and_zero_where_it_stops():
    work = steady("a", 24) + steady("b", 24, length=3.0)
    assert retained_throughput(work, [(7.3, 19.1)], ["a", "b"]) == pytest.approx(1.0)
    stopped = spans("a", (0, 1), (1, 2), (8, 9))
    assert retained_throughput(stopped, [(2.0, 8.0)], ["a"]) == 0.0


def test_throughput_by_hand():
    # Before: 4 updates in 4 s. Open 4 to 8: one whole and half of another. Target does not count.
    work = [*steady("a", 4), *spans("a", (4, 5), (7, 9)), *steady("target", 20)]
    work += spans("a", (5, 6), kind="evaluate")
    assert retained_throughput(work, [(4.0, 8.0)], ["a"]) == pytest.approx(1.5 / 4)
    slow_start = spans("a", (0, 10), (10, 11), (11, 12), (12, 13), (13, 14))
    assert retained_throughput(slow_start, [(12.0, 14.0)], ["a"], since=10.0) == 1.0
    assert retained_throughput(slow_start, [(12.0, 20.0)], ["a"], since=10.0, until=14.0) == 1.0
    instants = spans("a", (0, 0), (1, 1), (2, 2), (3, 3))
    assert retained_throughput(instants, [(2.0, 4.0)], ["a"], until=4.0) == 1.0


BACK = {"retrain_forget": 0.5, "retrain_test": 0.8, "requested_at": 10.0}


def run(forget, test=None, **changes):
    forget = np.asarray(forget, dtype=float)
    test = np.full(len(forget), 0.8) if test is None else test
    times = 10.0 + 2.0 * np.arange(len(forget))
    return time_to_forget(times, forget, test, **{**BACK, **changes})


@pytest.mark.parametrize(
    ("forget", "expected"),
    [
        ([0.9] + [0.5] * 6, 2.0),
        ([0.9] + [0.5] * 5, None),  # not seen to last
        ([0.9, 0.5, 0.5, 0.9] + [0.55] * 6, 8.0),  # came back once; .05 is within
        ([0.9] + [0.551] * 6, None),
        ([0.9, 0.2] + [0.45] * 6, 4.0),  # over-forgetting is not "as if never seen"
        ([0.5] * 6, 0.0),
        ([0.5] * 6 + [0.9], 0.0),
        ([0.5] * 5 + [0.9], None),
    ],
)
def test_time_to_forget_by_hand(forget, expected):
    assert run(forget) == expected


def test_the_test_score_must_be_back_too_and_may_be_better():
    assert run([0.5] * 9, [0.7, 0.779, 0.78, 0.8, 0.9, 0.9, 0.9, 0.8, 0.8]) == 4.0
    assert run([0.5] * 9, [0.7, 0.75, 0.78, 0.8, 0.9, 0.9, 0.7, 0.8, 0.8]) is None
    assert run([0.5] * 9, [0.7, 0.75, 0.78] + [0.8] * 6, test_bound=0.05) == 2.0


def test_scores_before_the_request_are_not_looked_at():
    assert run([0.5] * 12, requested_at=13.0) == 1.0


def test_several_scores_a_round_and_a_moving_retraining():
    rounds = [0, 0, 1, 1, 2, 2, 3, 3]
    forget = np.array([0.9, 0.5, 0.5, 0.6, 0.6, 0.7, 0.7, 0.7])
    retrained = np.array([0.5, 0.5, 0.5, 0.6, 0.6, 0.7, 0.7, 0.7])
    assert run(forget, rounds=rounds, retrain_forget=retrained, stay=3) == 2.0
    assert run(forget, rounds=rounds, retrain_forget=retrained, stay=4) is None
    # Rounds 1 and 2 were not scored; the next score must be good as well.
    assert run([0.5, 0.9], rounds=[0, 3], stay=2) is None


A = steady("a", 6)
SIX = np.arange(6.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TaskSpan("a", "sleep", 0, 1), "kind 'sleep'"),
        (lambda: TaskSpan("a", "train", 2, 1), "runs from 2 to 1 s"),
        (lambda: TaskSpan("a", "train", 0, math.nan), "finite"),
        (lambda: stall_seconds([], [(0, 1)], ["a"]), "without any task: a"),
        (lambda: stall_seconds(A, [(0, 1)], ["a", "c", "b"]), "without any task: b, c"),
        (lambda: stall_seconds(A, [(0, 1)], []), "names of the sites"),
        (lambda: stall_seconds(A, [(0, 1)], "a"), "names of the sites"),
        (lambda: stall_seconds(A, [], ["a"]), "requests is empty"),
        (lambda: stall_seconds(A, [(3, 2)], ["a"]), "open from 3 to 2"),
        (lambda: stall_seconds(A, [(math.nan, 2)], ["a"]), "finite opening"),
        (lambda: stall_seconds(A, [(1, 2)], ["a"], tolerance=-1), "tolerance is -1"),
        (lambda: stall_seconds(A, [(1, 2)], ["a"], until=math.nan), "until"),
        (lambda: retained_throughput(A, [(0, 2)], ["a"]), "both must be positive"),
        (lambda: retained_throughput(A, [(9, 12)], ["a"]), "both must be positive"),
        (lambda: retained_throughput(A, [(-1, 2)], ["a"], since=-2), "trained nothing"),
        (lambda: run([]), "times is empty"),
        (lambda: run([0.5, math.nan]), "forget holds 1 NaN"),
        (lambda: run([0.5, 0.5], [0.8]), "times and test differ"),
        (lambda: run([0.5, 0.5], retrain_test=[0.8]), "times and retrain_test differ"),
        (lambda: run([0.5, 0.5], rounds=[1]), "times and rounds differ"),
        (lambda: run([0.5, 0.5], rounds=[2, 1]), "rounds fall"),
        (lambda: run([0.5, 0.5], forget_bound=-1), "forget_bound is -1"),
        (lambda: run([0.5, 0.5], stay=-1), "stay is -1"),
        (lambda: time_to_forget(SIX[::-1], SIX, SIX, **BACK), "times fall"),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
