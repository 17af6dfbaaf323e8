"""The two bounds of every comparison: nothing unlearned, and retrained from scratch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.hooks import RunHooks


class _WithoutSites(RunHooks):
    def __init__(self, without: Collection[str]) -> None:
        self._without = frozenset(without)

    def may_train(self, site: str) -> bool:
        return site not in self._without

    def training_key(self) -> frozenset[str]:
        return self._without


class NoUnlearning(AsyncStrategy):
    """Retained sites just train on; start it from the model at the request.

    Parameters
    ----------
    without : collection of str
        Sites that have left.
    **engine : Any
        Settings of :class:`~flwr_afuic.strategies.asynchronous.AsyncStrategy`.
    """

    def __init__(self, *, without: Collection[str] = (), **engine: Any) -> None:
        super().__init__(**engine)
        self.without = tuple(without)

    def make_hooks(self) -> RunHooks:
        """Return hooks that leave the sites out."""
        return _WithoutSites(self.without)


class Retrain(NoUnlearning):
    """Retraining from scratch without the erased data; start it from a fresh model.

    Sites that stay but erased samples leave those out themselves, by their tombstones.
    """
