"""The ledger: rows chained by hash, a signed head, and what is wrong with either.

Whoever can write the file but has no key can change rows and recompute their hashes, but
not the signature of the head. Whoever has the key can do both, and is caught by the heads
the sites have kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flwr_afuic.erasure.canonical import canonical
from flwr_afuic.erasure.signatures import key_id, verify
from flwr_afuic.errors import LedgerError, SignatureError, WireError

__all__ = [
    "Head",
    "Row",
    "canonical",
    "chain",
    "check_head",
    "genesis",
    "make_row",
    "row_hash",
    "sign_head",
    "verify_ledger",
]

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_LARGEST = 2**63


class Signer(Protocol):
    """What signs heads; see :class:`~flwr_afuic.erasure.keys.KeyRing`."""

    @property
    def public_hex(self) -> str:
        """The raw public key, 64 hexadecimal digits."""

    def sign(self, data: bytes) -> str:
        """Return the signature over ``data``."""


@dataclass(frozen=True)
class Row:
    """One entry. ``seq`` counts from 1, ``time`` is seconds since the epoch."""

    seq: int
    time: float
    kind: str
    body: dict[str, Any]
    previous: str
    hash: str


def genesis(federation: str) -> str:
    """Return what the first row of a federation's ledger follows: 64 hexadecimal digits."""
    return hashlib.sha256(b"flwr-afuic ledger " + federation.encode()).hexdigest()


def row_hash(seq: int, time: float, kind: str, body: dict[str, Any], previous: str) -> str:
    """Return the SHA-256 of a row's canonical JSON; LedgerError if it is no JSON."""
    return hashlib.sha256(
        canonical({"seq": seq, "time": time, "kind": kind, "body": body, "previous": previous})
    ).hexdigest()


def make_row(seq: int, time: float, kind: str, body: dict[str, Any], previous: str) -> Row:
    """Return a row with its hash; its body is what reading its JSON gives."""
    read: dict[str, Any] = json.loads(canonical(body))
    return Row(seq, time, kind, read, previous, row_hash(seq, time, kind, read, previous))


@dataclass(frozen=True)
class Head:
    """The last row of a ledger at some time, signed by the server.

    ``key`` is the raw public key (64 hexadecimal digits), ``time`` seconds since the epoch.
    """

    federation: str
    seq: int
    hash: str
    time: float
    key: str
    signature: str

    def signed(self) -> bytes:
        """Return the bytes that are signed: canonical JSON of all fields but the signature."""
        fields = self.to_json()
        del fields["signature"]
        return canonical(fields)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {
            "federation": self.federation,
            "seq": self.seq,
            "hash": self.hash,
            "time": self.time,
            "key": self.key,
            "signature": self.signature,
        }

    @classmethod
    def from_json(cls, value: object) -> Head:
        """Read :meth:`to_json`'s dictionary; WireError if it is malformed (not: if forged)."""
        fields = ("federation", "seq", "hash", "time", "key", "signature")
        if not isinstance(value, dict) or set(value) != set(fields):
            raise WireError(f"a ledger head has the fields {', '.join(fields)}")
        federation, seq, digest, time, key, signature = (value[field] for field in fields)
        if not isinstance(federation, str) or not 0 < len(federation) <= 100:
            raise WireError("a ledger head's federation is no name of 1 to 100 characters")
        if not isinstance(seq, int) or isinstance(seq, bool) or not 0 < seq < _LARGEST:
            raise WireError("a ledger head's seq is no positive integer")
        for name, text, form in (
            ("hash", digest, _HASH),
            ("key", key, _HASH),
            ("signature", signature, _SIGNATURE),
        ):
            if not isinstance(text, str) or not form.fullmatch(text):
                raise WireError(f"a ledger head's {name} is not lower-case hexadecimal")
        if not isinstance(time, float) or not math.isfinite(time):
            raise WireError("a ledger head's time is no number of seconds")
        return cls(federation, seq, digest, time, key, signature)


def sign_head(federation: str, row: Row, signer: Signer) -> Head:
    """Return the signed head of a ledger that ends with ``row``."""
    unsigned = Head(federation, row.seq, row.hash, row.time, signer.public_hex, "")
    signature = signer.sign(unsigned.signed())
    return Head(federation, row.seq, row.hash, row.time, unsigned.key, signature)


def check_head(head: Head, public: str) -> None:
    """Check who signed a head.

    Parameters
    ----------
    head : Head
        The head.
    public : str
        The key expected, 64 hexadecimal digits.

    Raises
    ------
    SignatureError
        If another key signed it, or its signature does not match.
    """
    if head.key != public:
        raise SignatureError(
            f"head {head.seq} is signed by key {_short(head.key)}, not {_short(public)}"
        )
    if not verify(head.key, head.signed(), head.signature):
        raise SignatureError(f"head {head.seq} was changed: its signature does not match")


def chain(rows: Iterable[Row], federation: str) -> list[str]:
    """Return what is wrong with a chain of rows, the first bad row first; [] if nothing.

    Parameters
    ----------
    rows : iterable of Row
        From the first on, in the order they are stored.
    federation : str
        Id of the federation, on which the first row's ``previous`` rests.
    """
    problems: list[str] = []
    previous, expected = genesis(federation), 1
    for row in rows:
        problems += _faults(row, expected, previous)
        previous = row.hash
        expected = row.seq + 1 if isinstance(row.seq, int) else expected + 1
    return problems


def _faults(row: Row, expected: int, previous: str) -> Iterator[str]:
    if row.seq != expected:
        if isinstance(row.seq, int) and row.seq > expected:
            last = f" to {row.seq - 1}" if row.seq - 1 > expected else ""
            yield f"row {expected}{last} is missing: row {row.seq} follows row {expected - 1}"
        else:
            yield f"row {row.seq} stands where row {expected} belongs"
    try:
        right = row_hash(row.seq, row.time, row.kind, row.body, row.previous)
    except LedgerError as error:
        yield f"row {row.seq} was changed: {error}"
        return
    if row.hash != right:
        yield f"row {row.seq} ({row.kind}) was changed: its hash does not match its content"
    if row.previous != previous:
        before = "the federation's id" if expected == 1 else f"row {expected - 1}"
        yield f"row {row.seq} ({row.kind}) does not follow from {before}: the chain is broken"


def verify_ledger(
    rows: Sequence[Row],
    federation: str,
    head: Head | None,
    heads_seen: Iterable[tuple[str, Head]],
    keys: Sequence[str],
) -> list[str]:
    """Return everything that is wrong with a ledger; [] if it is whole.

    Parameters
    ----------
    rows : sequence of Row
        All rows, in order.
    federation : str
        Id of the federation.
    head : Head or None
        The newest signed head that lies with the ledger.
    heads_seen : iterable of (str, Head)
        Site and a head it has kept; they show what a holder of the key has changed.
    keys : sequence of str
        The server's public keys, oldest first. The head must be signed by the last.
    """
    problems = chain(rows, federation)
    problems += _head_problems(rows, federation, head, keys)
    for site, seen in heads_seen:
        problems += _seen_problems(rows, federation, site, seen, keys)
    return problems


def _head_problems(
    rows: Sequence[Row], federation: str, head: Head | None, keys: Sequence[str]
) -> Iterator[str]:
    last = rows[-1].seq if rows else 0
    if head is None:
        if rows:
            yield f"the ledger has {len(rows)} rows and no signed head: the head was deleted"
        return
    if head.federation != federation:
        yield f"the head is of federation {head.federation!r}, the ledger of {federation!r}"
    try:
        check_head(head, keys[-1])
    except SignatureError as error:
        yield f"{error}"
    if head.seq > last:
        yield f"the head was signed at row {head.seq}, the ledger ends at {last}: its tail was cut"
    elif head.seq < last:
        yield f"rows after {head.seq} are not covered by the signed head: they were added later"
    elif head.hash != rows[-1].hash:
        yield f"the head was signed over another row {head.seq} than the ledger's"


def _seen_problems(
    rows: Sequence[Row], federation: str, site: str, seen: Head, keys: Sequence[str]
) -> Iterator[str]:
    if seen.key not in keys or not verify(seen.key, seen.signed(), seen.signature):
        yield f"site {site} shows head {seen.seq}, which no key of this server has signed"
        return
    if seen.federation != federation:
        yield f"site {site} shows a head of federation {seen.federation!r}"
        return
    last = rows[-1].seq if rows else 0
    if seen.seq > last:
        yield (f"site {site} has seen head {seen.seq}, the ledger ends at {last}: its tail was cut")
        return
    row = next((row for row in rows if row.seq == seen.seq), None)
    if row is None or row.hash != seen.hash:
        yield (
            f"site {site} has seen head {seen.seq} with another hash than row {seen.seq}: "
            f"the ledger was rewritten at or before it{_restored(rows)}"
        )


def _restored(rows: Sequence[Row]) -> str:
    """Say where a backup was restored: rows written after the backup are lost then."""
    at = [str(row.seq) for row in rows if row.kind == "restored"]
    return f" (a backup was restored at row {', '.join(at)})" if at else ""


def _short(key: str) -> str:
    return key_id(key) if _HASH.fullmatch(key) else repr(key)
