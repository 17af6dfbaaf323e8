"""What a data steward does about requests, in the hospital's own inbox."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flwr_afuic.cli.places import open_inbox, pairs, printable, say_json, table, when
from flwr_afuic.errors import ConfigError, ErasureError

if TYPE_CHECKING:
    from flwr_afuic.erasure.inbox import FiledRequest, SiteInbox
    from flwr_afuic.wire import ErasureNotice

MEANINGS = {
    "filed": "the server has not confirmed it yet; the samples train no more",
    "known": "the server knows it and carries it out beside training",
    "closed": "the server is done with it; its certificate says how it ended",
    "failed": "the server could not carry it out; the samples train no more all the same",
    "cancelling": "taken back; the server has not confirmed that yet",
    "cancelled": "taken back; its samples may train again",
    "refused": "the server will not carry it out; the samples train no more all the same. File "
    "it anew, or cancel it",
}

FAILURES = {
    "": "",
    "not-unlearned": "nothing was unlearned: this site's client could not, or did not answer in "
    "time. The model still holds the samples; ask the operator, and file the request anew",
    "merge-refused": "the unlearning was not merged: it was rejected, or did not fit the model. "
    "The model still holds the samples; ask the operator, and file the request anew",
    "level-not-met": "it was merged, but the samples are not forgotten as a model would that never "
    "saw them; ask the operator",
}


def file(
    inbox: Path,
    samples: Path | None,
    held: Path | None,
    column: str | None,
    reason: str,
    code: str,
    request_id: str | None,
    patients: Path | None = None,
) -> ErasureNotice:
    """File an erasure of the listed samples or patients, or of all data if there is no list."""
    from flwr_afuic.erasure.samples import read_ids

    opened = open_inbox(inbox)
    listed = [] if samples is None else read_ids(samples, column)
    whole = [] if patients is None else read_ids(patients, column, ("patient_id", "id"))
    holds = opened.held() if held is None else read_ids(held, column)
    if holds is None:
        raise ErasureError(
            f"{inbox} does not list yet what the site holds; it does once the site's client has "
            "run. Until then, name a list of all its samples: --held FILE"
        )
    if not holds:
        raise ErasureError("the site holds no sample; there is nothing to erase")
    notice = opened.file(
        scope="client" if samples is None and patients is None else "samples",
        sample_ids=listed,
        held=holds,
        reason=code,
        note=reason,
        request_id=request_id,
        patients=whole,
    )
    what = "all data of this site" if notice.scope == "client" else f"{notice.count} sample(s)"
    if whole:
        what += f", all there is of {len(whole)} patient(s), and whatever comes later of them"
    typer.echo(
        f"filed: {what}. From now on they train no more here. The server learns this id, the "
        f"count and the code {code!r} with the client's next reply, and no identifier.",
        err=True,
    )
    return notice


def list_requests(path: Path, *, as_json: bool) -> None:
    """Print every request of the site, and what the server said that cannot be right."""
    inbox = open_inbox(path)
    found = inbox.requests()
    if as_json:
        requests = [_plain(request, inbox) for request in found]
        say_json({"requests": requests, "alarms": [vars(alarm) for alarm in inbox.alarms()]})
        return
    if found:
        names = ("REQUEST", "SCOPE", "COUNT", "CODE", "FILED", "STATUS", "CERTIFICATE")
        typer.echo(table(names, [_row(request, inbox) for request in found]))
    else:
        typer.echo("no request is on file")
    _warn(inbox)


def _row(request: FiledRequest, inbox: SiteInbox) -> tuple[object, ...]:
    notice = request.notice
    issue = _issue(inbox, notice.request_id)
    filed, certificate = when(notice.filed_at), f"issue {issue}" if issue else "-"
    return (
        notice.request_id, notice.scope, notice.count, notice.reason, filed, request.status,
        certificate,
    )  # fmt: skip


def show_status(path: Path, request_id: str, *, as_json: bool) -> None:
    """Print where one request stands."""
    inbox = open_inbox(path)
    inbox.status(request_id)  # an error if there is none of that id
    request = next(r for r in inbox.requests() if r.notice.request_id == request_id)
    if as_json:
        say_json(_plain(request, inbox))
        return
    notice = request.notice
    issue = _issue(inbox, request_id)
    rows: list[tuple[str, object]] = [
        ("request", request_id),
        ("status", f"{request.status}: {MEANINGS.get(request.status, '')}"),
        *([("why", f"{request.failure}: {FAILURES[request.failure]}")] if request.failure else []),
        ("scope", f"{notice.scope}, {notice.count} sample(s)"),
        ("code", notice.reason),
        ("reason", request.note or "-"),
        ("filed", when(notice.filed_at)),
        ("certificate", f"issue {issue} is here" if issue else "none yet"),
    ]
    typer.echo(pairs(rows))
    _warn(inbox)


def cancel(path: Path, request_id: str) -> None:
    """Take a request back."""
    status = open_inbox(path).cancel(request_id)
    typer.echo(f"{request_id} is {status}: {MEANINGS.get(status, '')}")


def _plain(request: FiledRequest, inbox: SiteInbox) -> dict[str, Any]:
    return {
        **notice_json(request.notice),
        "note": request.note,
        "status": request.status,
        "failure": request.failure,
        "certificate": _issue(inbox, request.notice.request_id),
    }


def notice_json(notice: ErasureNotice) -> dict[str, Any]:
    """Return what the server learns of a request, for a program."""
    values = dict(vars(notice))
    return {"id": values.pop("request_id"), **values}


def _issue(inbox: SiteInbox, request_id: str) -> int:
    certificate = inbox.certificate(request_id)
    return 0 if certificate is None else certificate.issue


def _warn(inbox: SiteInbox) -> None:
    """Show what the server said that cannot be right: a steward should ask the operator."""
    for alarm in inbox.alarms():
        seen = f"first {when(alarm.first_at)}, {alarm.times} time(s)"
        typer.echo(f"warning: {printable(alarm.text)} ({seen}). Ask the operator", err=True)


def check_lists(samples: Path | None, patients: Path | None, everything: bool) -> None:
    """Raise ConfigError unless exactly one of the lists and everything is asked for."""
    if [samples is not None, patients is not None, everything].count(True) != 1:
        raise ConfigError(
            "name what to erase, in one way: --samples FILE, --patients FILE, or --all for all "
            "data of the site"
        )
