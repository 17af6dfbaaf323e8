"""A filled state directory."""

from __future__ import annotations

import numpy as np

from flwr_afuic.state.rows import RequestRow
from flwr_afuic.state.store import StateStore

REQUEST = RequestRow(
    "0b6e7a3c-0000-4000-8000-000000000001",
    "a",
    "client",
    "received",
    10,
    "site-left",
    5.0,
    {"attempts": 0, "loss": None},
)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(4, 3)).astype(np.float32), "b": rng.normal(size=3)}


def fill(store: StateStore) -> str:
    """Write one version, one request, and what belongs to them; return the digest."""
    digest = store.vault.put(arrays())
    with store.transaction() as change:
        change.append("run-started", {"seed": 0})
    with store.transaction() as change:
        change.put_version(1, 1, 0.5, 100.0, "merge", ["a", "b"], digest)
        change.hold("model", "1", digest)
        change.set("engine", {"round": 1, "rng": [1, 2]})
        change.put_request(REQUEST)
        change.append("version", {"version": 1, "model": digest})
        change.log_events(
            [
                {"time": 0.5, "round": 1, "version": 1, "kind": "merge", "text": "merged"},
                {"time": 0.6, "round": 1, "version": 1, "kind": "late", "site": "b"},
            ]
        )
        change.log_updates(
            [
                {
                    "time": 0.4,
                    "wall": 100.0,
                    "round": 1,
                    "version": 1,
                    "site": "a",
                    "base_version": 0,
                    "staleness": 2,
                    "examples": 20,
                    "fate": "accepted",
                }
            ]
        )
        change.put_metric(1, "a", "loss", 0.7)
        change.put_metric(1, "a", "loss", 0.5)
    return digest
