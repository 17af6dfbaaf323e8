"""Finished pieces of ``bench forget`` as their files hold them, with made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.forget import Plan
from flwr_afuic.bench.forget_protocol import Piece, Protocol
from flwr_afuic.bench.runs import fingerprint

PROTOCOL = Protocol(staleness=1, rounds_after=35)
FIRST, LAST = 12, 48

_ENDS = {  # test, forget, membership AUC, backdoor success
    "original": (0.80, 0.95, 0.60, 0.90),
    "retrain": (0.80, 0.50, 0.50, 0.04),
    "retrain_floor": (0.81, 0.51, 0.50, 0.05),
    "afuic": (0.79, 0.52, 0.51, 0.05),
    "no_unlearning": (0.80, 0.90, 0.55, 0.64),
}


def plan(*methods: str, **changes: Any) -> Plan:
    """Return a plan on phantoms."""
    settings = AppSettings(dataset="phantoms")
    return Plan(settings, PROTOCOL, "backdoor", methods or ("afuic", "no_unlearning"), **changes)


def scores(method: str, **changes: float) -> dict[str, float]:
    """Return the scores of a method."""
    names = ("test", "forget", "membership_auc", "backdoor_success")
    return {**dict(zip(names, _ENDS.get(method, _ENDS["afuic"]), strict=True)), **changes}


def result(piece: Piece, **changes: Any) -> dict[str, Any]:
    """Return a finished piece; every round scores the same."""
    method = piece.method
    rounds = [FIRST] if method == "original" else range(FIRST, LAST + 1)
    found: dict[str, Any] = {
        "dataset": "phantoms",
        "synthetic": True,
        "scenario": piece.scenario,
        "method": method,
        "seed": piece.settings.seed,
        "target_share": 0.2,
        "erased_samples": 40,
        "curve": {str(r): scores(method) for r in rounds},
        "merge": None,
        "relearn": [0.5, 0.7, 0.95] if method == "retrain" else [0.5, 0.95, 0.95],
        "seconds": {"training": 1.0, "all": 2.0},
        "code": fingerprint(),
    }
    if method == "original":
        found["planted"] = True
        found["relearn"] = [0.95, 0.95, 0.95]
    elif method != "retrain":
        found |= {"distance_ratio": 0.5, "divergence_forget": 0.1, "divergence_test": 0.05}
    if method not in ("original", "retrain", "retrain_floor", "no_unlearning"):
        after = scores(method, test=0.75, backdoor_success=0.02)
        found["merge"] = {"round": 14, "before": scores(method), "after": after}
        found["erasure"] = {"state": "completed", "reason": "level met"}
    return {**found, **changes}


def put(folder: Path, piece: Piece, **changes: Any) -> None:
    """Write a finished piece where the runner looks for it."""
    path = piece.result(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result(piece, **changes)))
