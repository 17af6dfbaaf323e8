"""What a procedure asks of the sites: sent when they are free, read when they answer."""

from __future__ import annotations

from flwr.app import MessageType

from flwr_afuic import wire
from flwr_afuic.erasure.book import ErasureRecord, State
from flwr_afuic.errors import ErasureError, WireError
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.codec import TrainReply, to_record
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.erasure_desk import ErasureDesk
from flwr_afuic.strategies.procedure import Answer, Answers, Ask
from flwr_afuic.strategies.unlearning_tasks import read_evidence

_TASK_FAILURES = 3


class Errands:
    """The questions of one erasure, a set at a time.

    Every method raises an ErasureError where the erasing site itself cannot answer: the request
    has then failed. Others who cannot are left out, and the journal says so.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    record : ErasureRecord
        The request the questions are about.

    Attributes
    ----------
    answers : dict of str to Answer
        Of the current set, by site.
    """

    def __init__(self, desk: ErasureDesk, record: ErasureRecord) -> None:
        self._desk = desk
        self._record = record
        self._waiting: dict[str, Ask] = {}
        self._flying: dict[str, Ask] = {}
        self._failures = 0
        self._since = desk.run.clock.now()
        self.answers: Answers = {}

    def begin(self, asks: list[Ask]) -> None:
        """Take a new set of questions, one a site."""
        self._waiting, self._flying = {ask.site: ask for ask in asks}, {}
        self.answers, self._since = {}, self._desk.run.clock.now()

    @property
    def done(self) -> bool:
        """Whether everybody has answered or was left out."""
        return not self._waiting and not self._flying

    # ---- to the sites ---------------------------------------------------------------

    def send(self) -> None:
        """Send what is asked of those who are free; leave out those who are gone."""
        run = self._desk.run
        connected = {member.site for member in run.connected()}
        for site, ask in list(self._waiting.items()):
            if site not in connected and not ask.vital:
                self._leave_out(site, "it is not connected")
                continue
            member = self._desk.free_member(site)
            if member is None:
                continue
            if ask.kind != wire.TASK_TRAIN and member.protocol is None:
                text = "its client does not speak the erasure protocol"
                if ask.vital:
                    raise ErasureError(f"{text}; derive it from ErasureClient")
                self._leave_out(site, text)
            elif self._dispatch(ask, member):
                self._flying[site] = self._waiting.pop(site)
        silent = run.clock.now() - self._since
        if self._waiting and not self._flying and silent >= self._desk.settings.site_timeout:
            names = ", ".join(self._waiting)
            raise ErasureError(f"no usable word from {names} for {silent:.0f} s")

    def _leave_out(self, site: str, why: str) -> None:
        self._waiting.pop(site, None)
        self._flying.pop(site, None)
        self._desk.run.note("left-out", site, f"of the erasure of {self._record.site}: {why}")

    def _dispatch(self, ask: Ask, member: Member) -> bool:
        run, record, settings = self._desk.run, self._record, self._desk.settings
        base = run.train_config if ask.kind == wire.TASK_TRAIN else {}
        config = run.config_for(member, ask.kind, base)
        if ask.kind == wire.TASK_TRAIN:
            config[wire.EFFORT] = ask.effort
            config[wire.WANT_DELTA] = settings.client_deltas
        else:
            config[wire.SETTINGS] = ask.settings
            config[wire.PRIVACY] = settings.privacy.to_json()
        if ask.vital:
            config[wire.REQUEST], config[wire.SCOPE] = record.request_id, record.notice.scope
        content = run.dialect.train(to_record(run.layout.names, ask.arrays), config, ask.extras)
        task = Task(member, "unlearn", run.version, run.round, request_id=record.request_id)
        if not run.dispatcher.send(task, MessageType.TRAIN, content):
            return False
        if record.state is State.RECEIVED:
            name = type(settings).__name__
            text = f"{name} from version {run.version}, attempt {record.attempts}"
            self._desk.move(record, State.DISPATCHED, text)
        return True

    # ---- and back -------------------------------------------------------------------

    def expects(self, task: Task) -> bool:
        """Whether a task is one of the current set."""
        return task.request_id == self._record.request_id and task.member.site in self._flying

    def take(self, task: Task, reply: TrainReply) -> None:
        """Take an expected answer; WireError or LayoutError if it is unusable."""
        run, site = self._desk.run, task.member.site
        ask = self._flying[site]
        failure = reply.info.get(wire.FAILURE)
        if failure:
            run.roster.succeeded(task.member)
            raise ErasureError(f"the site cannot carry it out: {str(failure)[:300]}")
        answer = self._read(ask, reply)
        run.roster.succeeded(task.member)
        del self._flying[site]
        self.answers[site], self._since = answer, run.clock.now()
        self._desk.attempts[self._record.request_id].since = self._since
        if answer.evidence is not None:
            self._record.evidence.append(answer.evidence)

    def _read(self, ask: Ask, reply: TrainReply) -> Answer:
        layout, kind = self._desk.run.layout, reply.info.get(wire.KIND)
        evidence = None
        if ask.kind == wire.TASK_UNLEARN:
            evidence = read_evidence(self._record, reply)
        elif ask.kind == wire.TASK_GRADIENT and kind != wire.KIND_GRADIENT:
            raise WireError("the reply to a gradient task is no gradient")
        if reply.examples < 1:
            raise WireError(f"num_examples is {reply.examples} in an answer to {ask.kind!r}")
        layout.check(reply.arrays, f"answer of {ask.site}")
        arrays = reply.arrays
        if ask.kind == wire.TASK_TRAIN and kind != wire.KIND_DELTA:
            arrays = layout.update_between(arrays, ask.arrays)
        return Answer(arrays, reply.examples, evidence)

    def lost(self, task: Task, reason: str) -> None:
        """Ask the erasing site again, a bounded number of times; leave others out."""
        site = task.member.site
        if not self._flying[site].vital:
            self._leave_out(site, reason)
            return
        self._waiting[site] = self._flying.pop(site)
        self._failures += 1
        if self._failures > _TASK_FAILURES:
            raise ErasureError(f"unlearning failed {self._failures} times: {reason}")
