"""``flwr-afuic ledger``: is it whole, what does it say, and how far has a site seen it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flwr_afuic.cli import places
from flwr_afuic.cli.places import AsJson, StateDir
from flwr_afuic.errors import StateError, WireError

if TYPE_CHECKING:
    from flwr_afuic.erasure.ledger import Head
    from flwr_afuic.state.reading import StateView

app = typer.Typer(help="The server's ledger: verify it, show it.", no_args_is_help=True)


@app.callback()
def ledger() -> None:
    """The server's ledger: verify it, show it."""


@app.command("verify")
def verify(
    state: StateDir,
    heads: Annotated[
        list[Path] | None,
        typer.Option("--head", help="A head that a site kept (flwr-afuic ledger head); repeatable"),
    ] = None,
    inboxes: Annotated[
        list[Path] | None,
        typer.Option("--inbox", help="A site's inbox, for the head it has seen; repeatable."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="The server's public key as you know it; else the directory's own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every row, signature, model file and certificate; exit 1 if anything is wrong.

    Example: flwr-afuic ledger verify --state /srv/afuic --head hospital-a.json --key server.pub
    """
    from flwr_afuic.state.reading import verify_state

    seen = [(path.stem, read_head(path)) for path in heads or ()]
    seen += [(path.stem, head_of(path)) for path in inboxes or ()]
    problems = verify_state(state, seen)
    # A ledger that is damaged may not be readable as a view: what is known is said above.
    view = None
    if not problems:
        view = places.look_at(state)
        problems = _about_key(view, key)
    if as_json:
        rows = None if view is None else len(view.ledger)
        head = None if view is None or view.head is None else view.head.to_json()
        places.say_json({"valid": not problems, "problems": problems, "rows": rows, "head": head})
    elif problems:
        for problem in problems:
            typer.echo(f"not valid: {places.printable(problem)}")
    elif view is not None:
        typer.echo(_valid(view, len(seen)))
    if problems:
        raise typer.Exit(1)


def _valid(view: StateView, seen: int) -> str:
    from flwr_afuic.erasure.signatures import key_id

    if view.head is None:
        return "valid: the ledger is empty"
    sites = f", {seen} head(s) of sites agree" if seen else ""
    return (
        f"valid: {len(view.ledger)} rows, the last of {places.when(view.head.time)}, signed by key "
        f"{key_id(view.head.key)}{sites}"
    )


def _about_key(view: StateView, pinned: Path | None) -> list[str]:
    """Say if the directory's key is neither the reader's nor one that followed it."""
    from flwr_afuic.erasure.signatures import follows, key_id, load_public

    if pinned is None:
        return []
    known, present = load_public(pinned), view.public_keys[-1]
    if follows(known, present, view.rotations):
        return []
    return [
        f"the directory's key is {key_id(present)}, and no signed rotation leads to it from "
        f"{key_id(known)} in {pinned}"
    ]


@app.command("show")
def show(
    state: StateDir,
    last: Annotated[int, typer.Option(min=0, help="Only so many of the newest rows; 0: all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the ledger's rows, oldest first.

    Example: flwr-afuic ledger show --state /srv/afuic --last 20
    """
    rows = places.look_at(state).ledger[-last:]
    if as_json:
        places.say_json([vars(row) for row in rows])
        return
    for row in rows:
        body = json.dumps(row.body, ensure_ascii=False, sort_keys=True)
        line = f"{row.seq:>6}  {places.when(row.time)}  {row.kind:<13} {body}"
        typer.echo(places.printable(line))


@app.command("head")
def head(inbox: places.Inbox = None, state: places.State = None) -> None:
    """Print the ledger's newest signed head, as a site has seen it or as the server has it.

    A site that keeps this file can show later that rows were cut or rewritten.

    Example: flwr-afuic ledger head --inbox /hospital/inbox.sqlite > hospital-a.json
    """
    places.check_place(inbox, state)
    if inbox is not None:
        found: Head | None = head_of(inbox)
    elif state is not None:
        found = places.look_at(state).head
    if found is None:
        raise StateError(f"{state} holds no signed head yet; the first run makes one")
    typer.echo(json.dumps(found.to_json(), indent=2))


def head_of(inbox: Path) -> Head:
    """Return the newest head a site has seen; StateError if it has seen none."""
    from flwr_afuic.erasure.ledger import Head

    row = places.open_inbox(inbox).server.newest_head()
    if row is None:
        raise StateError(
            f"{inbox} holds no head of the server's ledger; it comes with the site's first task"
        )
    return Head.from_json(row)


def read_head(path: Path) -> Head:
    """Read a head from a file; StateError or WireError say what is wrong."""
    from flwr_afuic.erasure.ledger import Head

    data = places.read_bytes(path, "a ledger head")
    try:
        return Head.from_json(json.loads(data))
    except (ValueError, RecursionError, WireError) as error:
        raise StateError(
            f"{path} is no ledger head: {error}; see flwr-afuic ledger head"
        ) from error
