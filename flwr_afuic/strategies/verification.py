"""Verification of merged erasures: the site scores the current model, round after round."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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
        self._alone: set[str] = set()

    def try_send(self, record: ErasureRecord) -> None:
        """Ask the site for its score if one is due and the site is free.

        A site that trains on is asked along with its next training instead.
        """
        desk, run = self._desk, self._desk.run
        if not self._is_due(record):
            return
        member = desk.free_member(record.site)
        watches = record.state is State.COMPLETED
        if member is None or self._rides(record, member):
            return
        if watches and not self._may_watch(record.site, member):
            return
        config = run.config_for(member, wire.TASK_VERIFY, {})
        config[wire.REQUEST] = record.request_id
        config[wire.SCOPE] = record.notice.scope
        config[wire.WANT_LEVEL] = self._wants_level(record)
        if record.batch:
            config[wire.BATCH] = ",".join((record.request_id, *record.batch))
        content = run.dialect.evaluate(run.record_of(run.version, run.arrays), config)
        task = Task(member, "verify", run.version, run.round, request_id=record.request_id)
        if run.dispatcher.send(task, MessageType.EVALUATE, content):
            self._note_asked(record)
            if watches:
                self._watched[record.site] = member.tasks_sent

    def along_with_training(self, member: Member) -> dict[str, wire.Scalar]:
        """Name the requests whose data a site scores before it trains, as config entries.

        Of a site that keeps data and trains on, a message of its own for each score would take
        the place of a training: it loads model and data only once for both.
        """
        own = self._desk.book.of_site(member.site)
        if not own:
            return {}
        records = sorted(own, key=lambda record: not record.open)
        due = [r for r in records if self._is_due(r) and self._rides(r, member)]
        groups = []
        for record in due[: wire.MOST_SCORED]:
            self._note_asked(record)
            groups.append(",".join((record.request_id, *record.batch)))
        return {wire.SCORE_FOR: ";".join(groups)} if groups else {}

    def accept_along(self, task: Task, examples: int, said: Mapping[str, ForgetScore]) -> None:
        """Take the scores that came with an update of so many examples.

        What did not come is asked in a message of its own from then on, and so is a site that
        has nothing left to train on.
        """
        asked = [group.split(",")[0] for group in task.note.split(";")]
        for request_id in asked:
            if request_id not in said or examples < 1:
                self._alone.add(request_id)
        for request_id in asked:
            record = self._desk.book.find(request_id)
            if record is not None and request_id in said and self._is_awaited(record, task):
                self._take(record, task.version, said[request_id])

    def lost(self, task: Task) -> None:
        """Ask in messages of their own what a training that came to nothing should have told."""
        self._alone |= {group.split(",")[0] for group in task.note.split(";")}

    def accept(self, record: ErasureRecord, task: Task, reply: EvaluateReply) -> None:
        """Take the reply to a verification task; WireError if it is unusable."""
        if reply.info.get(wire.REQUEST) != record.request_id:
            raise WireError("the reply to a verification names another request")
        score = wire.read_score(reply.loss, reply.metrics.get("accuracy"), reply.examples)
        self._desk.run.roster.succeeded(task.member)
        if not self._is_awaited(record, task):
            return
        if self._wants_level(record):
            record.level = wire.read_level(reply.info.get(wire.LEVEL))
        self._take(record, task.version, score)

    def _is_due(self, record: ErasureRecord) -> bool:
        """Whether a score is wanted now. A released site owes the federation nothing more."""
        # Asked at every event, and nearly always no: what is seldom true and cheap comes first.
        state = record.state
        if state is State.COMPLETED:
            if record.notice.scope == "client":
                return False
        elif state is not State.VERIFYING:
            return False
        attempt = self._desk.attempts.get(record.request_id)
        if attempt is None or record.leader:
            return False
        return self._desk.run.round >= attempt.next_verification

    def _rides(self, record: ErasureRecord, member: Member) -> bool:
        """Whether the site's next training brings the score along."""
        run = self._desk.run
        return (
            member.scores
            and record.request_id not in self._alone
            and not self._wants_level(record)
            and run.settings.mode == "async"
            and run.hooks.may_train(record.site)
            and run.enough_nodes()
            and not run.hooks.stands_still()
        )

    def _wants_level(self, record: ErasureRecord) -> bool:
        return not record.evidence and record.level is None

    def _note_asked(self, record: ErasureRecord) -> None:
        settings, run = self._desk.settings, self._desk.run
        rounds = settings.watch_every if record.state is State.COMPLETED else 1
        self._desk.attempts[record.request_id].next_verification = run.round + rounds

    def _is_awaited(self, record: ErasureRecord, task: Task) -> bool:
        """Whether a score is of use: of a request that is verified, and of no older model."""
        verified = record.state in (State.VERIFYING, State.COMPLETED)
        return verified and task.version >= (record.merge_version or 0)

    def _may_watch(self, site: str, member: Member) -> bool:
        """Whether a completed request may be scored again now.

        A site with many of them must have its turn at something else in between.
        """
        turn = self._watched.get(site) != member.tasks_sent
        return turn or not self._desk.run.hooks.may_train(site)

    def _take(self, record: ErasureRecord, version: int, score: ForgetScore) -> None:
        """Judge a score of a version, and move the request on."""
        desk = self._desk
        desk.attempts[record.request_id].since = desk.run.clock.now()
        record.scores.append((version, score))
        desk.book.note(
            record,
            "verification",
            version=version,
            loss=score.loss if math.isfinite(score.loss) else None,
            accuracy=score.accuracy,
            count=score.count,
        )
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
        # What the site has trained since its first word of the request is of data it keeps.
        desk.refuse(record.site)
        del desk.attempts[record.request_id]
        self._begin_again(record)
