"""State directories for the operator's view: written by real small runs, and one by hand."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from flwr_afuic import wire
from flwr_afuic.erasure.certificate import to_bytes
from flwr_afuic.erasure.record import ErasureRecord, State, Step
from flwr_afuic.state.rows import RequestRow
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies.admission import AdmissionSettings
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.unlearning.level import ForgetScore, LevelVerdict
from tests.erasure.certificates import document, values
from tests.erasure_helpers import FORGOTTEN, REMEMBERED, Site, federate

START = 1_781_870_400.0
"""2026-06-19 12:00:00 UTC."""
HOSPITALS = ["st-anna", "northfield", "lakeside", "general", "harbour", "hill"]

LONG = AdmissionSettings(lifetime=3650 * 86400.0)
"""The engine's own clock is the real one, of which the tests know nothing."""


class Crash(BaseException):
    """The end of a process, as far as one can have it inside another."""


@contextmanager
def clock(start: float = START, pace: float = 120.0) -> Iterator[Callable[[Any], None]]:
    """Let the wall clock follow a grid's virtual one, ``pace`` times as fast.

    Yields what ``federate(on_grid=...)`` takes.
    """
    real, grids = time.time, []

    def now() -> float:
        return start + pace * grids[-1].clock.now() if grids else real()

    with mock.patch("time.time", now):
        yield grids.append


def hospitals(number: int = 6) -> list[Site]:
    return [
        Site(n, name=name, ids=[f"patient-{name}-{row}" for row in range(4 + 3 * n)])
        for n, name in enumerate(HOSPITALS[:number])
    ]


def uid(number: int) -> str:
    """A request id, the same each time."""
    return str(uuid.UUID(int=random.Random(number).getrandbits(128), version=4))


def file(site: Site, number: int, samples: Sequence[str] = (), reason: str = "other") -> None:
    site.inbox.file(
        scope="samples" if samples else "client",
        sample_ids=list(samples),
        held=site.ids,
        reason=reason,
        request_id=uid(number),
    )


def third_entry(arrays: list[np.ndarray]) -> float:
    """A score that falls by a fifth of what an erasure takes from the third entry."""
    return float(arrays[0][2]) / 5


def busy(folder: Path, *, rounds: int = 20) -> None:
    """Two runs with everything in them: erasures of every kind, quarantine, stale updates."""
    sites = hospitals()
    st_anna, northfield, lakeside, general, harbour, hill = sites
    northfield.delta = (0.0, 0.0, -5.0)  # the gate holds it
    st_anna.delta = lakeside.delta = general.delta = (0.0, 0.0, -0.3)
    forgets = iter([REMEMBERED, *[FORGOTTEN] * 2, REMEMBERED])
    lakeside.scores = lambda: next(forgets, FORGOTTEN)
    general.scores = lambda: REMEMBERED

    def spoil(strategy: Any) -> None:
        harbour.step = float("nan")

    def mend(strategy: Any) -> None:
        harbour.step = 0.1

    def old(strategy: Any) -> None:
        with mock.patch("time.time", return_value=START - 4000 * 86400.0):
            file(hill, 5, ["patient-hill-1"], "retention-expired")

    at = {
        3: lambda s: file(
            st_anna, 1, ["patient-st-anna-1", "patient-st-anna-3"], "consent-withdrawn"
        ),
        9: spoil,
        15: mend,
        8: lambda s: file(northfield, 2, reason="site-left"),
        11: lambda s: file(lakeside, 3, ["patient-lakeside-2"], "data-error"),
        16: old,
        18: lambda s: file(general, 4),
        20: lambda s: s.cancel_erasure(s.request_erasure("hill")),
    }
    options: dict[str, Any] = {
        "names": HOSPITALS,
        "state_dir": folder,
        "factors": {5: 9.0, 4: 2.0},
        "max_staleness": 6,
        "gate": GateSettings(score=third_entry),
        "admission": LONG,
        "keep_checkpoints": 12,
    }
    with clock() as on_grid:
        federate(sites, rounds=12, at=at, on_grid=on_grid, **options)
    with clock(START + 7200) as on_grid:
        federate(sites, rounds=rounds, at=at, on_grid=on_grid, **options)
    with StateStore(folder) as store, mock.patch("time.time", return_value=START + 8900.0):
        store.command("erase", site="hill", reason="site-left", note="asked for on paper")


def under_way(folder: Path) -> None:
    """A run that ends, as by ``kill -9``, while a site's unlearning is being verified."""
    sites = hospitals(3)

    seen = []

    def fall(event: Any) -> None:
        seen.extend(["verified"] if event.kind == "verified" else [])
        if len(seen) == 3:
            raise Crash

    try:
        with clock() as on_grid:
            federate(
                sites,
                at={3: lambda s: file(sites[0], 1, ["patient-st-anna-1"])},
                names=HOSPITALS[:3],
                state_dir=folder,
                admission=LONG,
                verify_rounds=5,
                on_event=fall,
                on_grid=on_grid,
            )
    except Crash:
        pass


def large(folder: Path, *, versions: int = 500, requests: int = 30, sites: int = 12) -> None:
    """By hand: a federation that has run for weeks."""
    names = [f"hospital-{n:02d}" for n in range(sites)]
    rng = np.random.default_rng(0)
    with StateStore(folder) as store:
        digest = store.vault.put({"w": np.zeros(3, np.float32)})
        with store.transaction() as tx:
            tx.hold("version", str(versions), digest)
            tx.append("run-started", {"model": digest})
            for number in range(versions + 1):
                _large_version(tx, number, names, digest, rng)
            for number in range(requests):
                record = _large_request(number, names, versions, rng)
                notice = record.notice
                tx.put_request(
                    RequestRow(
                        record.request_id, record.site, notice.scope, str(record.state),
                        notice.count, notice.reason, notice.filed_at, record.to_dict(),
                    )
                )  # fmt: skip
                tx.append("request", {"request": record.request_id, **asdict(notice)})
        for row in store.requests():
            if row.state.startswith("completed"):
                _certify(store, row.id)


def _certify(store: StateStore, request: str) -> None:
    """Issue a certificate with somebody else's content: what is verified is its form."""
    head = store.head()
    content = document(
        request={**values()["request"], "request_id": request}, federation=store.federation,
        signed_by=store.keys.key_id, ledger=(head.seq, head.hash),
    )  # fmt: skip
    data = to_bytes(content)
    store.add_certificate(request, data, store.keys.sign(data), "<p>")


def _large_version(tx: Any, number: int, names: list[str], digest: str, rng: Any) -> None:
    wall = START + 3600 * number
    cause = "erasure" if number % 18 == 9 else "updates" if number else "initial"
    merged = tuple(rng.choice(names, size=1 if cause == "erasure" else 4, replace=False))
    tx.put_version(number, number // 3, 60.0 * number, wall, cause, merged, digest)
    tx.append("version", {"version": number, "cause": cause, "model": digest})
    entries = []
    for site in merged:
        staleness = int(rng.poisson(3))
        fate = "stale" if staleness > 7 else "quarantined" if rng.random() < 0.03 else "accepted"
        entries.append(
            {
                "wall": wall, "time": 60.0 * number, "round": number // 3, "version": number,
                "site": str(site), "base_version": max(0, number - staleness),
                "staleness": staleness, "examples": 0 if fate == "quarantined" else 120,
                "fate": fate, "reason": "the update's norm 91.2 is over 20 times the median 1.3 "
                "of recent updates" if fate == "quarantined" else "",
            }
        )  # fmt: skip
    tx.log_updates(entries)
    tx.log_events(
        {**{key: entry[key] for key in ("wall", "time", "round", "version", "site")},
         "kind": "quarantined", "text": f"{entry['reason']}; quarantined, asked again in 1 s"}
        for entry in entries if entry["fate"] == "quarantined"
    )  # fmt: skip


def _large_request(number: int, names: list[str], versions: int, rng: Any) -> ErasureRecord:
    base = 9 + number * (versions - 60) // 30
    samples = number % 3 != 0
    notice = wire.ErasureNotice(
        uid(number),
        "samples" if samples else "client",
        int(rng.integers(1, 400)),
        "",
        wire.REASON_CODES[number % 4],
        START + 3600 * base,
    )
    ends = [
        *[State.COMPLETED] * 22, State.FAILED, State.HELD, State.REFUSED, State.CANCELLED,
        State.COMPLETED_UNVERIFIED, State.VERIFYING, State.DISPATCHED, State.RECEIVED,
    ]  # fmt: skip
    path = {
        State.HELD: [State.DISPATCHED, State.UNLEARNED, State.HELD],
        State.REFUSED: [State.REFUSED],
        State.CANCELLED: [State.CANCELLED],
        State.DISPATCHED: [State.DISPATCHED],
        State.RECEIVED: [],
    }
    end = ends[number % len(ends)]
    whole = [State.DISPATCHED, State.UNLEARNED, State.MERGED, State.VERIFYING]
    states = path.get(end, whole if end is State.VERIFYING else [*whole, end])
    record = ErasureRecord(notice, names[number % len(names)])
    for index, state in enumerate([State.RECEIVED, *states]):
        at = START + 3600 * (base + 2 * index)
        text = "out of the gate's bound" if state is State.HELD else f"step {index}"
        record.history.append(Step(state, 60.0, base // 3, base + 2 * index, text, at))
        record.state, record.reason = state, text
    if State.MERGED in states:
        record.attempts, record.base_version, record.merge_version = 1, base, base + 6
        record.evidence = [
            wire.Evidence(
                REMEMBERED, FORGOTTEN, ForgetScore(1.3, 0.55, 40), None, 120, "level", 2.5
            )
        ]
        for k in range(20):
            loss, accuracy = 1.2 + rng.normal() * 0.05, 0.5 + rng.normal() * 0.02
            record.scores.append((base + 7 + 3 * k, ForgetScore(loss, accuracy, 40)))
        record.verdict = LevelVerdict(True, False, "forget level met")
        record.verified_rounds = 5
    return record
