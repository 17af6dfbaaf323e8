"""FedOSD: steepest descent for unlearning, orthogonal to every retained gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flwr_afuic import wire
from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.buffer import Update
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.strategies.comparators.base import Comparator
from flwr_afuic.strategies.procedure import Answers, Ask, Method, Procedure
from flwr_afuic.unlearning.orthogonal import LOSSES, orthogonal_direction, without_return


class FedOSD(Comparator):
    """Descent on an unlearning loss, orthogonal to the retained gradients (AAAI 2025).

    Z. Pan et al., "Federated Unlearning with Gradient Descent and Conflict Mitigation". In each
    unlearning round the erasing site sends the gradient of ``-log(1 - p_y / 2)`` on its data and
    every other site that of its loss; the model steps along the part of the first that is
    orthogonal to all the others. Afterwards the retained sites train on, their updates stripped of
    what points back towards the model before the unlearning [P]. See
    :mod:`flwr_afuic.unlearning.orthogonal` for what is ours there; so are the defaults
    below, and that every update is stripped as it arrives, for the rest of the run [O].

    Parameters
    ----------
    unlearning_rounds : int
        Rounds of gradients from everybody.
    unlearning_lr : float
        Step along the direction.
    **erasing : Any
        Settings of :class:`Comparator`.
    """

    methods = ("fedosd",)

    def __init__(
        self, *, unlearning_rounds: int = 20, unlearning_lr: float = 0.5, **erasing: Any
    ) -> None:
        super().__init__(**erasing)
        if not isinstance(unlearning_rounds, int) or unlearning_rounds < 1:
            raise ConfigError(
                f"unlearning_rounds is {unlearning_rounds!r}; it must be an integer of at least 1"
            )
        if not 0 < unlearning_lr < math.inf:
            raise ConfigError(f"unlearning_lr is {unlearning_lr}; it must be positive and finite")
        self.unlearning_rounds = unlearning_rounds
        self.unlearning_lr = unlearning_lr

    def make_method(self) -> Method:
        """See :class:`Comparator`."""
        return OrthogonalDescent(self.unlearning_rounds, self.unlearning_lr)

    def describe(self) -> tuple[str, dict[str, Any]]:
        """See :class:`ErasureStrategy`."""
        return "FedOSD", {
            "unlearning_rounds": self.unlearning_rounds,
            "unlearning_lr": self.unlearning_lr,
        }


class OrthogonalDescent(Method):
    """The two stages, and the model before them that no update may lead back to."""

    def __init__(self, rounds: int, lr: float) -> None:
        self._rounds = rounds
        self._lr = lr
        self._before: dict[str, Arrays] = {}

    def erase(self, record: ErasureRecord) -> Procedure:
        """Step by step along the orthogonal direction."""
        layout, before, site = self.run.layout, self.run.arrays, record.site
        model = before
        for _ in range(self._rounds):
            asks = [Ask(site, wire.TASK_GRADIENT, model, settings=LOSSES[1], vital=True)]
            asks += [
                Ask(other, wire.TASK_GRADIENT, model, settings=LOSSES[0])
                for other in self.retained(record)
            ]
            answers: Answers = yield asks
            found = {name: layout.flatten(answers[name].arrays) for name in sorted(answers)}
            target = found.pop(site)
            direction = orthogonal_direction(target, list(found.values()))
            model = self.moved(model, -self._lr * direction)
        self._before[record.request_id] = before
        return model

    def take_update(self, update: Update, weight: float) -> Update:
        """Strip an update of what points back to a model before an unlearning."""
        layout = self.run.layout
        step = kept = layout.flatten(update.arrays)
        for before in self._before.values():
            away: Vector = layout.flatten(self.run.arrays) - layout.flatten(before)
            kept = without_return(kept, away)
        if kept is step:
            return update
        arrays = layout.with_trained(kept, update.arrays)
        return Update(update.site, update.base_version, update.examples, arrays)

    def stored(self) -> dict[str, Arrays]:
        """See :class:`Method`."""
        return dict(self._before)

    def state(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {"before": list(self._before)}

    def restore(self, state: dict[str, Any], read: Callable[[str], Arrays]) -> None:
        """See :class:`Method`."""
        self._before = {name: read(name) for name in state.get("before", [])}
