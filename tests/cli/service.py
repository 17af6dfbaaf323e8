"""A state directory as a server leaves it, and an inbox as a site's client does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flwr_afuic.erasure.book import RequestBook, State
from flwr_afuic.erasure.certificate import render_certificate, to_bytes
from flwr_afuic.erasure.delivery import CertificateNotice, LedgerNotice
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.state.rows import RequestRow
from flwr_afuic.state.store import StateStore
from flwr_afuic.wire import ErasureNotice
from tests.erasure.certificates import START, document, values

COURSE = {
    "received": (),
    "held": (State.DISPATCHED, State.UNLEARNED, State.HELD),
    "verifying": (State.DISPATCHED, State.UNLEARNED, State.MERGED, State.VERIFYING),
    "completed": (
        State.DISPATCHED, State.UNLEARNED, State.MERGED, State.VERIFYING, State.COMPLETED,
    ),
}  # fmt: skip


def uuid(number: int) -> str:
    return f"0b6e7a3c-0000-4000-8000-{number:012d}"


def record(number: int, state: str = "received", site: str = "hospital-a", by: str = "site"):
    """A request that has come as far as ``state``."""
    scope = "client" if by == "operator" else "samples"
    notice = ErasureNotice(uuid(number), scope, 12, "5f" * 32, "consent-withdrawn", START - 60)
    book = RequestBook()
    made, _ = book.file(notice, site, filed_by=by, at=START)
    for step, reached in enumerate(COURSE[state], 1):
        book.move(made, reached, f"step {step}", round=step, version=step, at=START + step)
    if state in ("verifying", "completed"):
        made.base_version, made.merge_version, made.attempts = 1, 3, 1
    return made


def put(store: StateStore, *records: ErasureRecord) -> None:
    with store.transaction() as tx:
        for made in records:
            notice = made.notice
            row = RequestRow(
                notice.request_id, made.site, notice.scope, str(made.state), notice.count,
                notice.reason, notice.filed_at, made.to_dict(),
            )  # fmt: skip
            tx.put_request(row)
            tx.append("request", {"request": notice.request_id})


def make_state(directory: Path, *records: ErasureRecord) -> Path:
    """A directory with one version, updates of two sites, and these requests."""
    with StateStore(directory) as store:
        digest = store.vault.put({"w": np.arange(6, dtype=np.float32)})
        with store.transaction() as tx:
            tx.put_version(1, 1, 1.0, START, "merge", ["hospital-a", "hospital-b"], digest)
            tx.hold("version", "1", digest)
            tx.append("version", {"version": 1, "model": digest})
        put(store, *records)
    return directory


def certify(directory: Path, number: int, **changes: Any) -> Path:
    """Issue a certificate of a request, as a server does."""
    with StateStore(directory) as store:
        request = {**values()["request"], "request_id": uuid(number)}
        head = store.head()
        content = document(
            request=request, federation=store.federation, signed_by=store.keys.key_id,
            issue=store.next_issue(uuid(number)), ledger=(head.seq, head.hash), **changes,
        )  # fmt: skip
        data = to_bytes(content)
        return store.add_certificate(
            uuid(number), data, store.keys.sign(data), render_certificate(content)
        )


def make_inbox(path: Path, *held: str) -> SiteInbox:
    inbox = SiteInbox(path)
    inbox.note_held(held or ("a", "b", "c", "d"))
    return inbox


def deliver(directory: Path, inbox: SiteInbox, request_id: str | None = None) -> None:
    """Hand a site the ledger's head, and a certificate, as a server does with a task."""
    with StateStore(directory) as store:
        inbox.server.take_head(LedgerNotice(store.head(), tuple(store.keys.rotations)))
        found = None if request_id is None else store.certificate(request_id)
        if found is not None:
            data, signature, path = found
            issue = int(path.stem.rsplit("-", 1)[1])
            notice = CertificateNotice(
                request_id, issue, data.decode(), signature, store.keys.public_hex
            )
            assert inbox.certificates.take(notice) is None
