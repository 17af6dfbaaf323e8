"""How a run ends: with its last replies at home, or with an error that says why."""

from __future__ import annotations

from logging import WARNING
from typing import TYPE_CHECKING

from flwr.app import Message
from flwr.supercore import log

from flwr_afuic.errors import AfuicError, FederationError, WireError
from flwr_afuic.federation.journal import Span
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.dispatcher import Task

if TYPE_CHECKING:
    from flwr_afuic.strategies.run import FederationRun


def check_alive(run: FederationRun) -> None:
    """Raise a FederationError where nobody can train, or nobody returns a usable update."""
    waited = run.clock.now() - run.last_able
    if waited > run.timeout:
        connected, least = len(run.connected()), run.settings.min_available_nodes
        why = (
            "every connected site is refused training"
            if run.enough_nodes()
            else f"{connected} nodes are connected and min_available_nodes is {least}; "
            "start the sites' SuperNodes"
        )
        raise FederationError(f"nobody could train for {waited:.0f} s: {why}")
    if run.dispatcher.in_flight or not run.roster.members:
        return
    training = [member for member in run.roster.members if run.hooks.may_train(member.site)]
    if training and all(m.failures >= run.settings.max_failures for m in training):
        reasons = "; ".join(f"{m.site}: {m.last_failure}" for m in training[:3])
        raise FederationError(f"no site returns a usable update ({reasons})")


def drain(run: FederationRun) -> None:
    """Let the last tasks come home, and the last round's evaluation with them.

    No node is left with a task in flight. In sync mode the last evaluation is waited for as
    long as any other, otherwise for ``drain_seconds``.
    """
    sync = run.settings.mode == "sync"
    end = run.clock.now() + (run.timeout if sync else run.settings.drain_seconds)
    due = [member for member in run.roster.members if member.due_evaluation]  # no more will be
    while run.clock.now() < end:
        for member in _can_evaluate(run, due):
            run.send_evaluation(member)
        for task, message in run.dispatcher.replies():
            _handle_last(run, task, message)
        if run.dispatcher.in_flight:
            run.clock.sleep(min(run.idle_seconds, max(0.0, end - run.clock.now())))
        elif not _can_evaluate(run, due):
            return


def _can_evaluate(run: FederationRun, due: list[Member]) -> list[Member]:
    free = [m for m in due if m.due_evaluation and run.roster.is_free(m)]
    free = [member for member in free if run.hooks.may_train(member.site)]
    return sorted(free, key=lambda member: (member.site, member.node_id))


def _handle_last(run: FederationRun, task: Task, message: Message | WireError | None) -> None:
    """Handle a reply after the last merge: evaluations count, training no longer does."""
    if task.kind == "evaluate":
        run.replies.handle(task, message)
        return
    run.journal.spans.append(
        Span(task.member.site, task.kind, task.sent - run.started, run.elapsed)
    )
    run.intake.release(task)
    if isinstance(message, Message) and not message.has_error() and task.kind == "train":
        try:
            run.replies.learn(task.member, run.dialect.read_train(message.content).info)
        except AfuicError as error:
            log(WARNING, "unusable last reply of %s: %s", task.member.site, error)
