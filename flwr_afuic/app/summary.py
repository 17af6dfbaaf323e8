"""From scored arms to ``summary.json`` and ``record.json``."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from flwr_afuic.app.arms import ArmsResult
from flwr_afuic.app.federation import build_federation
from flwr_afuic.app.scoring import ArmCurve, Scorer
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.app.verdicts import Verdict, judge
from flwr_afuic.erasure.book import ErasureRecord
from flwr_afuic.metrics import (
    Scores,
    TaskSpan,
    average_gap,
    dip_rounds,
    lost_progress,
    resurfacing,
    retained_throughput,
    stall_seconds,
    time_to_forget,
)
from flwr_afuic.strategies.erasures import MergeFacts

_TASKS = ("train", "evaluate", "unlearn", "verify")
_PACKAGES = ("flwr-afuic", "flwr", "torch", "monai", "numpy")
Values = dict[str, float | None]


def summarise(
    settings: AppSettings,
    engine: str,
    result: ArmsResult,
    curves: dict[str, ArmCurve],
) -> tuple[dict[str, Any], list[Verdict]]:
    """Compute everything ``summary.json`` holds, and the verdicts."""
    scorer = Scorer(settings)
    data = build_federation(settings)
    strategy = result.strategy
    record = strategy.requests[0]
    values, floors = figures(settings, result, curves, scorer)
    verdicts = judge(data.dataset.name, values, floors)
    ends = {name: curve.by_round[max(curve.by_round)] for name, curve in curves.items()}
    models = {"original": scorer.score(result.original), **ends}
    prefix = f"{data.dataset.name}/{settings.scenario}"
    flat = {f"{prefix}/afuic/{name}": value for name, value in values.items()}
    flat |= {f"{prefix}/retrain_floor/{name}": value for name, value in floors.items()}
    for model, scores in models.items():
        flat |= {f"{prefix}/{model}/{key}": value for key, value in _named(scores).items()}
    summary = {
        "dataset": data.dataset.name,
        "synthetic": data.dataset.synthetic,
        "engine": engine,
        "seed": settings.seed,
        "scenario": settings.scenario,
        "scope": settings.scope,
        "rounds": result.arms["afuic"].rounds,
        "planted": _planted(models["original"]),
        "target_share": len(data.sites[0]) / len(data.dataset.train),
        "erased_samples": len(data.forget),
        "models": {name: _named(scores) for name, scores in models.items()},
        "resurfacing": {
            "mean": values.get("resurfacing_mean"),
            "max": values.get("resurfacing_max"),
            "rounds": values.get("resurfacing_rounds"),
            "no_unlearning_mean": values.get("no_unlearning_resurfacing_mean"),
        },
        "merge_dip": values.get("merge_dip"),
        "dip_rounds": values.get("dip_rounds"),
        "stall_seconds": values.get("stall_seconds"),
        "retained_throughput": values.get("retained_throughput"),
        "lost_progress": values.get("lost_progress"),
        "time_to_forget_seconds": values.get("time_to_forget_seconds"),
        "silent_failure": _silent_failure(record, values),
        "overwrite": overwrite_cost(result, scorer),
        "erasure": _erasure(record),
        "updates": asdict(strategy.run.counters),
        "verdicts": [verdict.to_dict() for verdict in verdicts],
        "figures": {key: value for key, value in flat.items() if value is not None},
        "settings": asdict(settings),
        "seeds": [settings.seed],
        "versions": versions(),
    }
    return summary, verdicts


def figures(
    settings: AppSettings, result: ArmsResult, curves: dict[str, ArmCurve], scorer: Scorer
) -> tuple[Values, Values]:
    """Compute the judged figures of AFU-IC, and the same of the second retraining."""
    strategy, afuic = result.strategy, curves["afuic"]
    values: Values = {}
    floors: Values = {}
    values |= _latency(settings, result)
    if not strategy.merges:
        return values, floors
    facts = strategy.merges[-1]
    merge_round = next(r.merge_round for r in strategy.requests if r.merge_round is not None)
    at_merge = afuic.at_merge[facts.merge_version]
    before = scorer.score(strategy.run.layout.with_trained(facts.current, result.original))
    values["merge_dip"] = before.test - at_merge.test
    values["lost_progress"] = lost_progress([facts.base], [facts.current], [facts.after],
                                            [facts.delta])  # fmt: skip
    last = _last_merge_round(result, merge_round)
    for into, curve, merged in (
        (values, afuic, at_merge),
        (floors, curves["retrain_floor"], curves["retrain_floor"].by_round[last]),
    ):
        into |= _against_retraining(curve, merged, curves, last)
    values |= _forgetting_time(result, curves, floors)
    return values, floors


def _last_merge_round(result: ArmsResult, default: int) -> int:
    entries = result.arms["afuic"].recorder.versions.values()
    rounds = [entry.round for entry, _ in entries if entry.cause == "erasure"]
    return max(rounds, default=default)


def _against_retraining(
    curve: ArmCurve, merged: Scores, curves: dict[str, ArmCurve], merge_round: int
) -> Values:
    retrain, plain = curves["retrain"], curves["no_unlearning"]
    there = retrain.by_round[merge_round]
    values: Values = {
        "test_gap_at_merge": merged.test - plain.by_round[merge_round].test,
        "forget_gap_at_merge": merged.forget - there.forget,
        "dip_rounds": _optional(
            dip_rounds(curve.series("test"), retrain.series("test"), merge_round)
        ),
    }
    after = [r for r in curve.by_round if r > merge_round and r in retrain.by_round]
    if after:
        own, theirs = curve.series("test"), retrain.series("test")
        values["test_shortfall_after_merge"] = float(
            np.mean([theirs[r] for r in after]) - np.mean([own[r] for r in after])
        )
        end = max(after)
        values["average_gap"] = average_gap(curve.by_round[end], retrain.by_round[end])
    if merged.backdoor_success is not None and there.backdoor_success is not None:
        values["asr_gap_at_merge"] = merged.backdoor_success - there.backdoor_success
        if after:
            name = "backdoor_success"
            found = resurfacing(curve.series(name), retrain.series(name), merge_round=merge_round)
            plainly = resurfacing(plain.series(name), retrain.series(name), merge_round=merge_round)
            values["resurfacing_mean"], values["resurfacing_max"] = found.mean, found.max
            values["resurfacing_rounds"] = float(found.n_rounds)
            values["no_unlearning_resurfacing_mean"] = plainly.mean
    return values


def _latency(settings: AppSettings, result: ArmsResult) -> Values:
    strategy = result.strategy
    journal = strategy.journal
    opened = journal.of_kind("request")[0].time
    closing = [e.time for e in journal.events if e.kind in ("completed", "failed", "not-met")]
    closed = max(closing, default=float("inf"))
    spans = [
        TaskSpan(span.site, span.kind, span.start, span.end)  # type: ignore[arg-type]
        for span in journal.spans
        if span.kind in _TASKS
    ]
    retained = {span.site for span in spans} - {settings.target}
    until = max(entry.time for entry in journal.versions)
    requests = [(opened, closed)]
    # Counted from when every site has trained once: starting processes is no slow federation.
    firsts = [min(s.end for s in spans if s.site == site) for site in retained]
    since = max(firsts) if max(firsts) < opened else None
    throughput = retained_throughput(spans, requests, retained, since=since, until=until)
    return {
        "stall_seconds": stall_seconds(spans, requests, retained, until=until),
        "retained_throughput": throughput,
        "throughput_loss": 1.0 - throughput,
    }


def _forgetting_time(result: ArmsResult, curves: dict[str, ArmCurve], floors: Values) -> Values:
    afuic, retrain = curves["afuic"], curves["retrain"]
    rounds = [r for r in sorted(afuic.by_round) if r in retrain.by_round]
    opened = result.strategy.journal.of_kind("request")[0].time
    reached = time_to_forget(
        [afuic.times[r] for r in rounds],
        [afuic.by_round[r].forget for r in rounds],
        [afuic.by_round[r].test for r in rounds],
        [retrain.by_round[r].forget for r in rounds],
        [retrain.by_round[r].test for r in rounds],
        requested_at=opened,
        rounds=rounds,
        forget_bound=max(0.05, abs(floors.get("forget_gap_at_merge") or 0.0)),
        test_bound=max(0.02, floors.get("test_shortfall_after_merge") or 0.0),
    )
    return {"time_to_forget_seconds": reached}


def overwrite_cost(result: ArmsResult, scorer: Scorer) -> dict[str, float] | None:
    """What the paper's merge rule would have cost here: progress and test score at the merge.

    Both rules are applied to the same snapshot, delta and current model.
    """
    if not result.strategy.merges:
        return None
    facts: MergeFacts = result.strategy.merges[0]
    layout = result.strategy.run.layout
    overwritten, added = facts.base + facts.delta, facts.current + facts.delta
    tests = [
        scorer.score(layout.with_trained(w, result.original)).test for w in (overwritten, added)
    ]
    return {
        "lost_progress": lost_progress([facts.base], [facts.current], [overwritten], [facts.delta]),
        "test_accuracy": tests[0],
        "delta_test_accuracy": tests[1],
        "test_cost": tests[1] - tests[0],
        "staleness_versions": float(facts.staleness),
    }


def run_record(
    settings: AppSettings,
    result: ArmsResult,
    curves: dict[str, ArmCurve],
    summary: dict[str, Any],
) -> dict[str, Any]:
    """Build ``record.json``, from which reports are made."""
    journal = result.strategy.journal
    data = build_federation(settings)
    sites = [f"site-{i}" for i in range(settings.sites)]
    keys = {
        "test_accuracy": "test",
        "backdoor_success": "backdoor_success",
        "forget_accuracy": "forget",
        "membership_auc": "membership_auc",
    }
    series: dict[str, Any] = {}
    for name, curve in curves.items():
        rounds = sorted(curve.by_round)
        series[name] = {
            "round": rounds,
            "version": [curve.versions[r] for r in rounds],
            "time": [curve.times[r] for r in rounds],
            **{
                key: [curve.by_round[r].present().get(field) for r in rounds]
                for key, field in keys.items()
            },
        }
    before = {"round", "version", "time", *keys}
    upto = [i for i, r in enumerate(series["afuic"]["round"]) if r <= result.request_round]
    series["original"] = {key: [series["afuic"][key][i] for i in upto] for key in before}
    return {
        "dataset": summary["dataset"],
        "synthetic": summary["synthetic"],
        "engine": summary["engine"],
        "seed": settings.seed,
        "rounds": summary["rounds"],
        "scenario": settings.scenario,
        "settings": summary["settings"],
        "versions": summary["versions"],
        "data": {"source": data.dataset.source, "licence": data.dataset.licence},
        "sites": sites,
        "target": settings.target,
        "curves": series,
        "events": [
            {k: getattr(e, k) for k in ("time", "round", "kind", "site", "text")}
            for e in journal.events
        ],
        "spans": [asdict(span) for span in journal.spans if span.kind in _TASKS],
        "server_spans": [asdict(span) for span in journal.server_spans],
        "summary": {k: v for k, v in summary.items() if k not in ("settings", "versions")},
        "verdicts": summary["verdicts"],
    }


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def _silent_failure(record: ErasureRecord, values: Values) -> bool:
    """Whether a request is called completed though its backdoor exceeds retraining's by > .05."""
    gap = values.get("asr_gap_at_merge")
    mean = values.get("resurfacing_mean")
    worst = max((v for v in (gap, mean) if v is not None), default=0.0)
    return record.state.startswith("completed") and worst > 0.05


def _planted(original: Scores) -> bool | None:
    success = original.backdoor_success
    return None if success is None else success > 0.5


def _erasure(record: ErasureRecord) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "state": str(record.state),
        "scope": record.notice.scope,
        "count": record.notice.count,
        "attempts": record.attempts,
        "base_version": record.base_version,
        "merge_version": record.merge_version,
        "merge_round": record.merge_round,
        "reason": record.reason,
        "evidence": [asdict(evidence) for evidence in record.evidence],
        "scores": [{"version": v, **asdict(score)} for v, score in record.scores],
        "over_forgetting": bool(record.verdict and record.verdict.over_forgetting),
    }


def _named(scores: Scores) -> dict[str, float | None]:
    return {
        "test_accuracy": scores.test,
        "forget_accuracy": scores.forget,
        "backdoor_success": scores.backdoor_success,
        "membership_auc": scores.membership_auc,
    }


def _optional(value: int | None) -> float | None:
    return None if value is None else float(value)
