"""Verification of merged erasures: the site scores the current model, round after round."""

from __future__ import annotations

import math
from collections.abc import Callable

from flwr.app import MessageType

from flwr_afuic import wire
from flwr_afuic.erasure.book import ErasureRecord, State
from flwr_afuic.errors import WireError
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.codec import EvaluateReply
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.erasure_desk import ErasureDesk
from flwr_afuic.unlearning.level import ForgetScore, LevelVerdict, forget_level_met


class Verification:
    """From a merged delta to a completed request, or back to another attempt.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    begin_again : callable
        Starts a further attempt at a request that is received again.
    """

    def __init__(self, desk: ErasureDesk, begin_again: Callable[[ErasureRecord], object]) -> None:
        self._desk = desk
        self._begin_again = begin_again
        self._watched: dict[str, int] = {}

    def try_send(self, record: ErasureRecord) -> None:
        """Ask the site for its score if one is due and the site is free."""
        desk, run = self._desk, self._desk.run
        attempt = desk.attempts[record.request_id]
        if run.round < attempt.next_verification:
            return
        if record.state is State.COMPLETED and record.notice.scope == "client":
            return  # released: the site owes the federation nothing more
        member = desk.free_member(record.site)
        watches = record.state is State.COMPLETED
        if member is None or (watches and not self._may_watch(record.site, member)):
            return
        config = run.config_for(member, wire.TASK_VERIFY, {})
        config[wire.REQUEST] = record.request_id
        config[wire.SCOPE] = record.notice.scope
        config[wire.WANT_LEVEL] = not record.evidence and record.level is None
        if record.batch:
            config[wire.BATCH] = ",".join((record.request_id, *record.batch))
        content = run.dialect.evaluate(run.record_of(run.version, run.arrays), config)
        task = Task(member, "verify", run.version, run.round, request_id=record.request_id)
        if run.dispatcher.send(task, MessageType.EVALUATE, content):
            attempt.next_verification = run.round + (desk.settings.watch_every if watches else 1)
            if watches:
                self._watched[record.site] = member.tasks_sent

    def _may_watch(self, site: str, member: Member) -> bool:
        """Whether a completed request may be scored again now.

        A site with many of them must have its turn at something else in between.
        """
        turn = self._watched.get(site) != member.tasks_sent
        return turn or not self._desk.run.hooks.may_train(site)

    def accept(self, record: ErasureRecord, task: Task, reply: EvaluateReply) -> None:
        """Take the reply to a verification task; WireError if it is unusable."""
        desk, run = self._desk, self._desk.run
        if reply.info.get(wire.REQUEST) != record.request_id:
            raise WireError("the reply to a verification names another request")
        score = wire.read_score(reply.loss, reply.metrics.get("accuracy"), reply.examples)
        run.roster.succeeded(task.member)
        if record.state not in (State.VERIFYING, State.COMPLETED):
            return
        if task.version < (record.merge_version or 0):
            return  # of a model older than the last merge
        desk.attempts[record.request_id].since = run.clock.now()
        record.scores.append((task.version, score))
        desk.book.note(
            record,
            "verification",
            version=task.version,
            loss=score.loss if math.isfinite(score.loss) else None,
            accuracy=score.accuracy,
            count=score.count,
        )
        if not record.evidence and record.level is None:
            record.level = wire.read_level(reply.info.get(wire.LEVEL))
        verdict = record.verdict = self._judge(record, score)
        if verdict is None:
            text = "the site sent no forget level to verify against"
            state = State.FAILED if record.evidence else State.COMPLETED_UNVERIFIED
            desk.move(record, state, text)
        elif not verdict.met:
            if record.state is State.COMPLETED:
                desk.move(record, State.VERIFYING, f"resurfaced: {verdict.text}")
            self._retry(record, verdict)
        elif record.state is State.VERIFYING:
            self._confirm(record, verdict)

    def _judge(self, record: ErasureRecord, score: ForgetScore) -> LevelVerdict | None:
        """Compare a score with the request's forget level: the reference's, else the hold-out's."""
        level = record.level
        if record.evidence:
            level = record.evidence[-1].reference or record.evidence[-1].holdout
        return None if level is None else forget_level_met(score, level)

    def _confirm(self, record: ErasureRecord, verdict: LevelVerdict) -> None:
        desk = self._desk
        record.verified_rounds += 1
        desk.run.note("verified", record.site, f"round {record.verified_rounds}: {verdict.text}")
        if record.verified_rounds >= desk.settings.verify_rounds:
            desk.move(record, State.COMPLETED, verdict.text)
            attempt = desk.attempts[record.request_id]
            attempt.next_verification = desk.run.round + desk.settings.watch_every

    def _retry(self, record: ErasureRecord, verdict: LevelVerdict) -> None:
        """Send a request whose level is not met back for another attempt, or report it."""
        desk = self._desk
        once = desk.settings.unlearns_from_store(record)  # the same history gives the same again
        if once or record.attempts >= desk.settings.max_attempts:
            text = f"not met after {record.attempts} attempts: {verdict.text}"
            desk.move(record, State.FAILED, text)
            desk.run.note("not-met", record.site, verdict.text)
            return
        desk.move(record, State.RECEIVED, verdict.text)
        desk.withdraw(record.site)
        del desk.attempts[record.request_id]
        self._begin_again(record)
