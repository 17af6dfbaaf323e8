"""Where a method joins plain asynchronous training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from flwr.app import Message

from flwr_afuic import wire
from flwr_afuic.federation.buffer import Update
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.durability import Durability, Part
from flwr_afuic.unlearning.level import ForgetScore

if TYPE_CHECKING:
    from flwr_afuic.strategies.run import FederationRun


class RunHooks:
    """What a method may add to plain asynchronous training. Every default does nothing."""

    def bind(self, run: FederationRun) -> None:
        """Take hold of the run that is about to start."""
        self.run = run

    def may_train(self, site: str) -> bool:
        """Whether a site is sent training tasks and its updates are accepted."""
        return True

    def training_key(self) -> Hashable | None:
        """Return what differs whenever :meth:`may_train` answers differently.

        So that the engine need not ask it for every site at every version; None where it has to.
        """
        return () if type(self).may_train is RunHooks.may_train else None

    def stands_still(self) -> bool:
        """Whether no training and no evaluation is sent out now, to nobody."""
        return False

    def take_update(self, update: Update, weight: float) -> Update:
        """See, or change, an accepted update, of that staleness weight, before it is buffered."""
        return update

    def before_dispatch(self) -> None:
        """Do what comes before free clients are sent training tasks."""

    def task_config(self, member: Member) -> dict[str, wire.Scalar]:
        """Further config entries for any task of a member."""
        return {}

    def training_extras(self, member: Member) -> tuple[dict[str, wire.Scalar], dict[str, Arrays]]:
        """Further config entries, and groups of arrays, for a training task of a member."""
        return {}, {}

    def on_info(self, member: Member, info: dict[str, Any]) -> None:
        """See the scalars of a member's reply, before its update is judged."""

    def on_trained(self, task: Task, examples: int, scores: Mapping[str, ForgetScore]) -> None:
        """See what came with an update, after that was judged: scores by request."""

    def on_forgery(self, member: Member, why: str) -> None:
        """See that a node took the name of another; its reply is quarantined."""

    def on_reply(self, task: Task, message: Message) -> None:
        """Handle the reply to a task of the method's own."""

    def on_failure(self, task: Task, reason: str) -> None:
        """Handle a failed or expired task of the method's own, or of training with a note."""

    def finish(self, previous: Arrays, candidate: Arrays) -> Arrays:
        """Calibrate the next global model before it becomes one."""
        return candidate

    def after_version(self, entry: VersionEntry) -> None:
        """See each new version."""

    def guard(self) -> AbstractContextManager[object]:
        """Hold off other threads while a commit is made."""
        return nullcontext()

    def checkpoint(self) -> Part:
        """Return what belongs on disk with the next commit."""
        return Part()

    def restore(self, state: dict[str, Any], durability: Durability) -> None:
        """Go on from what :meth:`checkpoint` said in an earlier run."""

    def close(self) -> None:
        """Release what the method holds."""
