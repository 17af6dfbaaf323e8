"""A certificate as a run makes one, for the tests and for looking at it."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flwr_afuic.erasure.certificate import build_certificate, to_bytes
from flwr_afuic.erasure.keys import key_id

START = 1_780_000_000.0
BASE, MERGE, OLD = "b" * 64, "c" * 64, "d" * 64


class Signer:
    """A key without a file."""

    def __init__(self, seed: int = 1) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.public_hex = self._private.public_key().public_bytes_raw().hex()
        self.key_id = key_id(self.public_hex)

    def sign(self, data: bytes) -> str:
        return self._private.sign(data).hex()


def values(**changes: Any) -> dict[str, Any]:
    """Arguments of a completed erasure of some samples."""
    steps = [
        ("received", 0, 9, 36, "filed"),
        ("dispatched", 41, 10, 38, "attempt 1, from version 36"),
        ("unlearned", 95, 11, 43, "reference-bounded: level reached after 48 steps"),
        ("merged", 97, 11, 44, "delta merged into version 44, staleness 7"),
        ("verifying", 97, 11, 44, "5 rounds to go"),
        ("completed", 300, 16, 64, "forget level met: loss 1.312 (needs >= 1.021)"),
    ]
    given: dict[str, Any] = {
        "federation": "7f7c0f3e-54a2-4f5c-9a0e-0a4a5d4f7a11",
        "request": {
            "request_id": "0b6e7a3c-0000-4000-8000-000000000001",
            "site": "hospital-berg",
            "scope": "samples",
            "count": 120,
            "commitment": "5f" * 32,
            "reason": "consent-withdrawn",
            "filed_at": START - 12.5,
        },
        "history": [
            {"state": state, "time": 120.0 + t, "at": START + t, "round": round_,
             "version": version, "text": text}
            for state, t, round_, version, text in steps
        ],
        "received_at": START,
        "merged_at": START + 97,
        "completed_at": START + 300,
        "issued_at": START + 301,
        "base": (36, BASE),
        "merge": (44, MERGE),
        "attempts": 1,
        "method": "afuic",
        "settings": {"merge": "delta", "unlearning": {"objective": "reference", "steps": 200,
                     "lr": 0.01}, "verify_rounds": 5, "prediction_invariance": True},
        "evidence": {
            "before": {"loss": 0.031, "accuracy": 0.992, "count": 120},
            "after": {"loss": 1.298, "accuracy": 0.45, "count": 120},
            "reference": {"loss": 1.276, "accuracy": 0.442, "count": 120},
            "holdout": {"loss": 0.402, "accuracy": 0.861, "count": 88},
            "steps": 48,
            "stop_reason": "level reached",
            "delta_norm": 1.8342,
            "privacy": {"clip": 1.0, "noise": 0.01},
        },
        "scores": [
            {"version": 44 + 4 * i, "loss": 1.30 + 0.01 * i, "accuracy": 0.44, "count": 120}
            for i in range(5)
        ],
        "required_rounds": 5,
        "verified_rounds": 5,
        "verdict": "forget level met: loss 1.340 (needs >= 1.021), accuracy 0.440 (needs <= 0.492)",
        "ledger": (214, "a" * 64),
        "software": {"flwr-afuic": "0.1.0", "flwr": "1.42.0", "torch": "2.13.0",
                     "python": "3.11.9"},
        "signed_by": Signer().key_id,
        "lock_digest": "e" * 64,
        "calibration": {"phi": "monai", "invariance_steps": 3, "fidelity_steps": 20},
        "privacy": {"clip": 1.0, "noise": 0.01, "small": 8},
        "purged": [
            {"file": f"weights/{digest}.safetensors", "bytes": 1_734_112, "sha256": digest,
             "what": what, "at": START + 299}
            for digest, what in ((BASE, "model version 36"), (OLD, "last update of hospital-berg"))
        ],
        "kept": [("model version 41", "another open request still unlearns from it")],
        "proxies": "60 pages of phantom images, CC0",
    }  # fmt: skip
    return {**given, **changes}


def document(**changes: Any) -> dict[str, Any]:
    return build_certificate(**values(**changes))


def signed(signer: Signer | None = None, **changes: Any) -> tuple[bytes, str]:
    """Return a certificate's file and its signature."""
    signer = signer or Signer()
    data = to_bytes(document(signed_by=signer.key_id, **changes))
    return data, signer.sign(data)
