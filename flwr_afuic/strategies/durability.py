"""A run on disk: what is committed after every version, and where a new run goes on.

The loop's thread commits model, engine and requests together: the weights are written and
synced first, under their content's address, then one transaction moves version, state and
ledger. A crash leaves either the old state or the new one. What was in flight at a crash is
asked for again; nothing that was merged is merged again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from logging import INFO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import MetricRecord
from flwr.supercore import log
from numpy.typing import NDArray

from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.errors import LayoutError, LedgerError, StateError
from flwr_afuic.federation.journal import Event, UpdateEntry, VersionEntry
from flwr_afuic.federation.layout import Arrays, Layout
from flwr_afuic.state.rows import MetricRow, RequestRow
from flwr_afuic.state.store import StateStore
from flwr_afuic.state.transaction import Transaction
from flwr_afuic.state.vault import Purged

if TYPE_CHECKING:
    from flwr_afuic.strategies.run import FederationRun

Named = Mapping[str, NDArray[Any]]
Key = tuple[str, str]

_ENGINE = "engine"
_LAYOUT = "layout"
_METHOD = "method"
_RUNS = "runs"


@dataclass(frozen=True)
class SameAs:
    """A blob that is the model of a version, which is on disk already."""

    version: int


@dataclass
class Part:
    """What the hooks of a method add to a checkpoint.

    Attributes
    ----------
    state : dict
        Plain values, ready for JSON.
    blobs : dict of (purpose, key) to named arrays or SameAs
        Everything the method needs on disk; what is no longer named here is deleted. A blob
        of a given key never changes.
    records : list of ErasureRecord
        Requests that changed.
    entries : list of (str, dict)
        What the ledger is to say.
    commands : list of (str, str)
        Operator's commands that are done, with their outcome.
    """

    state: dict[str, Any] = field(default_factory=dict)
    blobs: dict[Key, Named | SameAs] = field(default_factory=dict)
    records: list[ErasureRecord] = field(default_factory=list)
    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)


class Durability:
    """The state directory of one run.

    Parameters
    ----------
    directory : path
        Made if needed. One server at a time: another one gets a StateLockedError.
    keep_checkpoints : int
        Models of the newest versions kept, at least 1.
    """

    def __init__(self, directory: str | Path, *, keep_checkpoints: int) -> None:
        self.store = StateStore(directory, exclusive=True)
        self._keep = keep_checkpoints
        self._writing = threading.RLock()
        self._digests: dict[Key, str] = dict(self.store.holdings())
        self._versions = 0
        self._events = 0
        self._updates = 0
        self._metrics: set[tuple[str, int]] = set()

    @property
    def resumes(self) -> bool:
        """Whether the directory holds the state of an earlier run."""
        return self.store.get(_ENGINE, None) is not None

    # ---- going on -------------------------------------------------------------------

    def open_run(self, run: FederationRun) -> None:
        """Begin a new federation in an empty directory, or go on where the last run ended.

        Raises
        ------
        StateError
            If the directory holds the state of another model, or is damaged.
        """
        if not self.resumes:
            self._begin(run)
            return
        problems = self.store.verify()
        if problems:
            raise LedgerError(
                f"the ledger of {self.store.directory} was changed ({'; '.join(problems[:3])}); "
                "look into it with flwr-afuic ledger verify, and go on from a backup"
            )
        self.store.sweep("left by a run that fell")
        engine = self.store.get(_ENGINE, {})
        _check_layout(run.layout, self.store.get(_LAYOUT, []))
        run.arrays = self.model(int(engine["version"]), run.layout)
        run.restore(engine, self.store.get(_RUNS, 0))
        for row in self.store.metrics():
            _restore_metric(run, row)
        run.hooks.restore(self.store.get(_METHOD, {}), self)
        text = f"version {run.version}, round {run.round}"
        log(INFO, "Going on from %s: %s; initial_arrays are not used", self.store.directory, text)
        with self.store.transaction() as tx:
            tx.set(_RUNS, self.store.get(_RUNS, 0) + 1)
            tx.append("run-resumed", {"version": run.version, "round": run.round})
        self.store.sweep("left behind by a run that was cut short")

    def _begin(self, run: FederationRun) -> None:
        digest = self.store.vault.put(_named(run.layout, run.arrays))
        with self.store.transaction() as tx:
            tx.set(_LAYOUT, [[s.name, list(s.shape), s.dtype, s.kind] for s in run.layout.specs])
            tx.set(_ENGINE, run.capture())
            tx.set(_RUNS, 1)
            tx.hold("version", "0", digest)
            tx.put_version(0, 0, 0.0, time.time(), "initial", (), digest)
            tx.append("run-started", {"model": digest})
        self._digests["version", "0"] = digest

    def model(self, version: int, layout: Layout) -> Arrays:
        """Read the model of a version; StateError if it is missing or does not fit."""
        arrays = list(self.blob("version", str(version)).values())
        try:
            layout.check(arrays, f"the stored model of version {version}")
        except LayoutError as error:
            raise StateError(str(error)) from error
        return arrays

    def blob(self, purpose: str, key: str) -> dict[str, NDArray[Any]]:
        """Read arrays stored under a key; StateError if there are none."""
        digest = self._digests.get((purpose, key))
        if digest is None:
            raise StateError(f"{self.store.directory} holds no {purpose} {key!r}")
        return self.store.vault.get(digest)

    def keys_of(self, purpose: str) -> list[str]:
        """Keys stored for one purpose."""
        return [key for name, key in self._digests if name == purpose]

    def digest(self, purpose: str, key: str) -> str:
        """Return the fingerprint of what is stored under a key, or an empty string."""
        return self._digests.get((purpose, key), "")

    # ---- committing -----------------------------------------------------------------

    def commit(self, run: FederationRun) -> None:
        """Write everything that changed since the last commit; called by the loop's thread."""
        with run.hooks.guard(), self._writing:
            part = run.hooks.checkpoint()
            wanted = self._wanted(run)
            wanted.update(part.blobs)
            digests = {key: self._put(key, blob) for key, blob in wanted.items()}
            gone = [key for key in self._digests if key not in digests]
            with self.store.transaction() as tx:
                tx.set(_ENGINE, run.capture())
                tx.set(_METHOD, part.state)
                for key in gone:
                    tx.drop(*key)
                for key, digest in digests.items():
                    if self._digests.get(key) != digest:
                        tx.hold(*key, digest)
                self._write_journal(tx, run, digests)
                _write_requests(tx, part.records, part.entries)
                for command, outcome in part.commands:
                    tx.finish_command(command, outcome)
            self._digests = digests
            self._written(run)
            if gone:
                self.store.sweep("no longer needed")

    def commit_requests(self, part: Part) -> None:
        """Write requests alone; may be called from any thread."""
        with self._writing, self.store.transaction() as tx:
            _write_requests(tx, part.records, part.entries)
            for command, outcome in part.commands:
                tx.finish_command(command, outcome)

    def _wanted(self, run: FederationRun) -> dict[Key, Named | SameAs]:
        """Models of the newest versions: one is new, the others are on disk."""
        oldest = max(0, run.version - self._keep + 1)
        kept: dict[Key, Named | SameAs] = {
            key: SameAs(int(key[1]))
            for key in self._digests
            if key[0] == "version" and int(key[1]) >= oldest
        }
        newest = ("version", str(run.version))
        if newest not in self._digests:
            kept[newest] = _named(run.layout, run.arrays)
        return kept

    def _put(self, key: Key, blob: Named | SameAs) -> str:
        known = self._digests.get(key)
        if isinstance(blob, SameAs):
            # The version first: under the same key may be the snapshot of an attempt that a crash
            # cut short, and that was begun again from a newer version.
            same = self._digests.get(("version", str(blob.version)), known)
            if same is None:
                raise StateError(f"{key[0]} {key[1]} needs version {blob.version}, which is gone")
            return same
        return self.store.vault.put(blob) if known is None else known

    def _write_journal(
        self, tx: Transaction, run: FederationRun, digests: Mapping[Key, str]
    ) -> None:
        wall = time.time()
        for entry in run.journal.versions[self._versions :]:
            digest = digests.get(("version", str(entry.version)), "")
            _write_version(tx, entry, digest, wall)
        tx.log_events([_event(e, wall) for e in run.journal.events[self._events :]])
        tx.log_updates([_update(u, wall) for u in run.journal.updates[self._updates :]])
        for source, rounds in _metrics_of(run).items():
            for round_, record in rounds.items():
                if (source, round_) not in self._metrics:
                    for name, value in record.items():
                        if not isinstance(value, list):
                            tx.put_metric(round_, source, name, value)

    def _written(self, run: FederationRun) -> None:
        self._versions = len(run.journal.versions)
        self._events = len(run.journal.events)
        self._updates = len(run.journal.updates)
        for source, rounds in _metrics_of(run).items():
            # The sites' evaluations of the last rounds may still grow.
            settled = [r for r in rounds if source != "clients-evaluate" or r < run.round - 1]
            self._metrics.update((source, r) for r in settled)

    # ---- purging --------------------------------------------------------------------

    def purge_before(self, version: int, request_id: str, further: Iterable[Key]) -> list[Purged]:
        """Delete every checkpoint older than ``version``, and what else is named.

        A model that another open request still unlearns from stays until that one is merged.
        """
        with self._writing:
            keys = [
                key for key in self._digests if key[0] == "version" and int(key[1]) < version
            ] + [key for key in further if key in self._digests]
            with self.store.transaction() as tx:
                for key in keys:
                    tx.drop(*key)
            for key in keys:
                del self._digests[key]
            return self.store.sweep("erasure", request_id)

    def close(self) -> None:
        """Let go of the directory."""
        self.store.close()


def _named(layout: Layout, arrays: Arrays) -> dict[str, NDArray[Any]]:
    return dict(zip(layout.names, (np.asarray(a) for a in arrays), strict=True))


def _check_layout(layout: Layout, stored: list[Any]) -> None:
    here = [[s.name, list(s.shape), s.dtype, s.kind] for s in layout.specs]
    if here != stored:
        differing = [a for a, b in zip(here, stored, strict=False) if a != b]
        raise StateError(
            f"the state directory holds a model of {len(stored)} arrays, initial_arrays has "
            f"{len(here)}; first difference: {differing[0] if differing else 'their number'}. "
            "Name another state_dir for another model"
        )


def _write_version(tx: Transaction, entry: VersionEntry, digest: str, wall: float) -> None:
    tx.put_version(entry.version, entry.round, entry.time, wall, entry.cause, entry.sites, digest)
    body = {"version": entry.version, "round": entry.round, "cause": entry.cause}
    tx.append("version", {**body, "sites": list(entry.sites), "model": digest})


def _write_requests(
    tx: Transaction,
    records: Iterable[ErasureRecord],
    entries: Iterable[tuple[str, dict[str, Any]]],
) -> None:
    for record in records:
        notice = record.notice
        tx.put_request(
            RequestRow(
                id=record.request_id,
                site=record.site,
                scope=notice.scope,
                state=str(record.state),
                count=notice.count,
                reason=notice.reason,
                filed_at=notice.filed_at,
                body=record.to_dict(),
            )
        )
    for kind, body in entries:
        tx.append(kind, body)


def _event(event: Event, wall: float) -> dict[str, Any]:
    return {**asdict(event), "wall": wall}


def _update(update: UpdateEntry, wall: float) -> dict[str, Any]:
    return {**asdict(update), "staleness": update.staleness, "wall": wall}


def _metrics_of(run: FederationRun) -> dict[str, dict[int, MetricRecord]]:
    result = run.result
    return {
        "clients-train": result.train_metrics_clientapp,
        "clients-evaluate": result.evaluate_metrics_clientapp,
        "server-evaluate": result.evaluate_metrics_serverapp,
    }


def _restore_metric(run: FederationRun, row: MetricRow) -> None:
    rounds = _metrics_of(run).get(row.source)
    if rounds is not None:
        rounds.setdefault(row.round, MetricRecord())[row.name] = row.value
