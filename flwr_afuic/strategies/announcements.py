"""What the server tells the sites of its ledger and of their certificates, and hears of it."""

from __future__ import annotations

import json
from functools import lru_cache

from flwr_afuic.erasure.ledger import Head, check_head
from flwr_afuic.errors import AfuicError, SignatureError
from flwr_afuic.state.store import StateStore


class Announcements:
    """Signed heads and certificates of one state directory, ready for the wire.

    Parameters
    ----------
    store : StateStore
        The directory.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._announced = (-1, "")
        self._certificates: dict[str, tuple[bytes, str, str, int]] = {}

    def head(self) -> str:
        """Return the ledger's signed head with the key that signed it, as JSON for the wire."""
        head = self._store.head()
        if head is None:
            return ""
        if head.seq != self._announced[0]:
            keys = self._store.keys
            entry = {
                "head": head.to_json(),
                "key": keys.public_hex,
                "rotations": [rotation.to_json() for rotation in keys.rotations],
            }
            self._announced = (head.seq, json.dumps(entry))
        return self._announced[1]

    def contradiction(self, seen: str) -> str:
        """Say how a head a site has seen contradicts this ledger; empty where it does not."""
        try:
            head = Head.from_json(json.loads(seen))
        except (AfuicError, ValueError, RecursionError) as error:
            return f"the site's ledger head is malformed: {error}"
        if head.key not in self._store.keys.public_keys or not _genuine(head):
            return "the site's ledger head is not signed by this server"
        if head.federation != self._store.federation:
            return f"the site has seen the ledger of another federation, {head.federation[:40]}"
        own = self._store.head()
        ends = 0 if own is None else own.seq
        if head.seq > ends:
            return (
                f"the site has seen row {head.seq} of the ledger, which ends at {ends}: its tail "
                "was cut, or the state directory was restored from an older copy"
            )
        if self._store.row_hash(head.seq) != head.hash:
            return f"row {head.seq} of the ledger is not the one the site has seen"
        return ""

    def certificate(self, request_id: str) -> tuple[bytes, str, str] | None:
        """Return the newest certificate of a request: its bytes, its signature, ``id-issue``."""
        known = self._certificates.get(request_id)
        issues = self._store.issues(request_id)
        if known is None or known[3] != issues:
            found = self._store.certificate(request_id)
            if found is None:
                return None
            document, signature, path = found
            known = (document, signature, path.stem, issues)
            self._certificates[request_id] = known
        return known[:3]


@lru_cache(maxsize=1024)
def _genuine(head: Head) -> bool:
    """Whether a head is signed by its key; sites report the same one message after message."""
    try:
        check_head(head, head.key)
    except SignatureError:
        return False
    return True
