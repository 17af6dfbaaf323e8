"""Erasure requests: filed, looked at, taken back, and decided on when held.

A data steward names the hospital's ``--inbox``, an operator the server's ``--state``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import operator, steward
from flwr_afuic.cli.places import AsJson, Inbox, RequestId, State, StateDir, check_place, say_json
from flwr_afuic.errors import ConfigError
from flwr_afuic.wire import REASON_CODES

_HOSPITAL, _OPERATOR = "At a hospital, with --inbox", "As operator, with --state"


def request(
    inbox: Inbox = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="What to erase: a file with one id a line, or a CSV.", rich_help_panel=_HOSPITAL
        ),
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(
            help="Whose data to erase: a list of patient ids. What comes later under such an id "
            "does not train either.",
            rich_help_panel=_HOSPITAL,
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Erase all data of the site, which leaves.", rich_help_panel=_HOSPITAL
        ),
    ] = False,
    reason: Annotated[
        str, typer.Option(help="In words, for your own records. At a hospital it stays there.")
    ] = "",
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            "--reason-code",
            help=f"What the server is told: {', '.join(REASON_CODES)}. Else consent-withdrawn at "
            "a hospital, site-left for an operator.",
        ),
    ] = None,
    held: Annotated[
        Path | None,
        typer.Option(
            help="All samples the site holds, if its client has not run yet.",
            rich_help_panel=_HOSPITAL,
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="Column of the ids in the lists, else sample_id (patient_id) or id.",
            rich_help_panel=_HOSPITAL,
        ),
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="A UUID of your own; filing it twice is filing once.",
            rich_help_panel=_HOSPITAL,
        ),
    ] = None,
    state: State = None,
    client: Annotated[
        str | None,
        typer.Option(help="Name of a site that cannot ask itself.", rich_help_panel=_OPERATOR),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="afuic, or medu for a site that is gone; else the server's.",
            rich_help_panel=_OPERATOR,
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """File an erasure and print its id: at a hospital, or as operator for a site that cannot.

    The listed samples train no more from that moment, whatever becomes of the server.

    Example: flwr-afuic request --inbox inbox.sqlite --samples ids.csv --reason "letter of 3 May"

    Operator: flwr-afuic request --state /srv/afuic --client hospital-d --method medu
    """
    check_place(inbox, state)
    if inbox is not None:
        if client is not None or method:
            raise ConfigError("--client and --method are the operator's, with --state DIR")
        steward.check_lists(samples, patients, everything)
        if not reason.strip():
            raise ConfigError(
                "--reason is missing: say in words why, for your own records; it does not leave "
                "this site"
            )
        notice = steward.file(
            inbox,
            samples,
            held,
            column,
            reason,
            code or "consent-withdrawn",
            request_id,
            patients,
        )
        if as_json:
            say_json(steward.notice_json(notice))
        else:
            typer.echo(notice.request_id)
        return
    if samples or patients or everything or held or column or request_id:
        raise ConfigError(
            "an operator erases all data of a site: with --state DIR name --client NAME, and no "
            "samples"
        )
    if state is None or client is None:
        raise ConfigError("--client is missing: name the site whose data is to be erased")
    filed = operator.file_for(state, client, method, code or "site-left", reason)
    if as_json:
        say_json({"id": filed, "site": client, "scope": "client"})
    else:
        typer.echo(filed)


def requests(inbox: Inbox = None, state: State = None, as_json: AsJson = False) -> None:
    """List every request, and where each stands.

    Example: flwr-afuic requests --state /srv/afuic
    """
    check_place(inbox, state)
    if inbox is not None:
        steward.list_requests(inbox, as_json=as_json)
    elif state is not None:
        operator.list_requests(state, as_json=as_json)


def status(
    request_id: RequestId, inbox: Inbox = None, state: State = None, as_json: AsJson = False
) -> None:
    """Show where request ID stands, at the server with its whole course.

    Example: flwr-afuic status 0b6e7a3c-0000-4000-8000-000000000001 --inbox inbox.sqlite
    """
    check_place(inbox, state)
    if inbox is not None:
        steward.show_status(inbox, request_id, as_json=as_json)
    elif state is not None:
        operator.show_status(state, request_id, as_json=as_json)


def cancel(request_id: RequestId, inbox: Inbox = None, state: State = None) -> None:
    """Take back request ID, where it was filed, unless it is merged already.

    At a hospital its samples train again once the server has confirmed.

    Example: flwr-afuic cancel 0b6e7a3c-0000-4000-8000-000000000001 --inbox inbox.sqlite
    """
    check_place(inbox, state)
    if inbox is not None:
        steward.cancel(inbox, request_id)
    elif state is not None:
        operator.ask(state, "cancel", request_id)


def release(request_id: RequestId, state: StateDir) -> None:
    """Let the merge of request ID go on, which the fidelity gate holds for what it costs.

    Example: flwr-afuic release 0b6e7a3c-0000-4000-8000-000000000001 --state /srv/afuic
    """
    operator.ask(state, "release", request_id)


def reject(request_id: RequestId, state: StateDir) -> None:
    """Give up the merge of request ID, which the fidelity gate holds; the request fails.

    Example: flwr-afuic reject 0b6e7a3c-0000-4000-8000-000000000001 --state /srv/afuic
    """
    operator.ask(state, "reject", request_id)
