"""Ctrl-C ends a run on Ray: the part that can be tested without Ray."""

from __future__ import annotations

import signal
import threading

import pytest

from flwr_afuic.app.engines import _EndingGrid, _interruptible, _SimulationEnded


def press():
    signal.raise_signal(signal.SIGINT)


def run(ended, *actions):
    with _interruptible(ended):
        for action in actions:
            action()


def test_ctrl_c_tells_the_server_and_is_raised_once_the_runtime_has_closed_down():
    ended, before, steps = threading.Event(), signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        run(ended, press, lambda: steps.append(ended.is_set()))
    assert steps == [True], "the runtime goes on to its own end, with the server told"
    assert signal.getsignal(signal.SIGINT) is before


def test_the_failure_that_ctrl_c_causes_is_not_what_the_user_sees():
    def fail():
        raise RuntimeError("Exception in ServerApp thread")

    with pytest.raises(KeyboardInterrupt):
        run(threading.Event(), press, fail)


def test_a_second_ctrl_c_waits_for_nothing():
    ended, before, steps = threading.Event(), signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        run(ended, press, press, lambda: steps.append("never"))
    assert steps == []
    assert signal.getsignal(signal.SIGINT) is before


def test_without_ctrl_c_nothing_changes():
    ended, before = threading.Event(), signal.getsignal(signal.SIGINT)
    with _interruptible(ended):
        pass
    with pytest.raises(RuntimeError, match="its own"), _interruptible(ended):
        raise RuntimeError("its own")
    assert not ended.is_set()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with _interruptible(threading.Event()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_grid_whose_runtime_ended_serves_nobody():
    ended = threading.Event()
    grid = _EndingGrid(None, ended)
    ended.set()
    with pytest.raises(_SimulationEnded, match="ended before the run"):
        list(grid.pull_messages(["1"]))
