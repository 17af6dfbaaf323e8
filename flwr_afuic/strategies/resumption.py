"""Erasures across runs: what a checkpoint holds of them, and how a new run takes them up.

What was merged stays merged; a request whose task was in flight is asked again; a delta that had
arrived is merged by the new run, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr_afuic.erasure.record import ErasureRecord, State
from flwr_afuic.errors import StateError
from flwr_afuic.federation.layout import Vector
from flwr_afuic.strategies.durability import Durability, Key, Named, Part, SameAs
from flwr_afuic.strategies.erasure_desk import Attempt, blocks

if TYPE_CHECKING:
    from flwr_afuic.strategies.erasures import ErasureHooks


def checkpoint(hooks: ErasureHooks) -> Part:
    """Return what belongs on disk of the erasures of a run."""
    calibration, stored = hooks.calibrator.checkpoint()
    attempts: dict[str, dict[str, Any]] = {}
    blobs: dict[Key, Named | SameAs] = dict(stored)
    for request_id, attempt in hooks.desk.attempts.items():
        record = hooks.book.get(request_id)
        key = f"{request_id}/{record.attempts}"
        attempts[request_id] = {
            "version": attempt.version,
            "failures": attempt.failures,
            "next_verification": attempt.next_verification,
        }
        if attempt.snapshot:
            blobs["snapshot", key] = SameAs(attempt.version)
        if attempt.delta is not None:
            parts = {"basis": attempt.basis, "taken_back": attempt.taken_back}
            held = {name: part for name, part in parts.items() if part is not None}
            blobs["delta", key] = {"delta": attempt.delta, **held}
    records, entries = hooks.book.take_changes()
    state = {
        "attempts": attempts,
        "calibration": calibration,
        "refused": {site: sorted(ids) for site, ids in hooks.desk.refused.items()},
        "kept": sorted(hooks.desk.kept),
    }
    return Part(state, blobs, records, entries, hooks.commands.take_outcomes())


def restore(hooks: ErasureHooks, state: dict[str, Any], durability: Durability) -> None:
    """Take up the erasures of an earlier run."""
    desk, run = hooks.desk, hooks.run
    records = [ErasureRecord.from_dict(row.body) for row in durability.store.requests()]
    hooks.book.load(sorted(records, key=lambda record: record.history[0].time))
    if state:  # a run that fell before its first commit left requests of the operator at most
        signature = durability.keys_of("signature")
        hooks.calibrator.restore(
            state["calibration"], durability.blob, signature[-1] if signature else ""
        )
        desk.refused = {site: set(ids) for site, ids in state["refused"].items()}
        desk.kept = set(state["kept"])
    attempts = state.get("attempts", {})
    for record in hooks.book:
        if not record.leader:
            _take_up(hooks, record, attempts.get(record.request_id), durability)
    for record in hooks.book:
        if blocks(record):
            desk.refuse(record.site)
        run.note("resumed", record.site, f"erasure {record.request_id} is {record.state}")


def _take_up(
    hooks: ErasureHooks,
    record: ErasureRecord,
    saved: dict[str, Any] | None,
    durability: Durability,
) -> None:
    desk, run = hooks.desk, hooks.run
    if saved is None and record.state is State.RECEIVED:
        return  # not begun: the loop opens it as a new one
    hooks.opened.add(record.request_id)
    if saved is None:
        return
    if record.state is State.DISPATCHED:
        desk.move(record, State.RECEIVED, "the server was started anew; the site is asked again")
    if record.state is State.MERGED:
        desk.move(record, State.VERIFYING, "the site scores the model on the erased data")
    if record.state is State.RECEIVED:
        # A restart is no attempt: a server that keeps falling must not use them up.
        record.attempts -= 1
        return
    attempt = Attempt(
        version=int(saved["version"]),
        snapshot=[],
        reference_job=None,
        since=run.clock.now(),
        failures=int(saved["failures"]),
        next_verification=min(int(saved["next_verification"]), run.round + 1),
    )
    desk.attempts[record.request_id] = attempt
    if record.state in (State.UNLEARNED, State.HELD):
        key = f"{record.request_id}/{record.attempts}"
        attempt.snapshot = list(durability.blob("snapshot", key).values())
        stored = durability.blob("delta", key)
        attempt.delta, attempt.basis = _vector(stored["delta"]), stored.get("basis")
        attempt.taken_back = stored.get("taken_back")
        hooks.merging.resume(record)


def _vector(array: Vector) -> Vector:
    if array.ndim != 1:
        raise StateError(f"a stored erasure delta has shape {array.shape}, not (p,)")
    return array
