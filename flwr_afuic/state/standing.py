"""Where each erasure request stands, from what lies in a state directory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flwr_afuic.errors import ErasureError
from flwr_afuic.state.reading import StateView
from flwr_afuic.state.rows import Command, RequestRow

WAITING = "waiting"
"""A request of the operator's that no server has taken up yet."""
REFUSED = "refused"


@dataclass(frozen=True)
class Standing:
    """One request, for a person or a program to read.

    Attributes
    ----------
    count : int or None
        Samples to erase; None where the operator filed it and the server does not know.
    state, text : str
        Where it stands, and the last thing said of it. A request of the operator's that no
        server has taken up yet is ``waiting``.
    filed_at, since : float
        Seconds since the epoch, ``filed_at`` by the filer's clock; 0 where not known.
    certificate : int
        Newest issue of its certificate; 0 while there is none.
    asked : tuple of str
        Commands of the operator that wait for a server.
    answers : tuple of str
        Commands that a server has dealt with, each with what came of it.
    history : tuple of dict
        Its steps: state, time, round, version, text, at.
    """

    id: str
    site: str
    scope: str
    count: int | None
    reason: str
    filed_by: str
    filed_at: float
    state: str
    since: float
    text: str
    attempts: int = 0
    base_version: int | None = None
    merge_version: int | None = None
    verified_rounds: int = 0
    certificate: int = 0
    asked: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


def standings(view: StateView) -> list[Standing]:
    """Return every request in the order it came in, those no server has seen yet at the end."""
    known = {row.id for row in view.requests}
    filed = [c for c in view.commands if c.kind == "erase" and c.request_id not in known]
    return [_of_request(row, view) for row in view.requests] + [_of_command(c) for c in filed]


def standing(view: StateView, request_id: str) -> Standing:
    """Return one request; ErasureError if there is none of that id."""
    found = [entry for entry in standings(view) if entry.id == request_id]
    if not found:
        raise ErasureError(
            f"no erasure request {request_id!r} in {view.directory}; it holds "
            f"{len(standings(view))}, see: flwr-afuic requests --state {view.directory}"
        )
    return found[0]


def _of_request(row: RequestRow, view: StateView) -> Standing:
    body = row.body
    history = tuple(dict(step) for step in body.get("history", ()))
    last = history[-1] if history else {}
    by_operator = body.get("filed_by") == "operator"
    return Standing(
        id=row.id,
        site=row.site,
        scope=row.scope,
        count=None if by_operator else row.count,
        reason=row.reason,
        filed_by="operator" if by_operator else "site",
        filed_at=row.filed_at,
        state=row.state,
        since=float(last.get("at") or 0.0),
        text=str(last.get("text", "")),
        attempts=int(body.get("attempts") or 0),
        base_version=body.get("base_version"),
        merge_version=body.get("merge_version"),
        verified_rounds=int(body.get("verified_rounds") or 0),
        certificate=max((c.issue for c in view.certificates if c.request_id == row.id), default=0),
        asked=tuple(c.kind for c in _commands(view, row.id) if c.outcome is None),
        answers=tuple(f"{c.kind}: {c.outcome}" for c in _commands(view, row.id) if c.outcome),
        history=history,
    )


def _commands(view: StateView, request_id: str) -> list[Command]:
    return [c for c in view.commands if c.request_id == request_id and c.kind != "erase"]


def _of_command(command: Command) -> Standing:
    refused = command.outcome is not None
    return Standing(
        id=command.request_id,
        site=command.site,
        scope="client",
        count=None,
        reason=command.reason,
        filed_by="operator",
        filed_at=command.filed_at,
        state=REFUSED if refused else WAITING,
        since=command.done_at or command.filed_at,
        text=(command.outcome or "no server has taken it up yet"),
    )
