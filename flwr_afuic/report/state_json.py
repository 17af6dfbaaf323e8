"""The operator's view for a program: plain JSON values with stable names."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from flwr_afuic.report.state_attention import headline, notices
from flwr_afuic.report.state_requests import RequestView
from flwr_afuic.report.state_view import StateReport


def state_json(report: StateReport) -> dict[str, Any]:
    """Return the state of a federation; times are seconds since the epoch, sizes bytes."""
    view, survey = report.view, report.survey
    return {
        "at": report.at,
        "directory": str(view.directory),
        "federation": view.federation,
        "server": view.server,
        "headline": asdict(headline(report)),
        "notices": [asdict(notice) for notice in notices(report)],
        "version": report.version,
        "round": report.round,
        "requests": [_request(request) for request in report.requests],
        "sites": [
            {
                "name": site.name,
                "standing": site.standing,
                "heard": site.heard,
                "updates": dict(site.fates),
                "examples": site.examples,
                "share": site.share,
                "mean_staleness": site.mean_staleness,
            }
            for site in report.sites
        ],
        "staleness": {
            "accepted": {str(n): count for n, count in sorted(report.accepted.items())},
            "dropped": {str(n): count for n, count in sorted(report.dropped.items())},
        },
        "quarantined": [asdict(entry) for entry in report.quarantined],
        "ledger": {
            "rows": len(view.ledger),
            "problems": survey.ledger,
            "alarms": [asdict(alarm) for alarm in report.alarms],
            "head": None if view.head is None else view.head.to_json(),
        },
        "certificates": [
            {"file": issued.row.file, "request": issued.row.request_id, "issue": issued.row.issue,
             "issued_at": issued.row.wall, "problems": issued.problems}
            for issued in report.certificates
        ],
        "deleted": [asdict(row) for row in report.erased],
        "deleted_in_the_ordinary_course": len(report.outdated),
        "unreadable": survey.unreadable,
        "weights": survey.weights,
        "disk": {use.what: {"files": use.files, "bytes": use.bytes} for use in report.disk},
        "free": report.free,
    }  # fmt: skip


def _request(request: RequestView) -> dict[str, Any]:
    level = request.level
    return {
        **request.standing.to_json(),
        "damage": request.damage,
        "level": None if level is None else {
            "of": level.of,
            "loss_at_least": _finite(level.loss),
            "accuracy_at_most": level.accuracy,
            "score_name": level.reference.name,
        },
        "scores": [
            {"version": entry.version, "loss": _finite(entry.score.loss),
             "accuracy": entry.score.accuracy, "count": entry.score.count, "met": entry.met}
            for entry in request.scores
        ],
    }  # fmt: skip


def _finite(value: float) -> float | str:
    """Return a loss for JSON, which knows no infinity."""
    return value if math.isfinite(value) else "infinite"
