"""The end of an erasure: old checkpoints purged, a certificate signed, the site told.

It needs a state directory: without one there is no ledger to refer to and no key to sign with.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
import time
from logging import ERROR
from typing import TYPE_CHECKING, Any

from flwr_afuic import wire
from flwr_afuic.erasure.certificate import build_certificate, render_certificate, to_bytes
from flwr_afuic.erasure.record import ErasureRecord, State
from flwr_afuic.errors import AfuicError
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.announcements import Announcements
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.erasure_desk import ErasureDesk

if TYPE_CHECKING:
    from flwr_afuic.strategies.durability import Durability

_DONE = (State.COMPLETED, State.COMPLETED_UNVERIFIED)
_LISTED = 100
_PACKAGES = ("flwr-afuic", "flwr", "torch", "monai", "numpy", "cryptography")


class Certification:
    """Certificates and signed ledger heads of one run.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    calibrator : Calibrator
        Holds the locks that stay.
    """

    def __init__(self, desk: ErasureDesk, calibrator: Calibrator) -> None:
        self._desk = desk
        self._calibrator = calibrator
        self._held: dict[str, set[str]] = {}
        self._alarmed: set[str] = set()
        self._failed: set[tuple[str, int]] = set()
        self._told: Announcements | None = None

    @property
    def _durability(self) -> Durability | None:
        return self._desk.run.durability

    def _announcements(self, durability: Durability) -> Announcements:
        if self._told is None:
            self._told = Announcements(durability.store)
        return self._told

    # ---- made -----------------------------------------------------------------------

    def finish(self) -> bool:
        """Purge for, and certify, every request that was completed; True if there was one."""
        durability = self._durability
        if durability is None:
            return False
        due = [r for r in self._desk.book if r.state in _DONE and r.certified < r.completions]
        due = [r for r in due if (r.request_id, r.completions) not in self._failed]
        for record in due:
            self._purge(record, durability)
            try:
                self._certify(record, durability)
            except AfuicError as error:
                # Training goes on; the operator sees it, and the next run tries again.
                self._failed.add((record.request_id, record.completions))
                self._desk.run.note("certificate-failed", record.site, str(error), level=ERROR)
                continue
            record.certified = record.completions
            self._desk.book.note(record, "certified", completion=record.certified)
        return bool(due)

    def _purge(self, record: ErasureRecord, durability: Durability) -> None:
        """Delete what came before the merge; a crash in between is made good by the next run."""
        further = [
            (purpose, key)
            for purpose in ("snapshot", "delta")
            for key in durability.keys_of(purpose)
            if key.startswith(record.request_id)
        ]
        self._purge_history(record)
        gone = durability.purge_before(record.merge_version or 0, record.request_id, further)
        if gone:
            files = [{"file": p.file, "sha256": p.digest, "bytes": p.bytes} for p in gone]
            self._desk.book.note(record, "purge", files=files)
            text = f"{len(gone)} file(s) from before the merge deleted"
            self._desk.run.note("purge", record.site, text)

    def _purge_history(self, record: ErasureRecord) -> None:
        """Delete the site's stored updates, unless they are what it is unlearned by."""
        settings = self._desk.settings
        if settings.recorder is None or settings.keeps_history(record):
            return
        gone = settings.recorder.purge(record.site)
        if gone:
            note_history(self._desk, record, len(gone), sum(deletion.bytes for deletion in gone))

    def _certify(self, record: ErasureRecord, durability: Durability) -> None:
        store, run, settings = durability.store, self._desk.run, self._desk.settings
        known = store.certificate(record.request_id)
        issue = 1 if known is None else int(json.loads(known[0])["issue"]) + 1
        head = store.head()
        merged = [step.at for step in record.history if step.state is State.MERGED]
        versions = {row.number: row.digest for row in store.versions()}
        base, merge = record.base_version or 0, record.merge_version or 0
        method, options = settings.describe()
        if settings.unlearns_from_store(record):
            method = f"{method}, from the server's history alone"
        if record.details:
            options = {**options, "details": record.details}
        document = build_certificate(
            federation=store.federation,
            request={
                **dataclasses.asdict(record.notice),
                "site": record.site,
                "filed_by": record.filed_by,
                "batch": [other for other in (record.leader, *record.batch) if other],
            },
            history=[dataclasses.asdict(step) for step in record.history],
            received_at=record.history[0].at,
            merged_at=merged[-1],
            completed_at=record.history[-1].at,
            base=(base, versions[base]),
            merge=(merge, versions[merge]),
            attempts=record.attempts,
            method=method,
            settings=options,
            evidence=dataclasses.asdict(record.evidence[-1]) if record.evidence else None,
            holdout=None if record.level is None else dataclasses.asdict(record.level),
            scores=[
                {"version": version, **dataclasses.asdict(score)}
                for version, score in record.scores
            ],
            required_rounds=settings.verify_rounds,
            verified_rounds=record.verified_rounds,
            verdict=record.verdict.text if record.verdict else record.reason,
            ledger=(head.seq, head.hash) if head is not None else (0, ""),
            software=_software(),
            signed_by=store.keys.key_id,
            issue=issue,
            lock_digest=durability.digest("lock", f"{record.request_id}/{record.attempts}") or None,
            calibration=settings.describe_calibration(),
            privacy=settings.describe_privacy(),
            purged=self._purged(record, durability),
            kept=self._kept(record, durability),
            proxies=settings.proxies_provenance if settings.proxies is not None else None,
        )
        data = to_bytes(document)
        path = store.add_certificate(
            record.request_id, data, store.keys.sign(data), render_certificate(document)
        )
        run.note("certificate", record.site, f"{path.name}, issue {issue}")

    def _purged(self, record: ErasureRecord, durability: Durability) -> list[dict[str, Any]]:
        since = record.history[0].at
        rows = [row for row in durability.store.purges() if row.done and row.wall >= since]
        mine = [row for row in rows if row.request_id == record.request_id]
        others = [row for row in rows if row.request_id != record.request_id]
        listed = [
            {
                "file": row.file,
                "bytes": row.bytes,
                "sha256": row.digest,
                "what": f"{', '.join(row.purposes)} ({row.reason})",
                "at": row.wall,
            }
            for row in (*mine, *others[-_LISTED:])
        ]
        history = record.details.get("history_purged")
        if history:
            listed.append(
                {
                    "file": f"{history['records']} records of the update history",
                    "bytes": history["bytes"],
                    "what": "stored updates of the site",
                    "at": history["at"],
                }
            )
        earlier = others[:-_LISTED]
        if earlier:  # a long run must not make a certificate that no message can carry
            listed.append(
                {
                    "file": f"{len(earlier)} files under weights/",
                    "bytes": sum(row.bytes for row in earlier),
                    "what": "earlier checkpoints, deleted as newer ones came",
                    "at": earlier[-1].wall,
                }
            )
        return listed

    def _kept(self, record: ErasureRecord, durability: Durability) -> list[tuple[str, str]]:
        """List what the erased data may still be in, in this very directory."""
        kept = []
        for key in durability.keys_of("snapshot"):
            other = self._desk.book.find(key.split("/")[0])
            if other is None or (other.base_version or 0) >= (record.merge_version or 0):
                continue
            why = "deleted as soon as that request is merged or closed"
            what = f"the model of version {other.base_version}"
            kept.append((f"{what}, which request {other.request_id} unlearns from", why))
        if durability.keys_of("method"):
            kept.append(("models the method works with", "it needs them as long as it runs"))
        if durability.keys_of("lock"):
            kept.append(
                ("the direction of the lock", "it is needed as long as the lock is to hold")
            )
        if durability.keys_of("subspace"):
            kept.append(
                (
                    "forget-exclusive directions, which encode what was forgotten",
                    "the forget lock needs them; the operator can drop them, which ends it",
                )
            )
        return kept

    # ---- told -----------------------------------------------------------------------

    def hear(self, member: Member, info: dict[str, Any]) -> None:
        """Take in which certificates a site has, and the ledger's newest head it has seen."""
        if wire.HAVE_CERTIFICATES in info:
            names = str(info[wire.HAVE_CERTIFICATES])[:10_000].split(",")
            self._held[member.site] = {name for name in names if name}
        if self._durability is None or wire.SEEN_HEAD not in info:
            return
        problem = self._announcements(self._durability).contradiction(str(info[wire.SEEN_HEAD]))
        if problem and member.site not in self._alarmed:
            self._alarmed.add(member.site)
            self._desk.run.note("ledger-alarm", member.site, problem, level=ERROR)
            self._desk.book.say("ledger-alarm", {"site": member.site, "problem": problem})

    def owes(self, record: ErasureRecord) -> bool:
        """Whether the site has not taken the newest certificate of a request yet."""
        return self._missing(record) is not None

    def _missing(self, record: ErasureRecord) -> tuple[bytes, str, str] | None:
        if self._durability is None or not record.certified:
            return None
        found = self._announcements(self._durability).certificate(record.request_id)
        if found is None:
            return None
        document, signature, name = found
        return None if name in self._held.get(record.site, set()) else (document, signature, name)

    def news_for(self, member: Member) -> dict[str, wire.Scalar]:
        """Give a site of ours the signed head of the ledger, and a certificate it lacks."""
        durability = self._durability
        if durability is None or member.protocol is None:
            return {}
        news: dict[str, wire.Scalar] = {wire.LEDGER_HEAD: self._announcements(durability).head()}
        for record in self._desk.book.of_site(member.site):
            missing = self._missing(record)
            if missing is not None:
                document, signature, name = missing
                news[wire.CERTIFICATE] = json.dumps(
                    {
                        "request": record.request_id,
                        "issue": int(name.rsplit("-", 1)[1]),
                        "document": document.decode(),
                        "signature": signature,
                        "key": durability.store.keys.public_hex,
                    }
                )
                break
        return news


def note_history(desk: ErasureDesk, record: ErasureRecord, records: int, size: int) -> None:
    """Write down, for ledger and certificate, that a site's stored updates were deleted."""
    entry = {"records": records, "bytes": size, "at": time.time()}
    record.details["history_purged"] = entry
    desk.book.note(record, "purge-history", **entry)
    text = f"{records} stored update(s) of the site deleted, {size} bytes"
    desk.run.note("purge-history", record.site, text)


@functools.cache
def _software() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def plain_settings(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as plain values; what is not plain is named by its type."""
    return {
        field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
