"""The strategy under every comparator: AFU-IC's requests, another method's procedure."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from flwr_afuic.erasure.book import RequestBook
from flwr_afuic.errors import ConfigError
from flwr_afuic.strategies.erasing import ErasureStrategy
from flwr_afuic.strategies.erasures import ErasureHooks
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.strategies.procedure import Method
from flwr_afuic.strategies.standstill import StandstillHooks


class Comparator(ErasureStrategy):
    """Training that erases whole sites by a method of the literature.

    Requests come in, are verified and certified as with AFU-IC. There is no lock, no calibration
    and no fidelity gate, and a forget level that is not met is reported, not tried again
    (``max_attempts=1``): the papers know none of that.

    Parameters
    ----------
    recovery_rounds : int
        Rounds of retained training before the first verification. All of these methods break
        the model and count on such rounds to mend it; how many is ours.
    **erasing : Any
        Settings of :class:`~flwr_afuic.strategies.erasing.ErasureStrategy` and of its engine.
    """

    def __init__(self, *, recovery_rounds: int = 3, **erasing: Any) -> None:
        super().__init__(**{"gate": GateSettings(by="off"), "max_attempts": 1, **erasing})
        if not isinstance(recovery_rounds, int) or recovery_rounds < 0:
            raise ConfigError(
                f"recovery_rounds is {recovery_rounds!r}; it must be an integer of at least 0"
            )
        self.recovery_rounds = recovery_rounds
        self.method: Method | None = None

    @abstractmethod
    def make_method(self) -> Method:
        """Return the method for a new run."""

    def make_erasures(self, book: RequestBook) -> ErasureHooks:
        """Return the steps by which a new run meets its requests."""
        self.method = self.make_method()
        return StandstillHooks(self, book, self.method)
