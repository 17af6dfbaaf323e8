"""What becomes of a task: its reply is read and taken in, or quarantined, or its site backs off."""

from __future__ import annotations

from logging import WARNING
from typing import TYPE_CHECKING, Any

from flwr.app import Message

from flwr_afuic import wire
from flwr_afuic.errors import LayoutError, WireError
from flwr_afuic.federation.journal import Span
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.codec import explain_error, forget_arrays
from flwr_afuic.strategies.dispatcher import Task

if TYPE_CHECKING:
    from flwr_afuic.strategies.run import FederationRun

_METHOD_TASKS = ("unlearn", "verify", "gate")


class Replies:
    """Takes in replies for one run.

    Parameters
    ----------
    run : FederationRun
        Whose roster, journal, counters and hooks learn of them.
    """

    def __init__(self, run: FederationRun) -> None:
        self.run = run

    def handle(self, task: Task, message: Message | WireError | None) -> None:
        """Take in what became of a task; what is malformed is quarantined."""
        member = task.member
        self.run.journal.spans.append(
            Span(member.site, task.kind, task.sent - self.run.started, self.run.elapsed)
        )
        try:
            if message is None:
                self.run.counters.expired += 1
                self.fail(task, f"no reply within {self.run.timeout:g} s")
            elif isinstance(message, WireError):
                raise message
            elif message.has_error():
                self.run.counters.failed += 1
                reason = explain_error((message.error.reason or "").strip())
                self.fail(task, f"error {message.error.code}: {reason}")
            elif task.kind == "train":
                self._accept_training(task, message)
            elif task.kind == "evaluate":
                evaluation = self.run.dialect.read_evaluate(message.content)
                self.learn(member, evaluation.info)
                self.run.evaluations.accept(task.round, evaluation)
            elif task.kind == "poll":
                self.learn(member, self.run.dialect.read_poll(message.content))
                self.run.roster.succeeded(member)
            else:
                self.run.hooks.on_reply(task, message)
        except (WireError, LayoutError) as error:
            self._quarantine(task, str(error))
        finally:
            self.run.intake.release(task)

    def learn(self, member: Member, info: dict[str, Any]) -> None:
        """Take in what a reply says of its site."""
        protocol = info.get(wire.CLIENT)
        if isinstance(protocol, int) and not isinstance(protocol, bool):
            member.protocol = protocol
        member.returns_delta = info.get(wire.KIND, "") == wire.KIND_DELTA or member.returns_delta
        member.holds_lock = info.get(wire.HOLDS_LOCK) is True or member.holds_lock
        member.scores = info.get(wire.SCORES) is True or member.scores
        site = info.get(wire.SITE)
        if isinstance(site, str) and not self.run.roster.identify(member, site[:200]):
            why = f"an unauthenticated node says it is {site[:200]!r}, which is registered"
            self.run.hooks.on_forgery(member, why)
            raise WireError(why)
        self.run.hooks.on_info(member, info)

    def _accept_training(self, task: Task, message: Message) -> None:
        reply = self.run.dialect.read_train(message.content)
        forget_arrays(message)
        self.learn(task.member, reply.info)
        asked = task.note and wire.SCORED in reply.info
        scores = wire.read_scored(reply.info[wire.SCORED]) if asked else {}
        try:
            taken = self.run.intake.accept(task, reply)
        finally:  # what else the reply says counts, whatever its update is worth
            self.run.hooks.on_trained(task, reply.examples, scores)
        del reply  # before a new model is made: a copy less in memory
        full = taken and len(self.run.buffer) >= self.run.settings.buffer_size
        if full and self.run.settings.mode == "async":
            self.run.merge_buffer()
        elif self.run.awaits_training():
            self.run.buffer.settle()

    def _quarantine(self, task: Task, reason: str) -> None:
        self.run.counters.quarantined += 1
        if task.kind == "train":
            self.run.intake.record(task, "quarantined", reason)
        text = f"{reason}; quarantined, {self._back_off(task, reason)}"
        self.run.note("quarantined", task.member.site, text, level=WARNING)
        if task.kind in _METHOD_TASKS or task.note:
            self.run.hooks.on_failure(task, reason)

    def fail(self, task: Task, reason: str) -> None:
        """Note that a task came to nothing, and ask its site again later."""
        text = f"{task.kind} failed: {reason}; {self._back_off(task, reason)}"
        self.run.note("task-failed", task.member.site, text, level=WARNING)
        if task.kind in _METHOD_TASKS or task.note:
            self.run.hooks.on_failure(task, reason)

    def _back_off(self, task: Task, reason: str) -> str:
        # A site that cannot evaluate may still train, and one that cannot train may still
        # evaluate: an evaluation neither makes a site fail nor forgives its failures.
        if task.kind in ("evaluate", "gate"):
            return "left out of this evaluation"
        return f"asked again in {self.run.roster.failed(task.member, reason):g} s"
