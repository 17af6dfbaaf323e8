"""A federation that is crashed and started anew: its people, its lives, its luck."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flwr_afuic import wire
from flwr_afuic.app.local import SpeedModel
from flwr_afuic.errors import AfuicError, FederationError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies import AFUIC
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.unlearning.privacy import NO_PRIVACY, DeltaPrivacy
from tests.strategies import countable
from tests.strategies.countable import HARM, SAMPLES, SITES, Erasures, Hospital
from tests.strategies.faulty import TIMEOUT, Crash, FaultyGrid, snapshot, watched

MEMORY = Path("/dev/shm")
TOGETHER = DeltaPrivacy(small=SAMPLES + 1, small_clip=1e9, small_noise=0.0)
"""Small requests are unlearned together, and nothing is clipped."""

Deed = tuple[str, int, int]
"""What somebody does, at which site, and a number that says to what."""

_MOST_STEPS = 120
_EXPIRED = 91 * 86400.0


@dataclass(frozen=True)
class Setting:
    """What differs between federations."""

    mode: str = "async"
    dialect: str = "numpy"
    authenticated: bool = True
    buffer_size: int = 2
    keep_checkpoints: int = 2
    verify_rounds: int = 1
    batch_size: int = 1
    evaluate_every: int = 0
    gated: bool = False
    patience: float = 1e9


class Federation:
    """Three hospitals, a server that falls, an operator, and a grid that cannot be trusted.

    Attributes
    ----------
    told : dict of str to set of str
        By request: what was promised to somebody ("filed", "cancelled", "released", "rejected").
    excused : set of int
        Sites of which a request may fail: they did not do what they should.
    wrong : list of str
        What was seen and must not be.
    met : Counter
        How much of what this federation went through.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.root = Path(self._folder.name)
        self.directory = self.root / "state-0"
        self.erasures = Erasures()
        self.wrong: list[str] = []
        self.hospitals = [
            Hospital(n, self.root / f"site-{n}", self.erasures, wrong=self.wrong)
            for n in range(SITES)
        ]
        for hospital in self.hospitals:
            hospital.while_training = lambda: self._tick("train")
        self.told: defaultdict[str, set[str]] = defaultdict(set)
        self.excused: set[int] = set()
        self.expired: set[str] = set()
        self.met: Counter[str] = Counter()
        self.model: np.ndarray | None = None
        self.version = -1
        self._numbers = 0
        self.lives = 0
        self._falls = 0
        self._crash: tuple[str, int] | None = None
        self._ticks: Counter[str] = Counter()
        self._script: list[tuple[str, int, Deed]] = []
        self._away: set[int] = set()
        self.strategy: AFUIC | None = None
        self._grid: FaultyGrid | None = None
        self._doing = False
        self._at = ""
        self._looked = 0

    def close(self) -> None:
        self._folder.cleanup()

    # ---- one life of the server -----------------------------------------------------

    def live(
        self,
        *,
        faults: Sequence[tuple[int, str]] = (),
        script: Sequence[tuple[str, int, Deed]] = (),
        crash: tuple[str, int] | None = None,
        versions: int = 4,
        stop=None,
        steps: int = _MOST_STEPS,
    ) -> str:
        """Run a server on the state directory until it falls, or has made so many versions.

        Parameters
        ----------
        faults : sequence of (int, str)
            What happens to messages, each so many messages after the one before.
        script : sequence of (str, int, Deed)
            What people do at the n-th tick of a kind.
        crash : (str, int), optional
            The server falls at the n-th tick of a kind.

        Returns
        -------
        str
            How it ended.
        """
        setting = self.setting
        self.lives += 1
        self._crash, self._script, self._ticks = crash, list(script), Counter()
        self.version, self._looked = -1, 0
        names = [h.name for h in self.hospitals] if setting.authenticated else None
        grid = self._grid = FaultyGrid(
            countable.app_of(self.hospitals, setting.dialect),
            SITES,
            faults=_spread(faults),
            tick=self._tick,
            # Slow, so that what waits for seconds does not wait for dozens of trainings.
            speed=SpeedModel(factors={0: 3.0, 1: 5.1, 2: 9.3}),
            names=names,
            threads=1,
        )
        for partition in self._away:
            grid.set_online(partition, False)

        def enough(run) -> bool:
            self._looked += 1
            self._tick("loop")
            return (
                (stop is not None and stop())
                or (stop is None and len(run.journal.versions) >= versions)
                or self._looked > steps
            )

        self.strategy = AFUIC(**self._settings(), stop_when=enough)
        try:
            with watched(self.directory, self._tick):
                self.strategy.start(grid, countable.zeros(), num_rounds=10**6, timeout=TIMEOUT)
            end = "calm" if self._looked <= steps else "tired"
        except Crash:
            end = "crashed"
        except FederationError:
            end = "alone"
        finally:
            self._crash, self._script = None, []
            self.strategy, self._grid = None, None
            grid.close()
        self.met.update(grid.met)
        self.met["ticks"] += self._ticks["any"]
        self.met[end] += 1
        return end

    def _settings(self) -> dict:
        setting = self.setting
        return {
            "mode": setting.mode,
            "dialect": setting.dialect,
            "buffer_size": setting.buffer_size,
            "server_lr": 1.0,
            "keep_checkpoints": setting.keep_checkpoints,
            "verify_rounds": setting.verify_rounds,
            "evaluate_every": setting.evaluate_every,
            "batch_size": setting.batch_size,
            "batch_seconds": 20.0,
            "privacy": TOGETHER if setting.batch_size > 1 else NO_PRIVACY,
            "gate": GateSettings(score=_harmless) if setting.gated else GateSettings(by="off"),
            "site_timeout": setting.patience,
            "min_available_nodes": 1,
            "max_attempts": 8,
            "max_backoff": 4.0,
            "max_failures": 50,
            "norm_factor": 1e9,
            "erasure_norm_factor": 1e4,
            "drain_seconds": 2.0,
            "state_dir": self.directory,
            "on_version": self._on_version,
            "on_event": lambda event: self._tick(f"event {event.kind}"),
        }

    def _tick(self, name: str) -> None:
        """Come by a step: somebody may do something here, or the server may fall."""
        self._at = name
        self._ticks[name] += 1
        self._ticks["any"] += 1
        here = {(name, self._ticks[name]), ("any", self._ticks["any"])}
        if not self._doing:
            due = [entry for entry in self._script if entry[:2] in here]
            self._script = [entry for entry in self._script if entry not in due]
            for _, _, deed in due:
                self.do(*deed)
        if self._crash in here:
            self._crash = None
            # What a kill leaves is what is on disk now, before anything is tidied up.
            self._falls += 1
            survivor = self.root / f"state-{self._falls}"
            survivor.mkdir()
            snapshot(self.directory, survivor)
            for folder in ("weights", "certificates"):
                if (survivor / folder).is_dir():
                    (survivor / folder / ".partial-1-left").write_bytes(b"half")
            self.directory = survivor
            self.met[f"fell at {name}"] += 1
            raise Crash(name)

    # ---- what is seen while it runs -------------------------------------------------

    def _on_version(self, entry: VersionEntry, arrays: list[np.ndarray]) -> None:
        model = np.array(arrays[0])
        if self.version < 0:
            self._first(entry, model)
        else:
            self._next(entry, model)
        self.version, self.model = entry.version, model
        self._tick("merge" if entry.cause == "erasure" else "version")

    def _first(self, entry: VersionEntry, model: np.ndarray) -> None:
        kept = self.committed_model()
        if kept is None:
            return
        if entry.version != kept[0] or not np.array_equal(kept[1], model):
            self.wrong.append(f"a new run began with {entry}, not the committed version {kept[0]}")

    def _next(self, entry: VersionEntry, model: np.ndarray) -> None:
        if entry.version != self.version + 1:
            self.wrong.append(f"{entry} followed version {self.version}")
        moved = set(np.flatnonzero(model != self.model))
        for request_id, entries in self._frozen():
            if moved & entries:
                self.wrong.append(f"{entry} learned from what request {request_id} erases")
        first = SITES * SAMPLES
        applied = {n for n in moved if first <= n < HARM}
        steps = [float(model[n] - self.model[n]) for n in applied]
        if steps != ([1.0] if entry.cause == "erasure" else []):
            self.wrong.append(f"{entry} moved the counts of erasures by {steps}")

    def _frozen(self) -> Iterator[tuple[str, set[int]]]:
        """Entries of the model that a request accepted by the running server forbids to move."""
        strategy = self.strategy
        for record in strategy.book:
            if record.state in ("cancelled", "refused"):
                continue
            if record.request_id not in strategy.run.hooks.opened:
                continue
            hospital = self.hospital_named(record.site)
            samples = hospital.ids
            if record.notice.scope == "samples":
                samples = hospital.filed[record.request_id]
            yield record.request_id, {countable.entry_of(sample) for sample in samples}

    def hospital_named(self, site: str) -> Hospital:
        kind, _, number = site.partition("-")
        if kind == "site":
            return self.hospitals[int(number)]
        return self.hospitals[self._grid.partition_of(int(number))]

    def committed_model(self) -> tuple[int, np.ndarray] | None:
        """Read the newest committed version and its model from the disk."""
        if not (self.directory / "state.sqlite").exists():
            return None
        with StateStore(self.directory) as store:
            versions = store.versions()
            if not versions:
                return None
            newest = versions[-1]
            return newest.number, store.vault.get(newest.digest)["w"]

    # ---- what people do -------------------------------------------------------------

    def do(self, kind: str, site: int, number: int) -> None:
        """Carry out a deed; what is refused changes nothing."""
        self._doing = True
        try:
            with suppress(AfuicError):
                getattr(self, f"_{kind}")(self.hospitals[site % SITES], number)
                self.met[kind] += 1
        finally:
            self._doing = False

    def _new_id(self) -> str:
        self._numbers += 1
        return countable.new_id(self._numbers)

    def _file(self, hospital: Hospital, number: int) -> None:
        rows = [row for row in range(SAMPLES) if (number + 1) >> row & 1]
        if hospital.number == SITES - 1:
            rows = [row for row in rows if row < SAMPLES - 1]  # somebody must train on
        if rows:
            hospital.file(self._new_id(), [hospital.ids[row] for row in rows])

    def _leave(self, hospital: Hospital, number: int) -> None:
        if hospital.number < SITES - 1:
            hospital.file(self._new_id(), [])

    def _repeat(self, hospital: Hospital, number: int) -> None:
        request_id = _pick(hospital.filed, number)
        if request_id:
            samples = hospital.filed[request_id]
            whole = samples == set(hospital.ids)
            with suppress(AfuicError):
                hospital.file(request_id, sorted(samples))
            if whole:
                hospital.file(request_id, [])

    def _expire(self, hospital: Hospital, number: int) -> None:
        """File a request that took three months to leave the hospital."""
        before = set(hospital.filed)
        self._file(hospital, number)
        for request_id in set(hospital.filed) - before:
            with sqlite3.connect(hospital.inbox.path) as connection:
                connection.execute(
                    "UPDATE request SET filed_at = filed_at - ? WHERE id = ?",
                    (_EXPIRED, request_id),
                )
            connection.close()
            self.expired.add(request_id)

    def _cancel(self, hospital: Hospital, number: int) -> None:
        request_id = _pick(hospital.filed, number)
        if request_id:
            hospital.inbox.cancel(request_id)

    def _operator(self, hospital: Hospital, number: int) -> None:
        if hospital.number < SITES - 1 and self.strategy is not None and self._may_call():
            self.told[self.strategy.request_erasure(hospital.name)].add("filed")

    def _command(self, hospital: Hospital, number: int) -> None:
        if hospital.number < SITES - 1 and self.directory.exists():
            with StateStore(self.directory) as store:
                self.told[store.command("erase", site=hospital.name)].add("commanded")

    def _decide(self, kind: str, call: str, number: int, promise: str) -> None:
        """Have the operator cancel, release or reject a request, one way or the other."""
        request_id = _pick(self._on_file(), number // 2)
        if not request_id:
            return
        if number % 2 and self.strategy is not None and self._may_call():
            getattr(self.strategy, call)(request_id)
            self.told[request_id].add(promise)
        elif self.directory.exists():
            with StateStore(self.directory) as store:
                store.command(kind, request_id=request_id)

    def _withdraw(self, hospital: Hospital, number: int) -> None:
        self._decide("cancel", "cancel_erasure", number, "cancelled")

    def _release(self, hospital: Hospital, number: int) -> None:
        self._decide("release", "release_erasure", number, "released")

    def _reject(self, hospital: Hospital, number: int) -> None:
        self._decide("reject", "reject_erasure", number, "rejected")

    def _forge(self, hospital: Hospital, number: int) -> None:
        """Have a site speak of another one's request."""
        other = self.hospitals[(hospital.number + 1 + number % 2) % SITES]
        known = [r for r in other.filed if other.status(r) != "filed"]
        request_id = _pick(known, number // 4)
        if request_id:
            forged = {wire.PENDING: countable.forged_notice(request_id)}
            if number % 4 > 1:
                forged = {wire.CANCEL: request_id}
            if self.setting.authenticated:
                forged[wire.SITE] = other.name
            hospital.forgeries.append(forged)

    def _misbehave(self, hospital: Hospital, number: int) -> None:
        hows = ("diverged", "fails", "raises", "endless", "remembers", "poison")
        hospital.behaviours.append(hows[number % len(hows)])
        self.excused.add(hospital.number)

    def _depart(self, hospital: Hospital, number: int) -> None:
        self._away.add(hospital.number)
        if self._grid is not None:
            self._grid.set_online(hospital.number, False)

    def _return(self, hospital: Hospital, number: int) -> None:
        self._away.discard(hospital.number)
        if self._grid is not None:
            self._grid.set_online(hospital.number, True)

    def _restart(self, hospital: Hospital, number: int) -> None:
        if self._grid is not None and hospital.number not in self._away:
            self._grid.restart(hospital.number, leaves=number % 2 == 0)

    def settle(self) -> bool:
        """Release what is held; True once nothing is left to be done."""
        strategy = self.strategy
        if strategy is None or strategy.run.durability is None:
            return False
        waiting = False
        for record in strategy.book:
            if record.state == "held" and "released" not in self.told[record.request_id]:
                self.told[record.request_id].add("released")
                strategy.release_erasure(record.request_id)
            waiting = waiting or record.open or record.certified < record.completions
        return not waiting and self._looked % 4 == 0 and strategy.run.has_merged

    def everybody_returns(self) -> None:
        for hospital in self.hospitals:
            self._return(hospital, 0)
            hospital.behaviours.clear()
            hospital.forgeries.clear()

    def _may_call(self) -> bool:
        """Whether another thread could call the strategy now: not while the loop is in a step."""
        return self._at in ("loop", "version")

    def _on_file(self) -> list[str]:
        if not (self.directory / "state.sqlite").exists():
            return []
        with StateStore(self.directory) as store:
            return [row.id for row in store.requests()]


def _pick(ids, number: int) -> str:
    known = list(ids)
    return known[number % len(known)] if known else ""


def _spread(faults: Sequence[tuple[int, str]]) -> Iterator[str]:
    for gap, fault in faults:
        yield from [""] * gap
        yield fault


def _harmless(arrays: list[np.ndarray]) -> float:
    """The operator's score: falls with every poisoned delta."""
    return -float(arrays[0][HARM])
