"""Every byte that leaves a site in an erasure's whole life, searched for what must stay there."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sqlite3
from itertools import product

import numpy as np
import pytest

from flwr_afuic import wire
from flwr_afuic.errors import AfuicError
from flwr_afuic.models.arrays import get_arrays
from flwr_afuic.unlearning.privacy import NO_PRIVACY, DeltaPrivacy
from flwr_afuic.unlearning.settings import UnlearningSettings
from tests.erasure.test_server_watch import Server
from tests.erasure_helpers import Site, ToyClient, federate, request_id, toy_app, toy_model

IDS = [f"MRN-77193{row:02d}-Q" for row in range(24)]
NOTE = "Mrs Ottilie Vandersmissen called on Tuesday"
ERASED = IDS[3:5]
QUICK = UnlearningSettings(steps=5, attempts=1, batch_size=8, anchor_batch_size=8)


class NamedClient(ToyClient):
    """A toy site whose ids can be found wherever they turn up."""

    def data(self):
        data = super().data()
        ids = IDS if self.script.number == 0 else [f"other-{row}" for row in range(24)]
        return type(data)(data.images, data.labels, ids, data.holdout_images, data.holdout_labels)


class Wiretap:
    """Everything a client returns or raises, as bytes."""

    def __init__(self, client):
        self.client = client
        self.parts: list[bytes] = []

    def call(self, method, *args):
        try:
            result = getattr(self.client, method)(*args)
        except Exception as error:  # noqa: BLE001 - Flower would send its text
            self.parts += [str(error).encode(), repr(error).encode()]
            return None
        self._keep(result)
        return result

    def _keep(self, value):
        if isinstance(value, np.ndarray):
            self.parts.append(value.tobytes())
        elif isinstance(value, dict):
            for key, entry in value.items():
                self._keep(key)
                self._keep(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                self._keep(entry)
        elif isinstance(value, bytes):
            self.parts.append(value)
        else:
            self.parts += [str(value).encode(), repr(value).encode()]

    @property
    def everything(self):
        return b"\n".join(self.parts)


def encodings(text: bytes):
    yield text
    yield text.hex().encode()
    for coded in (base64.b64encode(text), base64.urlsafe_b64encode(text), base64.b32encode(text)):
        yield coded.rstrip(b"=")


def secrets(site):
    """What must not be found: ids and notes, plain, coded, hashed, and the site's own key."""
    with sqlite3.connect(site.inbox.path) as connection:
        key = connection.execute("SELECT value FROM secret").fetchone()[0]
        marks = [row[0] for row in connection.execute("SELECT mark FROM erased")]
    connection.close()
    lists = ["\n".join(ERASED), ",".join(ERASED), json.dumps(ERASED), json.dumps(IDS)]
    words = [word for word in NOTE.split() if len(word) > 3]  # "on" is in many a hash
    texts = [*IDS, NOTE, *words, *lists, str(site.inbox.path)]
    for text in texts:
        yield from encodings(text.encode())
        variants = [text.encode(), json.dumps(text).encode()]
        for name, variant in product(("md5", "sha1", "sha256", "sha512", "blake2b"), variants):
            plain = hashlib.new(name, variant).digest()
            empty = hmac.digest(b"", variant, name) if name != "blake2b" else plain
            for digest in (plain, empty):
                yield from encodings(digest)
                yield from encodings(digest[:16])
    for secret in (key, *marks):
        yield from encodings(secret)
    images = NamedClient(site).data().images
    for row in range(len(IDS)):
        yield images[row].numpy().tobytes()


def found(haystack: bytes, site):
    return [needle for needle in secrets(site) if len(needle) > 3 and needle in haystack]


def make_site(privacy):
    return Site(0, ids=IDS, privacy=privacy)


@pytest.mark.parametrize("privacy", [NO_PRIVACY, DeltaPrivacy()])
def test_a_whole_life_at_the_site(privacy, tmp_path):
    """Trained, filed, unlearned in a batch, verified, cancelled, refused, certified, failed."""
    site, server = make_site(privacy), Server(tmp_path / "server")
    client = NamedClient(site)
    tap = Wiretap(client)
    one, two, three, four = (request_id(n) for n in (1, 2, 3, 4))
    arrays = get_arrays(toy_model())
    head = {wire.SEED: 1, wire.LEDGER_HEAD: server.notice(1).to_json()}
    tap.call("fit", arrays, {**head, wire.WANT_DELTA: True})
    tap.call("evaluate", arrays, head)
    site.inbox.file(scope="samples", sample_ids=ERASED, held=IDS, note=NOTE, request_id=one)
    for number, sample in ((2, IDS[7]), (3, IDS[8]), (4, IDS[9])):
        site.inbox.file(
            scope="samples", sample_ids=[sample], held=IDS, note=NOTE, request_id=request_id(number)
        )
    tap.call("get_properties", head)
    known = {**head, wire.KNOWN: f"{one},{two},{three},{four}"}
    tap.call("fit", arrays, known)
    unlearn = {
        **known,
        wire.TASK: wire.TASK_UNLEARN,
        wire.REQUEST: one,
        wire.SCOPE: "samples",
        wire.BATCH: f"{one},{two}",
        wire.BASIS_RANK: 2,
        wire.SETTINGS: QUICK.to_json(),
    }
    delta, _, metrics = tap.call("fit", arrays, unlearn)
    assert wire.EVIDENCE in metrics
    assert len(delta) == len(arrays) + 1
    verify = {**known, wire.TASK: wire.TASK_VERIFY, wire.REQUEST: one}
    tap.call("evaluate", arrays, verify)
    site.inbox.cancel(three)
    assert wire.CANCEL in tap.call("get_properties", known)
    ends = {wire.CANCELLED: three, wire.REFUSED: four, wire.CLOSED: f"{one},{two}"}
    tap.call("fit", arrays, {**head, **ends})
    said = tap.call(
        "get_properties",
        {wire.CERTIFICATE: server.certificate().to_json(), wire.LEDGER_HEAD: "x"},
    )
    assert said[wire.HAVE_CERTIFICATES] == f"{one}-1"
    tap.call("get_properties", {wire.LEDGER_HEAD: server.notice(1, body="forked").to_json()})
    assert site.inbox.alarms()

    # And all that can go wrong, with texts that name patients.
    tap.call("fit", arrays, {**unlearn, wire.REQUEST: three})
    tap.call("fit", arrays, {**unlearn, wire.REQUEST: request_id(9)})
    tap.call("fit", arrays, {**unlearn, wire.EXTRAS: "{"})
    tap.call("fit", arrays[:-1], unlearn)
    tap.call("evaluate", arrays, {**verify, wire.REQUEST: request_id(9)})
    secret = f"{IDS[3]} of {NOTE}"
    for method in ("unlearn", "score", "train", "test", "data", "relearning_basis"):
        for error in (AfuicError(secret), RuntimeError(secret), KeyError(secret)):
            broken = NamedClient(site)

            def fail(*args, error=error, **kwargs):
                raise error

            setattr(broken, method, fail)
            other = Wiretap(broken)
            for call in (("fit", arrays, {wire.SEED: 1}), ("evaluate", arrays, {}),
                         ("fit", arrays, unlearn), ("evaluate", arrays, verify)):  # fmt: skip
                other.call(*call)
            tap.parts += other.parts
    assert len(tap.everything) > 10_000
    assert found(tap.everything, site) == []


def test_the_search_finds_what_it_looks_for():
    site = make_site(NO_PRIVACY)
    site.inbox.file(scope="samples", sample_ids=ERASED, held=IDS, note=NOTE)
    client = NamedClient(site)
    leaks = [
        IDS[5].encode(),
        hashlib.sha256(IDS[3].encode()).hexdigest().encode(),
        base64.b64encode(hashlib.sha1(ERASED[1].encode()).digest()),
        b"x" + client.data().images[3].numpy().tobytes(),
        b"... Vandersmissen ...",
        hashlib.sha256(json.dumps(ERASED).encode()).digest(),
    ]
    for leak in leaks:
        assert found(b"noise " + leak + b" noise", site)
    assert found(b"nothing of the kind", site) == []


@pytest.mark.parametrize("dialect", ["numpy", "message"])
def test_a_whole_life_in_a_federation(dialect, monkeypatch):
    """The same for every message of a run, as it crosses, with a batch of two requests."""
    monkeypatch.setattr("tests.erasure_helpers.ToyClient", NamedClient)
    sites = [make_site(DeltaPrivacy()), Site(1), Site(2)]

    def file(strategy):
        for number, samples in ((1, ERASED), (2, IDS[9:11])):
            sites[0].inbox.file(
                scope="samples", sample_ids=samples, held=IDS, note=NOTE,
                request_id=request_id(number),
            )  # fmt: skip

    outcome = federate(
        sites,
        app=toy_app(sites, dialect=dialect),
        dialect=dialect,
        initial=_initial(),
        at={3: file},
        rounds=20,
        unlearning=QUICK,
        relearning_rank=2,
        privacy=DeltaPrivacy(),
    )
    assert "merged" in outcome.states(0)
    evidence = outcome.record.evidence[0]
    assert evidence.privacy is not None
    crossed = outcome.grid.everything()
    assert request_id(1).encode() in crossed
    assert found(crossed, sites[0]) == []


def _initial():
    from flwr.app import ArrayRecord

    return ArrayRecord(toy_model().state_dict())
