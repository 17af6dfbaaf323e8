"""Batches of small requests: several of one site, unlearned as one."""

from __future__ import annotations

from flwr_afuic.erasure.book import ErasureRecord, State
from flwr_afuic.strategies.erasure_desk import ErasureDesk


def gather_batch(desk: ErasureDesk, record: ErasureRecord) -> bool:
    """Whether a request may begin now, with the small ones of its site that join it.

    A small request alone would send a delta that is nearly one image's gradient. With batching
    on it waits for others of its site, and all are unlearned as one.
    """
    size, limit = desk.settings.batch_size, desk.settings.batch_seconds
    if size < 2 or record.batch or not is_small(desk, record):
        return True
    others = [
        other
        for other in desk.book.of_site(record.site)
        if other is not record and waits_for_company(desk, other)
    ]
    waited = desk.run.elapsed - record.history[0].time
    if len(others) + 1 < size and waited < limit:
        return False
    record.batch = tuple(other.request_id for other in others)
    record.waiting = False
    for other in others:
        other.waiting = False
        other.leader = record.request_id
        desk.book.note(other, "joined", leader=record.request_id)
    if others:
        desk.book.note(record, "batch", members=list(record.batch))
    return True


def is_small(desk: ErasureDesk, record: ErasureRecord) -> bool:
    """Whether a request names so few samples that it needs company, where batching is on."""
    return record.notice.scope == "samples" and record.notice.count < desk.settings.privacy.small


def waits_for_company(desk: ErasureDesk, record: ErasureRecord) -> bool:
    """Whether a small request has not begun, and carries and follows no other."""
    free = not record.leader and not record.batch and not record.attempts
    return free and record.state is State.RECEIVED and is_small(desk, record)
