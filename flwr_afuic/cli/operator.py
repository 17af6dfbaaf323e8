"""What an operator does about requests, in the server's state directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flwr_afuic.cli.places import look_at, open_state, pairs, printable, say_json, table, when
from flwr_afuic.errors import ConfigError, StateTransitionError

if TYPE_CHECKING:
    from flwr_afuic.state.reading import StateView
    from flwr_afuic.state.standing import Standing

METHODS = ("afuic", "medu")
_DONE = {"release": "released", "reject": "rejected"}


def file_for(state: Path, client: str, method: str, code: str, note: str) -> str:
    """File a client-scope erasure for a site and return its id."""
    if method and method not in METHODS:
        raise ConfigError(f"--method is {method!r}; use one of {', '.join(METHODS)}")
    view = look_at(state)
    with open_state(state) as store:
        request_id = store.command("erase", site=client, reason=code, method=method, note=note)
    sites = known_sites(view)
    if sites and client not in sites:
        typer.echo(
            f"note: no site {printable(client)!r} is on record; there are: "
            f"{', '.join(printable(site) for site in sites)}. A server refuses a site it does not "
            "know",
            err=True,
        )
    typer.echo(_awaits(view), err=True)
    return request_id


def known_sites(view: StateView) -> list[str]:
    """Return the sites whose updates or requests are on record."""
    found = {site for version in view.versions for site in version.sites}
    found |= {str(update["site"]) for update in view.updates}
    return sorted((found | {row.site for row in view.requests}) - {""})


def list_requests(state: Path, *, as_json: bool) -> None:
    """Print every request."""
    from flwr_afuic.state.standing import standings

    found = standings(look_at(state))
    if as_json:
        say_json([entry.to_json() for entry in found])
    elif not found:
        typer.echo("no erasure request is on record")
    else:
        names = ("REQUEST", "SITE", "SCOPE", "COUNT", "STATE", "SINCE", "WHERE IT STANDS")
        typer.echo(table(names, [_row(entry) for entry in found]))


def _row(entry: Standing) -> tuple[object, ...]:
    asked = f" [asked: {', '.join(entry.asked)}]" if entry.asked else ""
    count = "-" if entry.count is None else entry.count
    where = f"{entry.text}{asked}"
    return entry.id, entry.site, entry.scope, count, entry.state, when(entry.since), where


def show_status(state: Path, request_id: str, *, as_json: bool) -> None:
    """Print one request with its course."""
    from flwr_afuic.state.standing import standing

    entry = standing(look_at(state), request_id)
    if as_json:
        say_json(entry.to_json())
        return
    count = "not known here" if entry.count is None else entry.count
    rows: list[tuple[str, object]] = [
        ("request", entry.id),
        ("site", entry.site),
        ("scope", f"{entry.scope}, samples: {count}"),
        ("reason", entry.reason),
        ("filed", f"{when(entry.filed_at)} by the {entry.filed_by}"),
        ("state", f"{entry.state}, since {when(entry.since)}"),
        ("said last", entry.text or "-"),
        ("attempts", entry.attempts),
        ("versions", _versions(entry)),
        ("certificate", f"issue {entry.certificate}" if entry.certificate else "none yet"),
    ]
    rows += [("asked", f"{kind}: no server has taken it up yet") for kind in entry.asked]
    rows += [("answered", answer) for answer in entry.answers]
    typer.echo(pairs(rows))
    if entry.history:
        steps = [
            (when(step.get("at")), step["state"], step["round"], step["version"], step["text"])
            for step in entry.history
        ]
        typer.echo("\n" + table(("WHEN", "STATE", "ROUND", "VERSION", "DETAILS"), steps))


def _versions(entry: Standing) -> str:
    if entry.merge_version is None:
        return "not merged yet"
    rounds = f"{entry.verified_rounds} round(s) verified"
    return f"unlearned from {entry.base_version}, merged as {entry.merge_version}, {rounds}"


def ask(state: Path, kind: str, request_id: str) -> None:
    """Leave a command about a request for the server: ``cancel``, ``release`` or ``reject``.

    What the server would refuse for certain is refused at once.
    """
    from flwr_afuic.state.standing import standing

    view = look_at(state)
    entry = standing(view, request_id)
    if kind == "cancel":
        _check_cancel(entry)
    elif entry.state != "held":
        raise StateTransitionError(
            f"request {request_id} is {entry.state}; only a request that the fidelity gate holds "
            f"can be {_DONE[kind]}"
        )
    if kind in entry.asked:
        typer.echo(f"this was asked before. {_awaits(view)}", err=True)
        return
    with open_state(state) as store:
        store.command(kind, request_id)
    typer.echo(f"{kind} {request_id}: asked. {_awaits(view)}")


def _check_cancel(entry: Standing) -> None:
    if entry.filed_by == "site":
        raise StateTransitionError(
            f"request {entry.id} was filed by {printable(entry.site)}; only its steward can cancel "
            f"it, there: flwr-afuic cancel {entry.id} --inbox FILE"
        )
    if entry.merge_version is not None:
        raise StateTransitionError(
            f"request {entry.id} was merged as version {entry.merge_version}; only a request that "
            "is not yet merged can be cancelled"
        )
    if entry.state in ("cancelled", "refused", "failed"):
        raise StateTransitionError(f"request {entry.id} is {entry.state} already")


def _awaits(view: StateView) -> str:
    if view.server is None:
        return "No server runs on this directory; the next one takes it up."
    return f"The server with process id {view.server} takes it up within one poll."
