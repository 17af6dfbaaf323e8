"""What must be true of a state directory and its sites at any moment, and at the end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flwr_afuic.erasure.certificate import verify_certificate
from flwr_afuic.state.rows import RequestRow
from flwr_afuic.state.store import StateStore
from tests.strategies.chaos import Federation

CLOSED = {"completed", "completed-unverified", "refused", "failed", "cancelled"}
DONE = {"completed", "completed-unverified"}


class Judge:
    """Follows one federation from crash to crash.

    Parameters
    ----------
    federation : Federation
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._committed: list[tuple[int, str]] = []
        self._requests: set[str] = set()
        self._certified: dict[str, int] = {}

    def problems(self) -> list[str]:
        """Return everything that must not be so, whenever the server has just stopped."""
        federation = self._federation
        found = list(federation.wrong)
        if not (federation.directory / "state.sqlite").exists():
            return found + [f"{r} was told as filed" for r, t in federation.told.items() if t]
        with StateStore(federation.directory) as store:
            # Weights written just before a fall may be those of a deleted model: the next server
            # deletes them when it starts.
            left = "was recorded as deleted and is there"
            found += [text for text in store.verify(files=True) if left not in text]
            rows = {row.id: row for row in store.requests()}
            found += self._versions(store)
            found += self._records(store, rows)
            found += self._promises(store, rows)
            found += self._sites(rows)
            found += self._certificates(store, rows)
        return found

    def _versions(self, store: StateStore) -> Iterator[str]:
        versions = [(row.number, row.digest) for row in store.versions()]
        if [number for number, _ in versions] != list(range(len(versions))):
            yield f"versions are {[number for number, _ in versions]}"
        if versions[: len(self._committed)] != self._committed:
            yield f"of versions {self._committed} some were lost; there are {versions}"
        self._committed = versions
        chained = [
            (row.body["version"], row.body["model"])
            for row in store.ledger()
            if row.kind == "version"
        ]
        if chained != versions[1:]:
            yield "the ledger tells of other versions"
        if not versions:
            return
        number, digest = versions[-1]
        if store.holdings().get(("version", str(number))) != digest:
            yield f"version {number} is not kept"
            return
        federation = self._federation
        if number == federation.version and federation.model is not None:
            stored = store.vault.get(digest)["w"]
            if not np.array_equal(stored, federation.model):
                yield f"version {number} on disk is not the one that was merged"

    def _records(self, store: StateStore, rows: dict[str, RequestRow]) -> Iterator[str]:
        if lost := self._requests - rows.keys():
            yield f"requests {lost} are no longer on file"
        self._requests = set(rows)
        versions = store.versions()
        model = store.vault.get(versions[-1].digest)["w"] if versions else None
        said: dict[str, list[str]] = {}
        for row in store.ledger():
            if row.kind == "state":
                said.setdefault(row.body["request"], []).append(row.body["state"])
        for row in rows.values():
            history = [step["state"] for step in row.body["history"]]
            if row.state != history[-1] or row.body["state"] != row.state:
                yield f"request {row.id} is {row.state} and its history {history}"
            if history[1:] != said.get(row.id, []):
                yield f"request {row.id}: history {history}, ledger {said.get(row.id)}"
            merges = history.count("merged")
            applied = self._federation.erasures.count(row.id, model) if versions else 0
            if not row.body["leader"] and applied != merges:
                yield f"request {row.id} is in the model {applied} times, merged {merges} times"
            if merges > row.body["attempts"]:
                yield f"request {row.id} has {merges} merges of {row.body['attempts']} attempts"
            if row.state in ("cancelled", "refused") and merges:
                yield f"request {row.id} is {row.state} and was merged"

    def _promises(self, store: StateStore, rows: dict[str, RequestRow]) -> Iterator[str]:
        commands = {command.id: command for command in store.commands()}
        for command in commands.values():
            if command.outcome == "filed" and command.request_id not in rows:
                yield f"command {command.id} was obeyed, and there is no such request"
            if command.outcome == "done: cancelled" and (
                rows[command.request_id].state != "cancelled"
            ):
                yield f"{command.request_id} was cancelled and is {rows[command.request_id].state}"
        for request_id, promises in self._federation.told.items():
            state = rows[request_id].state if request_id in rows else "lost"
            if "commanded" in promises and request_id not in commands:
                yield f"command {request_id} is lost"
            if "filed" in promises and state == "lost":
                yield f"request {request_id} of the operator is lost"
            if "cancelled" in promises and state != "cancelled":
                yield f"request {request_id} was cancelled and is {state}"
            if "rejected" in promises and state != "failed":
                yield f"request {request_id} was rejected and is {state}"

    def _sites(self, rows: dict[str, RequestRow]) -> Iterator[str]:
        """What a site was told must be so on the server's disk."""
        for hospital in self._federation.hospitals:
            for request in hospital.inbox.requests():
                request_id, status = request.notice.request_id, request.status
                row = rows.get(request_id)
                if status in ("known", "closed", "failed", "refused") and row is None:
                    yield f"{hospital.name} was told that {request_id} is {status}; it is lost"
                elif row is not None and row.site != hospital.name and "node" not in row.site:
                    yield f"request {request_id} of {hospital.name} is on file for {row.site}"
                elif status in ("closed", "failed") and row.state not in CLOSED:
                    if "completed" not in [step["state"] for step in row.body["history"]]:
                        yield f"{hospital.name} takes {request_id} for closed; it is {row.state}"
                elif status == "refused" and row.state != "refused":
                    yield f"{hospital.name} takes {request_id} for refused; it is {row.state}"

    def _certificates(self, store: StateStore, rows: dict[str, RequestRow]) -> Iterator[str]:
        for row in rows.values():
            certified = row.body["certified"]
            if certified < self._certified.get(row.id, 0):
                yield f"request {row.id} was certified and is not any more"
            self._certified[row.id] = certified
            if not certified:
                continue
            found = store.certificate(row.id)
            if found is None:
                yield f"request {row.id} has no certificate"
                continue
            verdict = verify_certificate(found[0], found[1], store.keys.public_hex)
            yield from (f"certificate of {row.id}: {problem}" for problem in verdict.problems)

    # ---- at the end -----------------------------------------------------------------

    def unsettled(self) -> list[str]:
        """Return what is still to be done, as seen from outside."""
        federation, waiting = self._federation, []
        with StateStore(federation.directory) as store:
            rows = {row.id: row for row in store.requests()}
            for row in rows.values():
                done = sum(step["state"] in DONE for step in row.body["history"])
                if row.state not in CLOSED or row.body["certified"] < done:
                    waiting.append(f"{row.id} of {row.site} is {row.state}")
            waiting += [f"command {command.kind}" for command in store.pending_commands()]
        for hospital in federation.hospitals:
            for request in hospital.inbox.requests():
                row = rows.get(request.notice.request_id)
                certificate = hospital.inbox.certificate(request.notice.request_id)
                if request.status in ("filed", "known", "cancelling"):
                    waiting.append(f"{request.notice.request_id} is {request.status} at the site")
                elif row is not None and row.state in DONE and certificate is None:
                    waiting.append(f"{request.notice.request_id}: the site has no certificate")
        return waiting

    def outcomes(self) -> list[str]:
        """Return how the requests ended."""
        with StateStore(self._federation.directory) as store:
            return [f"ended {row.state}" for row in store.requests()]

    def end(self) -> list[str]:
        """Return everything that must not be so once all is done."""
        federation, found = self._federation, self.problems()
        with StateStore(federation.directory) as store:
            rows = {row.id: row for row in store.requests()}
            kept, there = set(store.holdings().values()), store.vault.digests()
            if kept != there:
                found.append(f"{len(there - kept)} files nobody keeps, {len(kept - there)} missing")
            left = [path.name for path in store.directory.glob("*/.partial-*")]
            found += [f"{name} is left from a crash" for name in left]
            oldest = min(int(key) for purpose, key in store.holdings() if purpose == "version")
            merged = [row.body["merge_version"] for row in rows.values() if row.state in DONE]
            if merged and oldest < max(merged):
                found.append(f"version {oldest} is kept, from before the merge {max(merged)}")
        for row in rows.values():
            found += self._outcome(row)
        for hospital in federation.hospitals:
            for request_id in hospital.filed:
                if hospital.status(request_id) != "cancelled" and request_id not in rows:
                    found.append(f"request {request_id} of {hospital.name} never arrived")
        return found

    def _outcome(self, row: RequestRow) -> Iterator[str]:
        federation = self._federation
        allowed = {"completed"}
        if row.id in federation.expired:
            allowed = {"refused"}
        if "commanded" in federation.told[row.id] or "filed" in federation.told[row.id]:
            allowed.add("cancelled")
        number = int(row.site.rpartition("-")[2])
        if number in federation.excused or federation.setting.patience < 1e9:
            allowed |= {"failed", "completed-unverified"}
        if any(h.status(row.id) == "cancelled" for h in federation.hospitals):
            allowed = {"cancelled", "refused"}
        elif row.body["filed_by"] == "operator":
            allowed |= {"cancelled"}
        if row.state not in allowed:
            yield f"request {row.id} of {row.site} ended as {row.state} ({row.body['reason']})"
