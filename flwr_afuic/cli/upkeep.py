"""``flwr-afuic keys``, ``backup`` and ``restore``: the care of a state directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flwr_afuic.cli import places
from flwr_afuic.cli.places import AsJson, StateDir

keys = typer.Typer(help="The server's signing key: show it, change it.", no_args_is_help=True)


@keys.callback()
def keys_() -> None:
    """The server's signing key: show it, change it."""


@keys.command("show")
def show(
    state: StateDir,
    pem: Annotated[bool, typer.Option("--pem", help="Print server.pub, and nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the server's public key, and those before it.

    Example: flwr-afuic keys show --state /srv/afuic
    """
    from flwr_afuic.erasure.signatures import key_id

    file = state / "keys" / "server.pub"
    if pem:
        typer.echo(places.read_bytes(file, "the public key").decode("ascii", "replace"), nl=False)
        return
    view = places.look_at(state)
    present = view.public_keys[-1]
    if as_json:
        found: dict[str, Any] = {
            "id": key_id(present),
            "public": present,
            "file": str(file),
            "earlier": [key_id(public) for public in view.public_keys[:-1]],
            "rotations": [rotation.to_json() for rotation in view.rotations],
        }
        places.say_json(found)
        return
    rows: list[tuple[str, object]] = [
        ("key", key_id(present)),
        ("public key", present),
        ("file", file),
    ]
    for rotation in view.rotations:
        old = key_id(rotation.old_key)
        rows.append(("before", f"{old}, until {places.when(rotation.at)}, keys/old/{old}.pub"))
    typer.echo(places.pairs(rows))


@keys.command("rotate")
def rotate(state: StateDir, as_json: AsJson = False) -> None:
    """Replace the signing key; the old one signs the new one, then its private part is deleted.

    Stop the server first. Sites learn of the new key with their next task; give the new
    server.pub to whoever verifies certificates. Certificates of before keep the old key, whose
    public part stays in keys/old.

    Example: flwr-afuic keys rotate --state /srv/afuic
    """
    from flwr_afuic.erasure.signatures import key_id

    with places.open_state(state) as store:
        rotation = store.rotate_key()
    old, new = key_id(rotation.old_key), key_id(rotation.new_key)
    if as_json:
        places.say_json({"old": old, "new": new, "rotation": rotation.to_json()})
        return
    typer.echo(f"the key is {new} now, in place of {old}; give {state / 'keys' / 'server.pub'} to")
    typer.echo(f"whoever verifies; earlier certificates verify with keys/old/{old}.pub")


def backup(
    state: StateDir,
    out: Annotated[Path, typer.Option(help="New folder, or new file if it ends in .tar.")],
    no_keys: Annotated[
        bool, typer.Option("--no-keys", help="Leave the private key out; keep it elsewhere.")
    ] = False,
) -> None:
    """Copy the state directory, while a server may run on it.

    A backup holds models from before later erasures: delete it in time, as the certificates say.

    Example: flwr-afuic backup --state /srv/afuic --out /backup/afuic-2026-05-31.tar
    """
    from flwr_afuic.state.backup import backup as copy

    target = copy(state, out, keys=not no_keys)
    typer.echo(f"{state} was copied to {target}{' without the private key' if no_keys else ''}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What backup has made.")],
    state: StateDir,
    keys_folder: Annotated[
        Path | None,
        typer.Option("--keys", help="Folder with server.pem, for a backup without the key."),
    ] = None,
) -> None:
    """Make a state directory from a BACKUP, folder or .tar, once every part of it is verified.

    What happened after the backup is lost, erasures included. Requests come in again from the
    sites that hold them, those closed since the backup too; what you filed yourself does not.

    Example: flwr-afuic restore /backup/afuic-2026-05-31.tar --state /srv/afuic
    """
    from flwr_afuic.state.backup import restore as unpack

    unpack(source, state, keys=keys_folder)
    typer.echo(f"{state} was made from {source}; its ledger says so")
