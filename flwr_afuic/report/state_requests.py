"""Each erasure request as the operator's view shows it: where it stands, and its curve."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flwr_afuic.erasure.certificate import verify_certificate
from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.errors import AfuicError, StateError
from flwr_afuic.state import certificates
from flwr_afuic.state.reading import StateView
from flwr_afuic.state.rows import CertificateRow, RequestRow
from flwr_afuic.state.standing import Standing, standings
from flwr_afuic.unlearning.level import ACCURACY_SLACK, LOSS_SHARE, ForgetScore, forget_level_met

STATES: dict[str, tuple[str, str, str]] = {
    "waiting": ("open", "Waiting", "no server has taken it up yet"),
    "received": ("open", "Received", "its site is given the task as soon as it can take it"),
    "dispatched": ("open", "At the site", "the site unlearns; the others train on"),
    "unlearned": ("open", "Unlearned", "the site's change is here and about to be merged"),
    "held": ("warn", "Held", "the fidelity gate holds the merge until you decide"),
    "merged": ("open", "Merged", "verification is about to begin"),
    "verifying": ("open", "Being verified", "the site scores the model round after round"),
    "completed": ("good", "Completed", "merged, and verified by the site"),
    "completed-unverified": ("warn", "Not verified", "merged; the site was gone before verifying"),
    "refused": ("warn", "Refused", "nothing was merged"),
    "failed": ("bad", "Failed", "it was not carried out, or its forget level was not reached"),
    "cancelled": ("calm", "Cancelled", "taken back; nothing was merged"),
}
"""Of each state: tone, name, and what it means."""

CLOSED = frozenset({"completed", "completed-unverified", "refused", "failed", "cancelled"})


@dataclass(frozen=True)
class Level:
    """The forget level of a request: what a model that never saw the data would score.

    ``reference`` is that score, ``of`` says whose: ``reference`` or ``hold-out``.
    """

    of: str
    reference: ForgetScore

    @property
    def loss(self) -> float:
        """Least loss on the erased data, in nats."""
        return LOSS_SHARE * self.reference.loss

    @property
    def accuracy(self) -> float:
        """Greatest accuracy on the erased data."""
        return self.reference.accuracy + ACCURACY_SLACK


@dataclass(frozen=True)
class Scored:
    """One score on the erased data: the model's version, and whether it meets the level."""

    version: int
    score: ForgetScore
    met: bool | None


@dataclass(frozen=True)
class Issued:
    """A certificate on file, and what is wrong with it; nothing if it verifies."""

    row: CertificateRow
    problems: list[str]


@dataclass(frozen=True)
class RequestView:
    """One request with everything a page shows of it.

    Attributes
    ----------
    standing : Standing
        Where it stands.
    record : ErasureRecord or None
        What the engine stored; None where no server has seen it, or it is damaged.
    damage : str
        What is wrong with the stored record.
    level : Level or None
        None until a site has sent one.
    scores : list of Scored
        The resurfacing curve: since the first merge, in order.
    certificates : list of Issued
        Oldest issue first.
    """

    standing: Standing
    record: ErasureRecord | None
    damage: str
    level: Level | None
    scores: list[Scored]
    certificates: list[Issued]

    @property
    def state(self) -> str:
        """Its state; a cancelled or refused command counts as such."""
        return self.standing.state

    @property
    def tone(self) -> str:
        """``good``, ``open``, ``warn``, ``bad`` or ``calm``."""
        return STATES.get(self.state, ("bad", "", ""))[0]

    @property
    def name(self) -> str:
        """The state in words."""
        return STATES.get(self.state, ("", self.state, ""))[1]

    @property
    def meaning(self) -> str:
        """What the state means."""
        if self.record is not None and self.record.waiting:
            return "it waits for other small requests of its site, to be unlearned with them"
        if self.record is not None and self.record.released and self.state == "held":
            return "released by you; it is merged as soon as a server comes by"
        return STATES.get(self.state, ("", "", "a state this version does not know"))[2]

    @property
    def open(self) -> bool:
        """Whether it still moves."""
        return self.state not in CLOSED

    @property
    def what(self) -> str:
        """What it is to erase."""
        if self.standing.scope == "client":
            return "all data"
        count = self.standing.count
        return f"{count} sample{'' if count == 1 else 's'}"

    @property
    def score_name(self) -> str:
        """What the accuracies are, in words: ``mean Dice`` of a segmentation, say."""
        return "accuracy" if self.level is None else self.level.reference.name

    @property
    def last(self) -> str:
        """The resurfacing curve in one sentence."""
        if not self.scores:
            return "not scored by the site yet"
        newest = self.scores[-1]
        met = sum(entry.met is True for entry in self.scores)
        told = f"at version {newest.version}: loss {_loss(newest.score.loss)}"
        told += f", {self.score_name} {newest.score.accuracy:.2f}"
        if self.level is None:
            return f"{told}; there is no level to compare it with"
        verdict = "level met" if newest.met else "level not met"
        return f"{verdict} {told}; {met} of {len(self.scores)} scores met it"


def request_views(view: StateView) -> list[RequestView]:
    """Return every request, in the order they came in; raises nothing for damaged ones."""
    issued: dict[str, list[Issued]] = {}
    for entry in check_certificates(view):
        issued.setdefault(entry.row.request_id, []).append(entry)
    bodies = {row.id: row.body for row in view.requests}
    found = []
    for standing in _standings(view):
        filed = standing.id in bodies
        record, damage = _record(bodies[standing.id]) if filed else (None, "")
        level = None if record is None else _level(record)
        scores = [] if record is None else _scores(record, level)
        mine = issued.get(standing.id, [])
        found.append(RequestView(standing, record, damage, level, scores, mine))
    return found


def _standings(view: StateView) -> list[Standing]:
    """Return where each request stands; one whose record is damaged hides no other."""
    known = {row.id for row in view.requests}
    waiting = [command for command in view.commands if command.request_id not in known]
    found = [_standing(row, view) for row in view.requests]
    return found + standings(replace(view, requests=[], commands=waiting))


def _standing(row: RequestRow, view: StateView) -> Standing:
    try:
        return standings(replace(view, requests=[row]))[0]
    except (AttributeError, KeyError, TypeError, ValueError):
        # The columns beside the damaged record still say most.
        return Standing(
            row.id, row.site, row.scope, row.count, row.reason, "site", row.filed_at, row.state,
            0.0, "",
        )  # fmt: skip


def _record(body: object) -> tuple[ErasureRecord | None, str]:
    try:
        if not isinstance(body, dict):
            raise StateError("a stored erasure request is damaged: it is no object")
        return ErasureRecord.from_dict(body), ""
    except (AfuicError, AttributeError, TypeError, ValueError) as error:
        return None, str(error)


def _level(record: ErasureRecord) -> Level | None:
    """Return what the engine verifies against: the reference's score, else the hold-out's."""
    if not record.evidence:
        return None if record.level is None else Level("hold-out", record.level)
    evidence = record.evidence[-1]
    if evidence.reference is not None:
        return Level("reference", evidence.reference)
    return None if evidence.holdout is None else Level("hold-out", evidence.holdout)


def _scores(record: ErasureRecord, level: Level | None) -> list[Scored]:
    return [
        Scored(version, score, None if level is None else _met(score, level))
        for version, score in record.scores
    ]


def _met(score: ForgetScore, level: Level) -> bool:
    return forget_level_met(score, level.reference).met


def _loss(value: float) -> str:
    return "infinite" if value == float("inf") else f"{value:.2f}"


def check_certificates(view: StateView) -> list[Issued]:
    """Read every certificate from its files and say what is wrong with each."""
    chained = {
        (row.body.get("request"), row.body.get("issue")): row.body.get("sha256")
        for row in view.ledger
        if row.kind == "certificate"
    }
    return [Issued(row, _problems(row, view, chained)) for row in view.certificates]


def _problems(
    row: CertificateRow, view: StateView, chained: dict[tuple[object, object], object]
) -> list[str]:
    try:
        document, signature, _ = certificates.read(view.directory / "certificates", row)
    except StateError as error:
        return [str(error)]
    problems: list[str] = []
    if chained.get((row.request_id, row.issue)) != row.sha256:
        problems.append("it is not the one in the ledger")
    if not view.public_keys:
        return [*problems, "there is no public key of this server to verify it with"]
    verdicts = [verify_certificate(document, signature, key) for key in view.public_keys]
    if not any(verdict.valid for verdict in verdicts):
        nearest = min(verdicts, key=lambda verdict: len(verdict.problems))
        problems += nearest.problems
    return problems
