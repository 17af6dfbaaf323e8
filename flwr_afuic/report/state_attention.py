"""What in a federation asks for somebody's attention, and what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from flwr_afuic.report.state_requests import RequestView
from flwr_afuic.report.state_view import StateReport
from flwr_afuic.report.times import age, size

STUCK = 86400.0
"""Seconds without a step after which an open request is called stuck."""
SILENT = 3
"""Quarantined updates one after the other from which a site is named."""
_LATELY = 30 * 86400.0
"""Seconds for which a restored backup is told of."""
ROOM = 5
"""Times the largest file of weights that should be free on the disk."""


@dataclass(frozen=True)
class Notice:
    """One thing to look at.

    ``tone`` is ``bad`` (something is wrong) or ``warn`` (somebody has to decide or to look);
    ``commands`` can be copied to a terminal.
    """

    tone: str
    title: str
    text: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """The state of a federation in one line; ``mark`` says the tone in a word."""

    tone: str
    mark: str
    text: str


def notices(report: StateReport) -> list[Notice]:
    """Return what to look at, the worst first."""
    found = [
        *_damage(report),
        *_proof(report),
        *_decisions(report),
        *_failures(report),
        *_server(report),
        *_sites(report),
        *_disk(report),
    ]
    found = [replace(notice, text=_sentence(notice.text)) for notice in found]
    return sorted(found, key=lambda notice: notice.tone != "bad")


def headline(report: StateReport) -> Headline:
    """Return the one line above everything else."""
    found = notices(report)
    wrong = [notice for notice in found if notice.tone == "bad"]
    if wrong:
        rest = f", and {_things(len(wrong) - 1)} more" if len(wrong) > 1 else ""
        return Headline("bad", "Something is wrong", f"{wrong[0].title}{rest}.")
    if found:
        rest = f", and {_things(len(found) - 1)} more to look at" if len(found) > 1 else ""
        return Headline("warn", "Needs attention", f"{found[0].title}{rest}.")
    if report.version is None:
        return Headline("open", "Not begun", "No run has begun in this state directory.")
    moving = len(report.open_requests)
    if moving:
        verb = "erasures are" if moving > 1 else "erasure is"
        return Headline("good", "In order", f"{moving} {verb} under way; nothing waits for you.")
    return Headline("good", "In order", "No erasure is open, and nothing waits for you.")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _things(count: int) -> str:
    return f"{count} thing{'' if count == 1 else 's'}"


def _damage(report: StateReport) -> Iterator[Notice]:
    state = _quoted(report)
    for problem in report.survey.unreadable:
        yield Notice(
            "bad",
            "A part of the state directory cannot be read",
            f"{problem}. What this report shows is without it. Stop the server and restore a "
            "backup.",
            ("flwr-afuic restore BACKUP --state NEW-DIRECTORY",),
        )
    if report.survey.weights:
        yield Notice(
            "bad",
            "The files of weights are not those on record",
            _few(report.survey.weights),
            (f"flwr-afuic ledger verify --state {state}",),
        )
    for request in report.requests:
        if request.damage:
            yield Notice(
                "bad",
                f"The record of request {request.standing.id} is damaged",
                f"{request.damage}. A server cannot go on with it; restore a backup.",
            )


def _proof(report: StateReport) -> Iterator[Notice]:
    state = _quoted(report)
    if report.survey.ledger:
        yield Notice(
            "bad",
            "The ledger does not verify",
            f"{_few(report.survey.ledger)}. Keep a copy of the directory as it is, and find out "
            "who has changed it.",
            (f"flwr-afuic ledger verify --state {state}",),
        )
    broken = [issued for issued in report.certificates if issued.problems]
    if broken:
        title = "A certificate does" if len(broken) == 1 else f"{len(broken)} certificates do"
        texts = [f"{issued.row.file}: {_few(issued.problems)}" for issued in broken]
        yield Notice("bad", f"{title} not verify", _few(texts))
    yield from _alarms(report)
    lacking = [
        request
        for request in report.requests
        if request.state in ("completed", "completed-unverified") and not request.certificates
    ]
    if lacking and report.version is not None:
        failed = [e["text"] for e in report.view.events if e["kind"] == "certificate-failed"]
        why = f" Said last: {failed[-1]}" if failed else ""
        yield Notice(
            "warn",
            f"{_requests(len(lacking))} completed without a certificate on file",
            f"It concerns {_names(lacking)}. The server issues what is missing at its next "
            f"start.{why}",
        )


def _alarms(report: StateReport) -> Iterator[Notice]:
    """Tell sites that a restored backup explains from those that nothing explains."""
    restored = [o.wall for o in report.occasions if o.kind == "restored"]
    explained = [a for a in report.alarms if any(wall <= a.wall for wall in restored)]
    for alarm in (alarm for alarm in report.alarms if alarm not in explained):
        yield Notice(
            "bad",
            f"Site {alarm.site} has seen another ledger",
            f"{alarm.problem}. No backup was restored before, so somebody has changed the ledger.",
        )
    recent = [alarm for alarm in explained if report.at - alarm.wall < _LATELY]
    if recent:
        sites = sorted({alarm.site for alarm in recent})
        some = ", ".join(sites[:5]) + (f" and {len(sites) - 5} more" if len(sites) > 5 else "")
        yield Notice(
            "warn",
            "A backup was restored that lacks what sites have seen since",
            f"It concerns {some}. What was done after the backup is lost; requests come in "
            "again by themselves from sites that still hold them. Their stewards see a warning, "
            "and should hear from you why.",
        )


def _decisions(report: StateReport) -> Iterator[Notice]:
    for request in report.requests:
        if request.state != "held" or (request.record is not None and request.record.released):
            continue
        standing, state = request.standing, _quoted(report)
        asked = f" You have asked for: {', '.join(standing.asked)}." if standing.asked else ""
        yield Notice(
            "warn",
            f"The erasure of {request.what} at {standing.site} is held and waits for you",
            f"{standing.text}.{asked} Releasing merges it whatever it costs the model; rejecting "
            "drops it, and the request fails.",
            () if asked else tuple(
                f"flwr-afuic {verb} {standing.id} --state {state}" for verb in ("release", "reject")
            ),
        )  # fmt: skip


def _failures(report: StateReport) -> Iterator[Notice]:
    failed = [request for request in report.requests if request.state == "failed"]
    for request in failed[-5:]:
        yield Notice(
            "warn",
            f"The erasure of {request.what} at {request.standing.site} failed",
            f"{request.standing.text}. Its samples stay out of training at the site. To try "
            "again, the steward files a new request there.",
        )
    if len(failed) > 5:
        yield Notice(
            "warn",
            f"{len(failed) - 5} older requests failed, too",
            f"These: {_names(failed[:-5])}.",
        )


def _server(report: StateReport) -> Iterator[Notice]:
    moving = report.open_requests
    pending = [command for command in report.view.commands if command.outcome is None]
    if report.view.server is None:
        if moving or pending:
            what = [_requests(len(moving))] if moving else []
            what += [f"{len(pending)} command{'s' if len(pending) > 1 else ''}"] if pending else []
            one = "s" if len(moving) + len(pending) == 1 else ""
            yield Notice(
                "warn",
                f"No server runs, and {' and '.join(what)} wait{one} for one",
                "Start the run again with the same state directory: it goes on where it ended.",
            )
        waiting = [row for row in report.view.purges if not row.done]
        if waiting:
            yield Notice(
                "warn",
                f"{len(waiting)} file(s) are recorded for deletion and not deleted yet",
                "A server was stopped in between; the next one deletes them.",
            )
        return
    stuck = [r for r in moving if r.state != "held" and _since(r, report) > STUCK]
    if stuck:
        yield Notice(
            "warn",
            f"{_requests(len(stuck))} without a step for more than a day",
            f"It concerns {_names(stuck)}. Is the site connected, and does its client speak the "
            "erasure protocol?",
        )


def _sites(report: StateReport) -> Iterator[Notice]:
    for site in report.sites:
        if site.row_of_bad >= SILENT:
            yield Notice(
                "warn",
                f"The newest {site.row_of_bad} updates of {site.name} were quarantined",
                f"{site.why_bad}. It does not contribute until its client is put right.",
            )


def _disk(report: StateReport) -> Iterator[Notice]:
    largest = max(report.view.weights.values(), default=0)
    if report.free is not None and report.free < ROOM * largest:
        yield Notice(
            "warn",
            f"Only {size(report.free)} are free on the disk",
            f"One model takes {size(largest)}. A full disk stops the server.",
        )


def _since(request: RequestView, report: StateReport) -> float:
    since = request.standing.since or request.standing.filed_at
    return report.at - since if since else 0.0


def waited(request: RequestView, report: StateReport) -> str:
    """Return for how long a request has been in its state."""
    return age(report.at - request.standing.since) if request.standing.since else "not known"


def _quoted(report: StateReport) -> str:
    """Return the state directory as a shell takes it, wherever it is called."""
    return shlex.quote(str(report.view.directory.absolute()))


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _names(requests: list[RequestView]) -> str:
    named = [f"{request.standing.id} ({request.standing.site})" for request in requests[:5]]
    rest = len(requests) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def _few(texts: list[str]) -> str:
    rest = len(texts) - 3
    return "; ".join(texts[:3]) + (f"; and {rest} more" if rest > 0 else "")
