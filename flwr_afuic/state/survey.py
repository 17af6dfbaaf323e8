"""A state directory as far as it can be read: what is damaged is named, the rest is shown."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flwr_afuic.erasure.signatures import read_public_keys, read_rotations
from flwr_afuic.errors import AfuicError, StateError
from flwr_afuic.state import queries
from flwr_afuic.state.checking import ledger_problems
from flwr_afuic.state.reading import StateView, server_of, sizes_of, snapshot
from flwr_afuic.state.rows import RequestRow

T = TypeVar("T")
_DAMAGE = (sqlite3.Error, AfuicError, OSError, ValueError, TypeError, KeyError, RecursionError)


@dataclass(frozen=True)
class Survey:
    """What could be read of a state directory, and what is wrong with it.

    Attributes
    ----------
    view : StateView
        What could be read; what could not is empty.
    unreadable : list of str
        Parts that could not be read, and why.
    ledger : list of str
        What is wrong with the ledger; nothing says that its chain and its head verify.
    weights : list of str
        Weights that are kept and missing, and those recorded as deleted that are there.
    """

    view: StateView
    unreadable: list[str]
    ledger: list[str]
    weights: list[str]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.unreadable or self.ledger or self.weights)


def survey(directory: str | Path) -> Survey:
    """Look at a state directory, damaged or not, as ``read_state`` does: only reading.

    The contents of weights are not read, which may be many gigabytes; ``verify_state`` does.

    Raises
    ------
    StateError
        If there is no state directory, or it is of another version of this program.
    """
    directory = Path(directory)
    try:
        found = snapshot(directory, lambda connection: _survey(directory, connection))
        if found.weights:
            # Between reading what is kept and looking for it a server may have deleted it.
            again = snapshot(directory, lambda connection: _survey(directory, connection))
            found.weights[:] = [entry for entry in found.weights if entry in again.weights]
        return found
    except StateError as error:
        if not isinstance(error.__cause__, sqlite3.Error | OSError):
            raise
        return _survey(directory, None, str(error))


class _Parts:
    """Reads part after part, and remembers what failed."""

    def __init__(self, connection: sqlite3.Connection | None, problems: list[str]) -> None:
        self.connection = connection
        self.problems = problems

    def stored(self, what: str, read: Callable[[sqlite3.Connection], T], empty: T) -> T:
        """Read a part of the database."""
        connection = self.connection
        if connection is None:
            return empty
        return self.tried(what, lambda: read(connection), empty)

    def tried(self, what: str, read: Callable[[], T], empty: T) -> T:
        """Read any part; ``empty`` where that fails."""
        try:
            return read()
        except _DAMAGE as error:
            self.problems.append(f"{what} cannot be read: {error}")
            return empty


def _survey(
    directory: Path, connection: sqlite3.Connection | None, problem: str | None = None
) -> Survey:
    problems = [] if problem is None else [problem]
    parts = _Parts(connection, problems)
    keys: list[str] = parts.tried(
        "the public key", lambda: read_public_keys(directory / "keys"), []
    )
    view = StateView(
        directory=directory,
        federation=parts.stored("the federation's id", queries.federation, ""),
        versions=parts.stored("the list of versions", queries.versions, []),
        requests=_requests(parts),
        ledger=parts.stored("the ledger", queries.ledger, []),
        head=parts.stored("the ledger's signed head", queries.head, None),
        events=parts.stored("the list of events", queries.events, []),
        updates=parts.stored("the list of updates", queries.updates, []),
        metrics=parts.stored("the list of metrics", queries.metrics, []),
        purges=parts.stored("the list of deleted files", queries.purges, []),
        certificates=parts.stored("the list of certificates", queries.certificates, []),
        commands=parts.stored("the list of commands", queries.commands, []),
        holdings=parts.stored("the list of kept weights", queries.holdings, {}),
        settings=parts.stored("the engine's state", queries.settings, {}),
        weights=parts.tried("the folder of weights", lambda: sizes_of(directory), {}),
        public_keys=keys,
        rotations=parts.tried("the key rotations", lambda: read_rotations(directory / "keys"), []),
        server=server_of(directory),
    )
    return Survey(view, problems, _ledger(parts, keys), _weights(view))


def _requests(parts: _Parts) -> list[RequestRow]:
    """Read request by request: one that is damaged must not hide the others."""

    def ids(connection: sqlite3.Connection) -> list[str]:
        return [name for (name,) in connection.execute("SELECT id FROM request ORDER BY number")]

    def one(request_id: str) -> Callable[[sqlite3.Connection], RequestRow | None]:
        return lambda connection: queries.request(connection, request_id)

    names: list[str] = parts.stored("the list of requests", ids, [])
    rows = [parts.stored(f"request {name}", one(name), None) for name in names]
    return [row for row in rows if row is not None]


def _ledger(parts: _Parts, keys: list[str]) -> list[str]:
    connection = parts.connection
    if connection is None:
        return ["it cannot be verified: the database cannot be read"]
    if not keys:
        return ["its head cannot be verified: there is no public key of this server"]
    try:
        return ledger_problems(connection, keys, [])
    except _DAMAGE as error:
        return [f"it cannot be verified: {error}"]


def _weights(view: StateView) -> list[str]:
    kept: dict[str, list[str]] = {}
    for (purpose, key), digest in view.holdings.items():
        kept.setdefault(digest, []).append(f"{purpose} {key}")
    problems = [
        f"{_file(digest)} is missing: it is kept for {', '.join(names[:3])}"
        for digest, names in kept.items()
        if digest not in view.weights
    ]
    deleted = {row.digest for row in view.purges if row.done} - set(kept)
    problems += [
        f"{_file(digest)} was recorded as deleted and is there"
        for digest in sorted(deleted & set(view.weights))
    ]
    return problems


def _file(digest: Any) -> str:
    return f"weights/{str(digest)[:16]}...safetensors"
