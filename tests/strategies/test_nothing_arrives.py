"""Every file of the server, and everything made of them, searched for what stays at the site."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from flwr_afuic.report.state_json import state_json
from flwr_afuic.report.state_page import render_state
from flwr_afuic.report.state_text import state_text
from flwr_afuic.report.state_view import read_report
from flwr_afuic.state.backup import backup
from flwr_afuic.state.store import StateStore
from tests.erasure_helpers import Site, federate

WORDS = "asked on the ward by her daughter"


def forms(secret: str) -> list[bytes]:
    """Return a secret as it would be found: plain, encoded, or as a hash that can be searched."""
    raw = secret.encode()
    digests = [hashlib.new(name, raw) for name in ("md5", "sha1", "sha256")]
    return [
        raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="),
        json.dumps(secret).encode()[1:-1], secret.upper().encode(),
        *(form for d in digests for form in (d.digest(), d.hexdigest().encode())),
    ]  # fmt: skip


def found(data: bytes, secrets: list[str]) -> list[str]:
    return [secret for secret in secrets if any(form in data for form in forms(secret))]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """A completed erasure of some samples, one of all, one that failed; and their secrets."""
    folder = tmp_path_factory.mktemp("server")
    sites = [Site(n, ids=[f"Grünwald-{n}-{row}/ct" for row in range(4)]) for n in range(4)]

    def file(site: Site, samples=()) -> None:
        site.inbox.file(
            scope="samples" if samples else "client",
            sample_ids=list(samples),
            held=site.ids,
            reason="data-error",
            note=WORDS,
        )

    def fail() -> None:
        raise RuntimeError(f"cannot read {sites[2].ids[0]}")

    sites[2].on_unlearn = fail
    at = {
        2: lambda strategy: file(sites[0], sites[0].ids[:2]),
        3: lambda strategy: file(sites[1]),
        4: lambda strategy: file(sites[2], sites[2].ids[1:2]),
    }
    outcome = federate(sites, at=at, state_dir=folder / "state", rounds=24)
    states = {str(request.state) for request in outcome.strategy.requests}
    assert states == {"completed", "failed"}
    backup(folder / "state", folder / "copy.tar")
    secrets = [name for site in sites for name in site.ids] + [WORDS, "Grünwald"]
    with sites[0].inbox._file.reading() as connection:
        keys = connection.execute("SELECT value FROM secret").fetchall()
    return folder, secrets, [bytes(key) for (key,) in keys]


def test_no_file_of_the_server_names_a_sample_or_repeats_the_stewards_words(federation):
    folder, secrets, keys = federation
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".sqlite", ".json", ".html", ".sig", ".tar"}
    for path in files:
        data = path.read_bytes()
        assert found(data, secrets) == [], path
        assert not any(key in data or key.hex().encode() in data for key in keys), path


def test_no_report_does_either(federation):
    folder, secrets, _ = federation
    report = read_report(folder / "state")
    made = [render_state(report), state_text(report), json.dumps(state_json(report))]
    assert [found(text.encode(), secrets) for text in made] == [[], [], []]


def test_the_search_would_find_them(federation):
    folder, secrets, _ = federation
    for form in forms(secrets[0]):
        assert secrets[0] in found(b"before" + form + b"after", secrets)
    with StateStore(folder / "state") as store:
        site = store.requests()[0].site
    database = (folder / "state" / "state.sqlite").read_bytes()
    assert found(database, [site]) == [site]  # what does arrive is found in that very file
