"""``flwr-afuic certificate`` and ``flwr-afuic verify``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flwr_afuic.cli import places
from flwr_afuic.cli.places import AsJson, Inbox, RequestId, State
from flwr_afuic.errors import ConfigError, ErasureError, StateError, WireError

if TYPE_CHECKING:
    from flwr_afuic.erasure.signatures import Rotation


def certificate(
    request_id: RequestId,
    inbox: Inbox = None,
    state: State = None,
    out: Annotated[Path, typer.Option(help="Folder for the three files.")] = Path("."),
    attach: Annotated[
        Path | None,
        typer.Option(
            help="Operator: JSON with figures measured for this erasure, retraining for one "
            "(bench figures --json); the certificate is issued anew with them."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the newest certificate of request ID: .json, its signature .json.sig, and .html.

    Example: flwr-afuic certificate 0b6e7a3c-0000-4000-8000-000000000001 --inbox inbox.sqlite
    """
    places.check_place(inbox, state)
    if inbox is not None:
        if attach is not None:
            raise ConfigError("--attach is the operator's, with --state DIR: the server signs it")
        document, signature = _received(inbox, request_id)
    elif state is not None:
        document, signature = _issued(state, request_id, attach)
    written = _write(out, request_id, document, signature)
    if as_json:
        places.say_json({"files": [str(path) for path in written]})
    else:
        for path in written:
            typer.echo(path)


def _received(inbox: Path, request_id: str) -> tuple[bytes, str]:
    opened = places.open_inbox(inbox)
    found = opened.certificate(request_id)
    if found is None:
        raise ErasureError(
            f"no certificate of request {request_id} is here yet; it is "
            f"{opened.status(request_id)}, and the certificate comes once the server has closed it"
        )
    return found.document, found.signature


def _issued(state: Path, request_id: str, attach: Path | None) -> tuple[bytes, str]:
    from flwr_afuic.state.reissue import issue_with
    from flwr_afuic.state.standing import standing

    if attach is not None:
        metrics = read_metrics(attach)
        with places.open_state(state) as store:
            document, signature = issue_with(store, request_id, metrics)
        typer.echo(f"issued anew, with {len(metrics['figures'])} figures", err=True)
        return document, signature
    entry = standing(places.look_at(state), request_id)
    with places.open_state(state) as store:
        found = store.certificate(request_id)
    if found is None:
        raise ErasureError(
            f"request {request_id} has no certificate: it is {entry.state}; a completed request "
            "gets one"
        )
    return found[0], found[1]


def read_metrics(path: Path) -> dict[str, Any]:
    """Read measured figures: a flat object ``figures``, or a flat object of numbers."""
    data = places.read_bytes(path, "figures")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ErasureError(f"{path} is no JSON: {error}") from error
    figures = content.get("figures", content) if isinstance(content, dict) else None
    if not isinstance(figures, dict) or not figures:
        raise ErasureError(f"{path} holds no figures; it must be an object of names and numbers")
    made_with = {key: content[key] for key in ("settings", "seeds", "versions") if key in content}
    made_with["sha256"] = hashlib.sha256(data).hexdigest()
    return {"figures": figures, "made_with": made_with}


def _write(out: Path, request_id: str, document: bytes, signature: str) -> list[Path]:
    """Write the three files; a file that holds something else is never written over."""
    from flwr_afuic.erasure.certificate import render_certificate

    content = json.loads(document)
    stem = f"{request_id}-{content['issue']}"
    files = {
        out / f"{stem}.json": document,
        out / f"{stem}.json.sig": f"{signature}\n".encode("ascii"),
        out / f"{stem}.html": render_certificate(content).encode("utf-8"),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            if path.suffix != ".html" and path.exists() and path.read_bytes() != data:
                raise StateError(f"{path} is another file already; name another folder with --out")
            path.write_bytes(data)
    except OSError as error:
        raise StateError(f"cannot write the certificate to {out}: {error.strerror}") from error
    return list(files)


def verify(
    document: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="The .json file.")],
    key: Annotated[
        Path | None, typer.Option(help="The server's public key (server.pub), as you know it.")
    ] = None,
    inbox: Annotated[
        Path | None,
        typer.Option(help="Instead of --key: a site's inbox, for the server's keys it has known."),
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="The signature; else the file beside it with .sig added.")
    ] = None,
    rotations: Annotated[
        Path | None,
        typer.Option(help="The server's keys/rotations.json, if its key was changed since."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a CERTIFICATE (.json) is valid (exit 0), or all that is wrong (exit 1).

    Example: flwr-afuic verify 0b6e7a3c-0000-4000-8000-000000000001-1.json --key server.pub
    """
    from flwr_afuic.erasure.certificate import verify_certificate

    beside = document.with_name(f"{document.name}.sig")
    data = places.read_bytes(document, "a certificate")
    signed = places.read_bytes(beside if signature is None else signature, "its signature")
    changes = [] if rotations is None else read_changes(rotations)
    verdicts = [
        verify_certificate(data, signed, public, rotations=changes) for public in _keys(key, inbox)
    ]
    found = next((verdict for verdict in verdicts if verdict.valid), verdicts[0])
    if as_json:
        places.say_json({"valid": found.valid, "problems": found.problems})
    elif found.valid and found.document is not None:
        typer.echo(_valid(found.document))
    else:
        for problem in found.problems:
            typer.echo(f"not valid: {places.printable(problem)}")
    if not found.valid:
        raise typer.Exit(1)


def _keys(key: Path | None, inbox: Path | None) -> list[str]:
    """Return the public keys to verify with, the one in use first."""
    from flwr_afuic.erasure.signatures import load_public

    if (key is None) == (inbox is None):
        raise ConfigError("name the key to trust: --key server.pub, or --inbox FILE at a hospital")
    if key is not None:
        return [load_public(key)]
    watch = None if inbox is None else places.open_inbox(inbox).server
    server = None if watch is None else watch.server()
    if watch is None or server is None:
        raise ErasureError(f"{inbox} knows no server's key yet; it comes with the first task")
    return [server.key, *(public for public in watch.known_keys() if public != server.key)]


def read_changes(path: Path) -> list[Rotation]:
    """Read a list of key rotations; ErasureError if it is none."""
    from flwr_afuic.erasure.signatures import Rotation

    data = places.read_bytes(path, "key rotations")
    try:
        return [Rotation.from_json(entry) for entry in json.loads(data)]
    except (ValueError, TypeError, RecursionError, WireError) as error:
        raise StateError(f"{path} is no list of key rotations: {error}") from error


def _valid(document: dict[str, Any]) -> str:
    request, count = document["request"], document["request"]["count"]
    what = "all data" if request["scope"] == "client" else f"{count} sample(s)"
    return places.printable(
        f"valid: erasure {request['id']} of {what} of {request['site']}, {document['outcome']}, "
        f"issue {document['issue']} of {document['issued_at']}, signed by {document['signed_by']}"
    )
