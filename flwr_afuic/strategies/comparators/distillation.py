"""ProxyDistill: the proxy-distilled student as the new model."""

from __future__ import annotations

from typing import Any

from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.errors import ConfigError
from flwr_afuic.strategies.comparators.base import Comparator
from flwr_afuic.strategies.procedure import Method, Procedure
from flwr_afuic.strategies.unlearning_tasks import start_reference


class ProxyDistill(Comparator):
    """Replace the model by a fresh student distilled from it on proxies, then train on.

    Ours: what AFU-IC takes as its reference is here the answer itself. It needs nothing of the
    erasing site and nothing of the others, but throws away whatever proxies do not carry over.
    Training goes on while the student is made; what retained sites learn meanwhile, and their
    updates in flight, are lost with the model they belong to. Needs ``model_factory`` and
    ``proxies``.

    Parameters
    ----------
    **erasing : Any
        Settings of :class:`Comparator`.
    """

    methods = ("proxy-distill",)

    def __init__(self, **erasing: Any) -> None:
        super().__init__(**erasing)
        if self.model_factory is None or self.proxies is None:
            raise ConfigError("ProxyDistill needs model_factory and proxies")

    def make_method(self) -> Method:
        """See :class:`Comparator`."""
        return _Student(self)


class _Student(Method):
    stops_training = False

    def __init__(self, settings: ProxyDistill) -> None:
        self._settings = settings

    def erase(self, record: ErasureRecord) -> Procedure:
        job = start_reference(self._settings, self.run)
        if job is None:
            raise ConfigError("ProxyDistill needs model_factory and proxies")
        student = yield job
        return list(student)
