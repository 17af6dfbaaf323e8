"""What the server hands to a site beside its tasks: the ledger's head, and certificates."""

from __future__ import annotations

import json
from dataclasses import dataclass

from flwr_afuic import wire
from flwr_afuic.erasure.keys import Rotation
from flwr_afuic.erasure.ledger import Head
from flwr_afuic.errors import WireError

MOST_DOCUMENT = 1_000_000
"""Most characters of a certificate."""
_MOST_ROTATIONS = 1000
_CERTIFICATE = ("request", "issue", "document", "signature", "key")


@dataclass(frozen=True)
class LedgerNotice:
    """The newest signed head, and how the server came by the key that signed it.

    Attributes
    ----------
    head : Head
    rotations : tuple of Rotation
        Every change of the server's key, oldest first.
    """

    head: Head
    rotations: tuple[Rotation, ...] = ()

    def to_json(self) -> str:
        """Serialise for a config entry."""
        return json.dumps(
            {
                "head": self.head.to_json(),
                "key": self.head.key,
                "rotations": [rotation.to_json() for rotation in self.rotations],
            }
        )

    @classmethod
    def from_json(cls, text: object) -> LedgerNotice:
        """Read a notice; WireError names what is malformed (not: what is forged)."""
        row = wire.decode_json(text, wire.LEDGER_HEAD)
        if not isinstance(row, dict) or set(row) != {"head", "key", "rotations"}:
            raise WireError(f"{wire.LEDGER_HEAD} must hold exactly head, key and rotations")
        rotations = row["rotations"]
        if not isinstance(rotations, list) or len(rotations) > _MOST_ROTATIONS:
            raise WireError(f"{wire.LEDGER_HEAD} holds no list of at most {_MOST_ROTATIONS} keys")
        # The head names its key itself; in the middle of a rotation "key" may be the next one.
        head = Head.from_json(row["head"])
        return cls(head, tuple(Rotation.from_json(rotation) for rotation in rotations))


@dataclass(frozen=True)
class CertificateNotice:
    """A certificate on its way to the site it is about.

    Attributes
    ----------
    request_id : str
        The request it certifies.
    issue : int
        1 for the first certificate of a request; a reopened request gets a further one.
    document : str
        The certificate's text; the signature is over its UTF-8 bytes, every one of them.
    signature, key : str
        Ed25519 signature and raw public key, lowercase hex.
    """

    request_id: str
    issue: int
    document: str
    signature: str
    key: str

    @property
    def name(self) -> str:
        """How a site says that it has it."""
        return f"{self.request_id}-{self.issue}"

    def to_json(self) -> str:
        """Serialise for a config entry."""
        values = (self.request_id, self.issue, self.document, self.signature, self.key)
        return json.dumps(dict(zip(_CERTIFICATE, values, strict=True)))

    @classmethod
    def from_json(cls, text: object) -> CertificateNotice:
        """Read a certificate; WireError names what is malformed (not: what is forged)."""
        row = wire.decode_json(text, wire.CERTIFICATE)
        if not isinstance(row, dict) or set(row) != set(_CERTIFICATE):
            raise WireError(f"{wire.CERTIFICATE} must hold exactly {', '.join(_CERTIFICATE)}")
        request, issue, document, signature, key = (row[field] for field in _CERTIFICATE)
        if not wire.is_uuid(request) or type(issue) is not int or not 1 <= issue < 2**31:
            raise WireError(f"{wire.CERTIFICATE} holds no request id and issue of at least 1")
        if not isinstance(signature, str) or not isinstance(key, str):
            raise WireError(f"{wire.CERTIFICATE} holds no signature and key")
        if not isinstance(document, str) or len(document) > MOST_DOCUMENT:
            raise WireError(f"{wire.CERTIFICATE} holds no text of at most {MOST_DOCUMENT} letters")
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise WireError(f"{wire.CERTIFICATE} holds a text that is no UTF-8") from error
        return cls(request, issue, document, signature, key)
