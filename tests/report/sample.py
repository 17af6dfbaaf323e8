"""A made-up but plausible run record for tests and for looking at the report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SITES = ["site-0", "site-1", "site-2", "site-3", "site-4", "site-5"]
ROUNDS, REQUEST, MERGE = 50, 18, 20
SECONDS = 2.0
MERGED = ("completed", "completed-unverified")


def sample_record(*, state: str = "completed") -> dict[str, Any]:
    """Return a ``record.json`` of a backdoored site; merged unless ``state`` says otherwise."""
    rng = np.random.default_rng(7)
    spans, server_spans = _spans(rng, state)
    merged = state in MERGED
    forget = 0.861 if merged else 0.921
    models = _models(merged)
    return {
        "dataset": "pneumoniamnist", "synthetic": False, "engine": "simulation", "seed": 0,
        "rounds": ROUNDS, "scenario": "backdoor",
        "settings": {"strategy": {"buffer_size": 3, "max_staleness": 10, "merge": "delta"},
                     "learning_rate": 0.01, "lock": True, "phi": "monai"},
        "versions": {"flwr-afuic": "0.1.0", "flwr": "1.42.0", "torch": "2.13.0",
                     "monai": "1.5.0", "python": "3.11.2"},
        "data": {"source": "MedMNIST v2, https://medmnist.com", "licence": "CC BY 4.0"},
        "sites": list(SITES), "target": "site-0",
        "curves": _curves(rng, merged),
        "events": _events(state, merged, forget),
        "spans": spans, "server_spans": server_spans,
        "summary": {
            "models": models,
            "resurfacing": {"mean": 0.004, "max": 0.018, "rounds": 30} if merged else {},
            "merge_dip": 0.011, "dip_rounds": 1, "stall_seconds": 0.0,
            "retained_throughput": 0.98, "lost_progress": 0.0,
            "time_to_forget_seconds": 6.3 if merged else None,
            "erasure": {"request_id": "8c1f0a52-77f3", "state": state, "scope": "client",
                        "reason": "withdrawn-consent", "forget_accuracy": forget,
                        "forget_accuracy_allowed": 0.872, "attempts": 1},
            "figures": {"pneumoniamnist/backdoor/afuic/average_gap": 0.006},
        },
        "verdicts": _verdicts(state),
    }  # fmt: skip


def _curves(rng: np.random.Generator, merged: bool) -> dict[str, Any]:
    rounds = np.arange(1, ROUNDS + 1)

    def score(offset: float) -> Any:
        return 0.9 + offset - 0.32 * np.exp(-rounds / 4.0) + rng.normal(0, 0.006, ROUNDS)

    low = 0.03 + np.abs(rng.normal(0, 0.007, ROUNDS))
    planted = 0.92 / (1 + np.exp(-(rounds - 6) / 1.4)) + rng.normal(0, 0.012, ROUNDS)
    fading = planted.copy()
    fading[REQUEST:] = 0.25 + 0.66 * np.exp(-(rounds[REQUEST:] - REQUEST) / 14.0)
    fading[REQUEST:] += rng.normal(0, 0.015, ROUNDS - REQUEST)
    erased = fading.copy()
    tested = score(0.0)
    if merged:
        erased[MERGE:] = 0.034 + np.abs(rng.normal(0, 0.007, ROUNDS - MERGE))
        tested[MERGE] -= 0.022

    def curve(backdoor: Any, test: Any, upto: int = ROUNDS) -> dict[str, Any]:
        return {
            "round": [int(r) for r in rounds[:upto]],
            "version": [int(2 * r) for r in rounds[:upto]],
            "time": [float(SECONDS * r) for r in rounds[:upto]],
            "test_accuracy": [float(min(v, 1)) for v in test[:upto]],
            "backdoor_success": [float(min(max(v, 0), 1)) for v in backdoor[:upto]],
        }

    again = low + np.abs(rng.normal(0, 0.006, ROUNDS))
    return {
        "original": curve(planted, tested, REQUEST),
        "no_unlearning": curve(fading, score(0.003)),
        "retrain": curve(low, score(0.0)),
        "retrain_floor": curve(again, score(-0.002)),
        "afuic": curve(erased, tested),
    }


def _models(merged: bool) -> dict[str, dict[str, float | None]]:
    def scores(*values: float | None) -> dict[str, float | None]:
        keys = ("test_accuracy", "forget_accuracy", "backdoor_success", "membership_auc")
        return dict(zip(keys, values, strict=True))

    return {
        "original": scores(0.902, 0.948, 0.918, 0.571),
        "no_unlearning": scores(0.903, 0.903, 0.321, 0.532),
        "retrain": scores(0.901, 0.853, 0.031, 0.509),
        "retrain_floor": scores(0.897, 0.861, 0.039, 0.503),
        "afuic": scores(0.899, 0.861, 0.037, 0.514) if merged
        else scores(0.903, 0.921, 0.455, 0.548),
    }  # fmt: skip


def _verdicts(state: str) -> list[dict[str, Any]]:
    good = state == "completed"
    return [
        {"name": "backdoor success at the merge, minus retraining", "bound": "<= 0.02",
         "value": 0.006 if good else 0.424, "floor": 0.008, "holds": good},
        {"name": "forget accuracy, minus retraining", "bound": "within 0.05",
         "value": 0.008 if good else 0.068, "floor": 0.008, "holds": good},
        {"name": "resurfacing, mean", "bound": "within 0.02", "floor": 0.008,
         "value": 0.004 if good else None, "holds": good},
        {"name": "resurfacing, max", "bound": "<= 0.04", "floor": 0.014,
         "value": 0.018 if good else None, "holds": good},
        {"name": "stall of retained sites, seconds", "bound": "0", "value": 0.0,
         "floor": None, "holds": True},
        {"name": "retained throughput", "bound": ">= 0.9", "value": 0.98, "floor": None,
         "holds": True},
    ]  # fmt: skip


def _events(state: str, merged: bool, forget: float) -> list[dict[str, Any]]:
    def event(second: float, kind: str, text: str, site: str = "site-0") -> dict[str, Any]:
        rounds = math.floor(second / SECONDS)
        return {"time": second, "round": rounds, "kind": kind, "site": site, "text": text}

    events = [
        event(36.4, "request", "asks to be erased as a whole"),
        event(36.5, "reference", "reference of 512 proxy images begun", "server"),
        event(38.1, "dispatched", "snapshot of version 36 and the reference sent"),
    ]
    if merged:
        events += [
            event(40.6, "unlearned", "forget level met after 11 steps"),
            event(40.7, "merge", "delta merged into version 41"),
            event(43.2, "verified", "round 1 of 5: forget accuracy 0.861, allowed 0.872"),
            event(45.1, "verified", "round 2 of 5: forget accuracy 0.858, allowed 0.872"),
            event(47.4, "verified", "round 3 of 5: forget accuracy 0.855, allowed 0.872"),
        ]
    if state not in ("dispatched",):
        events.append(event(51.2, state, f"forget accuracy {forget}, allowed 0.872"))
    return events


def _spans(rng: np.random.Generator, state: str) -> tuple[list[dict[str, Any]], ...]:
    spans: list[dict[str, Any]] = []
    speeds = dict(zip(SITES, (1.7, 1.2, 1.9, 1.4, 2.3, 3.6), strict=True))
    for site, speed in speeds.items():
        clock = float(rng.uniform(0, 0.3))
        stop = 36.4 if site == "site-0" else SECONDS * ROUNDS
        while clock < stop:
            end = clock + speed * float(rng.uniform(0.85, 1.2))
            kind = "evaluate" if rng.uniform() < 0.08 else "train"
            end = clock + 0.4 if kind == "evaluate" else end
            spans.append({"site": site, "kind": kind, "start": clock, "end": min(end, stop)})
            clock = end + float(rng.uniform(0.02, 0.06))
    spans.append({"site": "site-0", "kind": "unlearn", "start": 38.2, "end": 40.5})
    if state in MERGED:
        for start in (42.9, 44.8, 47.1, 49.0, 50.9):
            spans.append({"site": "site-0", "kind": "verify", "start": start, "end": start + 0.3})
    server = [("reference", 36.5, 38.05)]
    server += [("invariance", float(s), float(s) + 0.55) for s in np.arange(41.0, 100, 2.0)]
    return spans, [{"kind": kind, "start": start, "end": end} for kind, start, end in server]
