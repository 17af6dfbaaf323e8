"""Averages of the numbers that sites report, weighted by their examples."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import MetricRecord


class MetricAverages:
    """Running averages by key, as Flower's FedAvg forms them at the end of a round.

    A key is averaged over the sites that report it: one that leaves it out does not pull
    the average towards zero.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, int] = {}
        self._added = False

    def __bool__(self) -> bool:
        return self._added

    def add(self, metrics: Mapping[str, float], examples: int) -> None:
        """Take in one site's metrics; ``examples`` is at least 1."""
        self._added = True
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value * examples
            self._weights[key] = self._weights.get(key, 0) + examples

    def record(self) -> MetricRecord:
        """Return the averages."""
        return MetricRecord({key: total / self._weights[key] for key, total in self._sums.items()})
