"""Evaluation of a run's models: centrally in the background, and at the sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result

from flwr_afuic.federation.clock import Clock
from flwr_afuic.federation.worker import Job, Worker
from flwr_afuic.strategies.averages import MetricAverages
from flwr_afuic.strategies.codec import EvaluateReply

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class Evaluations:
    """Evaluation metrics on their way into Flower's result.

    Parameters
    ----------
    result : Result
        Where metrics go, by round.
    clock : Clock
        The engine's.
    evaluate_fn : callable or None
        Flower's central evaluation; runs in a thread of its own, so that it holds up no client.
    """

    def __init__(self, result: Result, clock: Clock, evaluate_fn: EvaluateFn | None) -> None:
        self._result = result
        self._evaluate_fn = evaluate_fn
        self._worker = Worker(clock)
        self._jobs: list[tuple[int, Job[Any]]] = []
        self._by_round: dict[int, MetricAverages] = {}

    def centrally(self, round_: int, record: ArrayRecord) -> None:
        """Start evaluating a round's model on the server."""
        evaluate = self._evaluate_fn
        if evaluate is not None:
            self._jobs.append((round_, self._worker.submit(lambda: evaluate(round_, record))))

    def collect(self) -> None:
        """Wait for the central evaluations under way; raises what ``evaluate_fn`` raised."""
        for round_, job in self._jobs:
            metrics = job.result()
            if metrics is not None:
                self._result.evaluate_metrics_serverapp[round_] = metrics
        self._jobs = []

    def accept(self, round_: int, reply: EvaluateReply) -> None:
        """Average a site's evaluation into those of its round, by number of examples."""
        if reply.examples <= 0:
            return
        gathered = self._by_round.setdefault(round_, MetricAverages())
        gathered.add(reply.all_metrics, reply.examples)
        self._result.evaluate_metrics_clientapp[round_] = gathered.record()

    def close(self) -> None:
        """Stop the background thread."""
        self._worker.close()
