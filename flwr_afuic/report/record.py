"""What one run leaves behind for its report: a checked form of ``record.json``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr_afuic.errors import DataError
from flwr_afuic.report.reading import Reader, Series, check_share, number_or_none, refuse, shown

METRICS = ("test_accuracy", "forget_accuracy", "backdoor_success", "membership_auc")
"""Scores of a model, each a share from 0 to 1."""

MODELS = ("original", "no_unlearning", "retrain", "retrain_floor", "afuic")
"""Models every run compares, in the order of the table; a record may hold others besides."""

REQUEST = frozenset({"request", "received"})
MERGE = frozenset({"merge", "merged"})
END = frozenset(
    {"completed", "completed-unverified", "not-met", "held", "refused", "failed", "cancelled"}
)

_AXES = ("round", "version", "time")


@dataclass(frozen=True, slots=True)
class Curve:
    """Series of one model, of equal length: ``round``, ``version``, ``time`` and metrics."""

    series: Mapping[str, Series]

    def points(self, metric: str, along: str = "round") -> tuple[list[float], list[float]]:
        """Return abscissae and values of a metric where both are known, by rising abscissa."""
        pairs = zip(self.series.get(along, ()), self.series.get(metric, ()), strict=False)
        known = sorted((x, y) for x, y in pairs if x is not None and y is not None)
        return [x for x, _ in known], [y for _, y in known]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: seconds since the start, round, kind, site and words."""

    time: float | None
    round: float | None
    kind: str
    site: str
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """Work of a site or the server, from ``start`` to ``end`` in seconds since the start."""

    site: str
    kind: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A measured value beside its bound and the retrain-to-retrain floor.

    ``holds`` is the producer's word; without a value nothing holds, see ``met``.
    """

    name: str
    value: float | None
    bound: str
    floor: float | None
    holds: bool

    @property
    def met(self) -> bool:
        """Whether the bound holds on a value that was really measured."""
        return self.holds and self.value is not None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything a report shows about one run; make it with ``from_json`` or ``load``."""

    dataset: str
    synthetic: bool
    engine: str
    seed: int
    rounds: int
    scenario: str
    sites: tuple[str, ...]
    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    spans: tuple[Span, ...] = ()
    server_spans: tuple[Span, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> RunRecord:
        """Check a plain JSON object and wrap it.

        Parameters
        ----------
        raw : Mapping
            The content of ``record.json``. Series may be missing or hold nulls; numbers that
            are not finite count as not measured.

        Raises
        ------
        DataError
            A field is missing or malformed. One line names every problem (the first five,
            and how many more).
        """
        if not isinstance(raw, Mapping):
            raise DataError(f"run record is {shown(raw)}, expected a JSON object")
        problems: list[str] = []
        top = Reader(raw, "", problems)
        record = cls(
            dataset=top.required("dataset", str, ""),
            synthetic=top.required("synthetic", bool, True),
            engine=top.required("engine", str, ""),
            seed=top.required("seed", int, 0),
            rounds=top.required("rounds", int, 0),
            scenario=top.required("scenario", str, ""),
            sites=_sites(top),
            target=top.required("target", str, ""),
            settings=top.plain("settings"),
            versions=top.plain("versions"),
            data=top.plain("data"),
            curves=_curves(top),
            events=tuple(_event(item) for item in top.objects("events")),
            spans=tuple(_span(item) for item in top.objects("spans")),
            server_spans=tuple(_span(item, "server") for item in top.objects("server_spans")),
            summary=_summary(top),
            verdicts=tuple(_verdict(item) for item in top.objects("verdicts")),
        )
        _check_sites(record, problems)
        refuse(problems)
        return record

    @classmethod
    def load(cls, path: str | Path) -> RunRecord:
        """Read ``record.json``; raises DataError in one line where it cannot be used."""
        path = Path(path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot read run record {path}: {error.strerror}") from error
        except ValueError as error:
            raise DataError(f"run record {path} is not JSON ({error})") from error
        return cls.from_json(raw)

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON object that ``from_json`` reads."""
        return {
            "dataset": self.dataset, "synthetic": self.synthetic, "engine": self.engine,
            "seed": self.seed, "rounds": self.rounds, "scenario": self.scenario,
            "settings": self.settings, "versions": self.versions, "data": self.data,
            "sites": list(self.sites), "target": self.target,
            "curves": {
                name: {key: list(values) for key, values in curve.series.items()}
                for name, curve in self.curves.items()
            },
            "events": [asdict(event) for event in self.events],
            "spans": [asdict(span) for span in self.spans],
            "server_spans": [asdict(span) for span in self.server_spans],
            "summary": self.summary,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }  # fmt: skip

    @property
    def state(self) -> str:
        """State the erasure ended in, as the summary has it; empty if there was no request."""
        return str(self.erasure.get("state") or "")

    @property
    def erasure(self) -> Mapping[str, Any]:
        """Facts of the erasure: ``request_id``, ``state`` and whatever else was recorded."""
        found = self.summary.get("erasure")
        return found if isinstance(found, Mapping) else {}

    @property
    def models(self) -> tuple[str, ...]:
        """Models with at least one score, the known ones first."""
        scores = self.summary.get("models") or {}
        order = [*MODELS, *(name for name in scores if name not in MODELS)]
        return tuple(
            name for name in order if any(self.score(name, key) is not None for key in METRICS)
        )

    def score(self, model: str, metric: str) -> float | None:
        """Return a model's score at the end of the run, or None where it was not measured."""
        value = ((self.summary.get("models") or {}).get(model) or {}).get(metric)
        return None if value is None else float(value)

    def measure(self, *keys: str) -> float | None:
        """Return a number of the summary, such as ``measure("resurfacing", "mean")``."""
        value: Any = self.summary
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return number_or_none(value, "", [])

    def happened(self, kinds: Collection[str]) -> list[Event]:
        """Return the events of some kinds that concern the target, in order of time."""
        mine = (e for e in self.events if e.kind in kinds and e.site in (self.target, "", "server"))
        return sorted(mine, key=lambda event: (event.time is None, event.time or 0.0))


def _sites(top: Reader) -> tuple[str, ...]:
    names: Sequence[Any] = top.required("sites", list, [])
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong:
        top.problems.append(f"sites holds {shown(wrong[0])}, expected site names")
    if len({str(name) for name in names}) != len(names):
        top.problems.append("sites names one site twice")
    return tuple(str(name) for name in names)


def _check_sites(record: RunRecord, problems: list[str]) -> None:
    if record.target and record.target not in record.sites:
        problems.append(f"target is {record.target!r}, which is not among the sites")
    strange = {span.site for span in record.spans} - set(record.sites) - {""}
    problems.extend(f"spans name the site {name!r}, which is unknown" for name in sorted(strange))


def _curves(top: Reader) -> dict[str, Curve]:
    read: dict[str, Curve] = {}
    for name, raw in top.optional("curves", dict, {}).items():
        if raw is None:
            continue
        where = f"curves.{name}"
        if not isinstance(raw, Mapping):
            top.problems.append(f"{where} is {shown(raw)}, expected an object")
            continue
        reader = Reader(raw, where, top.problems)
        series = {key: reader.series(key, share=key in METRICS) for key in (*_AXES, *METRICS)}
        lengths = {key: len(values) for key, values in series.items() if values}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            top.problems.append(f"{where} has series of different lengths ({listed})")
        read[str(name)] = Curve({key: values for key, values in series.items() if values})
    return read


def _event(item: Reader) -> Event:
    return Event(
        time=item.number("time"),
        round=item.number("round"),
        kind=item.required("kind", str, ""),
        site=item.optional("site", str, ""),
        text=item.optional("text", str, ""),
    )


def _span(item: Reader, site: str | None = None) -> Span:
    span = Span(
        site=item.required("site", str, "") if site is None else site,
        kind=item.required("kind", str, ""),
        start=item.second("start"),
        end=item.second("end"),
    )
    if span.end < span.start:
        item.problems.append(f"{item.where} ends ({span.end:g}) before it starts ({span.start:g})")
    return span


def _verdict(item: Reader) -> Verdict:
    return Verdict(
        name=item.required("name", str, ""),
        value=item.number("value"),
        bound=item.required("bound", str, ""),
        floor=item.number("floor"),
        holds=item.required("holds", bool, False),
    )


def _summary(top: Reader) -> dict[str, Any]:
    summary = top.plain("summary")
    models = summary.get("models")
    if models is None:
        return summary
    if not isinstance(models, Mapping):
        top.problems.append(f"summary.models is {shown(models)}, expected an object")
        return {**summary, "models": {}}
    for name, scores in models.items():
        where = f"summary.models.{name}"
        if scores is not None and not isinstance(scores, Mapping):
            top.problems.append(f"{where} is {shown(scores)}, expected an object")
            continue
        for key in METRICS:
            value = number_or_none((scores or {}).get(key), f"{where}.{key}", top.problems)
            check_share(value, f"{where}.{key}", top.problems)
    return summary
