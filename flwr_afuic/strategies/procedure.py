"""How a method says what it does with an erasure request: step by step, as a generator.

A method's procedure yields either tasks for sites, and is sent their answers, or a computation of
the server, and is sent its result; what it returns becomes the next global model. Retries, sites
that do not answer, the book of requests and the state directory are not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from flwr_afuic import wire
from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.federation.buffer import Update
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.federation.worker import Job
from flwr_afuic.strategies.run import FederationRun


@dataclass(frozen=True)
class Ask:
    """One task of a procedure for one site.

    Attributes
    ----------
    site : str
        Who is asked.
    kind : str
        ``wire.TASK_TRAIN`` (ordinary training), ``wire.TASK_UNLEARN`` or ``wire.TASK_GRADIENT``.
    arrays : list of ndarray
        The model it is about.
    extras : mapping of str to list of ndarray
        Further models that go along, by name.
    settings : str
        What kind of unlearning, or the gradient of which loss.
    effort : float
        Share of the usual training, in (0, 1].
    vital : bool
        Of the erasing site itself: without an answer the request fails. Others who do not answer
        are left out.
    """

    site: str
    kind: str
    arrays: Arrays = field(repr=False)
    extras: Mapping[str, Arrays] = field(default_factory=dict, repr=False)
    settings: str = ""
    effort: float = 1.0
    vital: bool = False


@dataclass(frozen=True)
class Answer:
    """A site's answer: the update of a training, the delta of an unlearning, or a gradient."""

    arrays: Arrays = field(repr=False)
    examples: int
    evidence: wire.Evidence | None = None


Answers: TypeAlias = dict[str, Answer]
Step: TypeAlias = list[Ask] | Job[Arrays]
Procedure: TypeAlias = Generator[Step, Any, Arrays]


class Method:
    """One way to meet client-scope erasure requests, with what it remembers during a run.

    Attributes
    ----------
    stops_training : bool
        Whether the federation stands still from the request until the new model: updates in
        flight are waited for and merged first. Otherwise training goes on meanwhile, and updates
        of the older models are refused once the new one is there.
    """

    stops_training: ClassVar[bool] = True

    def bind(self, run: FederationRun) -> None:
        """Take hold of the run that is about to start."""
        self.run = run

    def erase(self, record: ErasureRecord) -> Procedure:
        """Return the steps that meet a request, from the model as it stands."""
        raise NotImplementedError

    def take_update(self, update: Update, weight: float) -> Update:
        """See, or change, an accepted update, of that staleness weight, before it is buffered."""
        return update

    def after_version(self, entry: VersionEntry) -> None:
        """See each new version."""

    def withdrawn(self, site: str) -> None:
        """Drop what was taken of a site and not merged yet."""

    def discarded(self) -> None:
        """Drop what was taken of anybody and not merged yet."""

    def erased(self, record: ErasureRecord) -> None:
        """Delete what is held of a site whose erasure is merged."""

    # ---- on disk --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what belongs on disk, as plain values."""
        return {}

    def stored(self) -> dict[str, Arrays]:
        """Return models that belong on disk; the one of a given name never changes."""
        return {}

    def restore(self, state: dict[str, Any], read: Callable[[str], Arrays]) -> None:
        """Go on from :meth:`state` and :meth:`stored` of an earlier run."""

    def close(self) -> None:
        """Release what the method holds."""

    # ---- what procedures share ------------------------------------------------------

    def retained(self, record: ErasureRecord) -> list[str]:
        """Name the connected sites that stay, sorted."""
        sites = {member.site for member in self.run.retained() if member.connected}
        return sorted(sites - {record.site})

    def moved(self, arrays: Arrays, step: Vector) -> Arrays:
        """Add a step of shape (p,) to a model; statistics and counters stay."""
        layout = self.run.layout
        return layout.with_trained(layout.flatten(arrays) + step, arrays)
