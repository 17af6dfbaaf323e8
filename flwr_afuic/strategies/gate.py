"""The fidelity gate: an erasure whose merge would cost the federation too much is held.

An erasure is itself a way to attack: a site may answer with a delta that ruins the model. Before
a merge the candidate is compared with the current model, on the server's proxies, by a score of
the operator's own, or at retained sites. What costs more than the bound waits for the operator.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import WARNING
from typing import Literal, get_args

import torch
from flwr.app import MessageType
from torch import Tensor, nn

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError, WireError
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.roster import Member
from flwr_afuic.federation.worker import Job
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.codec import EvaluateReply, to_record
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.inference import predict
from flwr_afuic.unlearning.tasks import task_of

GateBy = Literal["auto", "proxies", "sites", "off"]
ModelFactory = Callable[[], nn.Module]


@dataclass(frozen=True)
class GateSettings:
    """When a merge is held.

    Attributes
    ----------
    by : {"auto", "proxies", "sites", "off"}
        Who judges: the share of proxies on which the merged model still predicts what the
        current one does; the accuracy retained sites report for both; or, by default, proxies
        where there are any, else sites.
    max_cost : float
        Greatest loss of that score, in (0, 1].
    sites : int
        Retained sites asked, at least 1; drawn anew for each merge.
    score : callable, optional
        The operator's own score of a model's arrays, higher is better; replaces ``by``.
    """

    by: GateBy = "auto"
    max_cost: float = 0.15
    sites: int = 3
    score: Callable[[Arrays], float] | None = None

    def __post_init__(self) -> None:
        if self.by not in get_args(GateBy):
            raise ConfigError(f"gate is by {self.by!r}; use one of {', '.join(get_args(GateBy))}")
        if not 0 < self.max_cost <= 1:
            raise ConfigError(f"max_cost is {self.max_cost}; it must be in (0, 1]")
        if not isinstance(self.sites, int) or self.sites < 1:
            raise ConfigError(f"sites is {self.sites!r}; it must be an integer of at least 1")


@dataclass(frozen=True)
class GateVerdict:
    """What a merge would cost, in score; None where nobody could tell."""

    cost: float | None
    judge: str
    held: bool

    @property
    def text(self) -> str:
        """One sentence for logs and reports."""
        if self.cost is None:
            return f"the fidelity gate could not judge: {self.judge}"
        return f"fidelity gate, {self.judge}: the merge costs {self.cost:.3f}"


@dataclass
class GateCase:
    """One candidate before the gate.

    Attributes
    ----------
    models : dict of str to list of ndarray
        ``before`` and ``after`` the merge.
    asked : dict of str to list of str
        By site: models it has yet to score.
    scores : dict of (site, model) to (accuracy, examples)
        What the sites said.
    job : Job or None
        A judgement made on the server.
    """

    request_id: str
    models: dict[str, Arrays]
    asked: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    job: Job[float] | None = None
    judge: str = ""


class FidelityGate:
    """Judges candidates of one run.

    Parameters
    ----------
    run : FederationRun
        The run.
    settings : GateSettings
        When a merge is held.
    factory, proxies : callable and Tensor of shape (n, c, h, w), optional
        For the proxies' judgement.
    """

    def __init__(
        self,
        run: FederationRun,
        settings: GateSettings,
        *,
        factory: ModelFactory | None,
        proxies: Tensor | None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._factory = factory
        self._proxies = proxies

    def open(self, request_id: str, before: Arrays, after: Arrays, target: str) -> GateCase | None:
        """Begin to judge a candidate; None where the gate is off.

        Parameters
        ----------
        request_id : str
            The erasure.
        before, after : list of ndarray
            The current and the merged model.
        target : str
            The site that erases: it is not asked.
        """
        settings, run = self._settings, self._run
        case = GateCase(request_id, {"before": before, "after": after})
        if settings.score is not None:
            score = settings.score
            case.judge = "the operator's score"
            case.job = run.worker.submit(lambda: float(score(before)) - float(score(after)))
            return case
        if settings.by == "off":
            return None
        factory, proxies = self._factory, self._proxies
        if settings.by != "sites" and factory is not None and proxies is not None:
            case.judge = f"agreement on {len(proxies)} proxies"
            case.job = run.worker.submit(lambda: disagreement(factory, proxies, before, after))
            return case
        if settings.by == "proxies":
            case.judge = "the server has no proxies"
            return case
        healthy = sorted({m.site for m in run.retained() if m.connected and m.site != target})
        # Drawn for each merge, not the first by name: who asks cannot choose who judges.
        seed = derive_seed(run.settings.seed, "gate", request_id, run.version)
        drawn = random.Random(seed).sample(healthy, min(settings.sites, len(healthy)))
        case.asked = {site: ["before", "after"] for site in sorted(drawn)}
        case.judge = f"accuracy at {', '.join(case.asked) or 'no'} retained site(s)"
        return case

    def ask(self, case: GateCase) -> None:
        """Send what the retained sites have yet to score to those that are free."""
        run = self._run
        sites = [site for site, waiting in sorted(case.asked.items()) if waiting]
        allowed = (site for site in sites if run.hooks.may_train(site))
        for member in [m for site in allowed for m in run.roster.all_free_of_site(site)]:
            name = case.asked[member.site][0]
            config = run.config_for(member, "evaluate", {})
            task = Task(member, "gate", run.version, run.round, request_id=case.request_id)
            task.note = name
            record = to_record(run.layout.names, case.models[name])
            content = run.dialect.evaluate(record, config)
            run.dispatcher.send(task, MessageType.EVALUATE, content)

    def accept(self, case: GateCase, task: Task, reply: EvaluateReply) -> None:
        """Take a site's score; WireError if it is unusable."""
        accuracy = reply.metrics.get("accuracy")
        if accuracy is None:
            self.lost(case, task.member)
            return
        score = wire.read_score(0.0, accuracy, reply.examples)
        if task.note in case.asked.get(task.member.site, []):
            case.asked[task.member.site].remove(task.note)
            case.scores[task.member.site, task.note] = (score.accuracy, score.count)

    def lost(self, case: GateCase, member: Member) -> None:
        """Go on without a site that cannot score."""
        case.asked.pop(member.site, None)
        case.scores = {key: value for key, value in case.scores.items() if key[0] != member.site}

    def verdict(self, case: GateCase) -> GateVerdict | None:
        """Return the judgement, or None while it is not made."""
        if case.job is not None:
            if not case.job.done():
                return None
            try:
                return self._judged(float(case.job.result()), case.judge)
            except Exception as error:  # noqa: BLE001 - user code failed; somebody must look
                return GateVerdict(None, f"{case.judge} failed: {error}", held=True)
        for site in [s for s, left in case.asked.items() if left and not self._may_answer(s)]:
            del case.asked[site]
            case.scores = {key: value for key, value in case.scores.items() if key[0] != site}
        if any(case.asked.values()):
            return None
        if not case.scores:
            return GateVerdict(None, case.judge, held=False)
        return self._judged(_mean(case, "before") - _mean(case, "after"), case.judge)

    def _may_answer(self, site: str) -> bool:
        roster = self._run.roster
        there = (m.connected and roster.healthy(m) for m in roster.all_of_site(site))
        return self._run.hooks.may_train(site) and any(there)

    def _judged(self, cost: float, judge: str) -> GateVerdict:
        # Written so that a cost that is no number is held, too.
        return GateVerdict(cost, judge, held=not cost <= self._settings.max_cost)

    def note(self, verdict: GateVerdict, site: str) -> None:
        """Write a judgement down where nobody could tell."""
        if verdict.cost is None:
            self._run.note("gate-skipped", site, verdict.text, level=WARNING)


def disagreement(factory: ModelFactory, proxies: Tensor, before: Arrays, after: Arrays) -> float:
    """How far two models' predictions on the proxies differ, in [0, 1].

    Of classification the share that differs, of segmentation 1 - the Dice between the two.
    """
    outputs: list[Tensor] = []
    for arrays in (before, after):
        model = factory()
        set_arrays(model, arrays)
        with torch.no_grad():
            outputs.append(predict(model, proxies))
    return task_of(model).disagreement(*outputs)


def _mean(case: GateCase, name: str) -> float:
    rows = [score for (_, model), score in case.scores.items() if model == name]
    total = sum(examples for _, examples in rows)
    if total <= 0:
        raise WireError("the sites scored no examples")
    return sum(accuracy * examples for accuracy, examples in rows) / total
