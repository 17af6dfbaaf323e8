"""Any order of writing, failing, purging, rotating and starting anew, against a plain model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flwr_afuic.state.backup import backup, restore
from flwr_afuic.state.store import StateStore
from flwr_afuic.state.vault import Vault
from tests.state.helpers import arrays

MEMORY = Path("/dev/shm")
SLOTS = st.sampled_from(["1", "2", "3"])
PURPOSES = st.sampled_from(["version", "snapshot"])


class Abort(Exception):
    pass


class Directory(RuleBasedStateMachine):
    """The store beside dictionaries that should say the same."""

    def __init__(self):
        super().__init__()
        place = MEMORY if MEMORY.is_dir() else None
        self.folder = tempfile.TemporaryDirectory(dir=place)
        self.directory = Path(self.folder.name) / "state"
        self.turn = 0

    @initialize()
    def begin(self):
        self.store = StateStore(self.directory, exclusive=True)
        self.kept, self.settings, self.ledger = {}, {}, []
        self.known, self.unsettled, self.pending = set(), set(), []
        self.heads = []

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
        self.folder.cleanup()

    @rule(purpose=PURPOSES, key=SLOTS, seed=st.integers(0, 4), abort=st.booleans())
    def keep(self, purpose, key, seed, abort):
        digest = self.store.vault.put(arrays(seed))
        self.known.add(digest)
        self.unsettled.add(digest)
        try:
            with self.store.transaction() as change:
                change.hold(purpose, key, digest)
                change.set(key, seed)
                change.append("keep", {"key": key, "seed": seed})
                if abort:
                    raise Abort
        except Abort:
            return
        self.kept[purpose, key] = digest
        self.settings[key] = seed
        self.ledger.append("keep")
        self.unsettled.discard(digest)

    @rule(purpose=PURPOSES, key=SLOTS, abort=st.booleans())
    def drop(self, purpose, key, abort):
        try:
            with self.store.transaction() as change:
                change.drop(purpose, key)
                change.append("drop", {})
                if abort:
                    raise Abort
        except Abort:
            return
        self.kept.pop((purpose, key), None)
        self.ledger.append("drop")

    @rule()
    def sweep(self):
        stay = set(self.kept.values()) | self.unsettled
        purged = {entry.digest for entry in self.store.sweep("x", "r")}
        assert purged == self.known - stay
        self.known -= purged
        done = [row.digest for row in self.store.purges() if row.done]
        assert purged <= set(done)

    @rule(outside=st.booleans())
    def command(self, outside):
        if outside:
            with StateStore(self.directory, create=False) as other:
                self.pending.append(other.command("erase", site="a"))
        else:
            self.pending.append(self.store.command("cancel", request_id="r"))

    @precondition(lambda self: self.pending)
    @rule(abort=st.booleans())
    def finish(self, abort):
        try:
            with self.store.transaction() as change:
                change.finish_command(self.pending[0], "done")
                if abort:
                    raise Abort
        except Abort:
            return
        del self.pending[0]

    @rule(noted=st.booleans())
    def rotate(self, noted):
        if noted:
            self.store.rotate_key()
        else:  # as a crash between the two leaves it
            self.store.keys.rotate()
            self.reopen()
        self.ledger.append("key-rotated")

    @rule()
    def reopen(self):
        self.store.close()
        self.store = StateStore(self.directory, exclusive=True)
        self.unsettled.clear()

    @rule()
    def remember(self):
        if head := self.store.head():
            self.heads.append(("a", head))

    @rule()
    def move_house(self):
        self.turn += 1
        place = Path(self.folder.name)
        backup(self.directory, place / f"copy{self.turn}")
        self.store.close()
        self.directory = place / f"state{self.turn}"
        restore(place / f"copy{self.turn}", self.directory)
        self.store = StateStore(self.directory, exclusive=True)
        self.known = set(self.kept.values())
        self.unsettled.clear()
        self.ledger.append("restored")

    @invariant()
    def agrees(self):
        store = getattr(self, "store", None)
        if store is None:
            return
        assert store.holdings() == self.kept
        assert {key: store.get(key) for key in self.settings} == self.settings
        assert [row.kind for row in store.ledger()] == self.ledger
        assert store.vault.digests() == self.known
        assert [command.id for command in store.pending_commands()] == self.pending
        assert store.verify(self.heads) == []


Directory.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestDirectory = Directory.TestCase


def test_the_machine_sees_a_sweep_that_takes_too_much(monkeypatch):
    """The machine can fail: it does when what is on its way is not spared."""
    monkeypatch.setattr(Vault, "is_fresh", lambda *_: False)
    machine = Directory()
    machine.begin()
    machine.keep(purpose="version", key="1", seed=0, abort=True)
    with pytest.raises(AssertionError):
        machine.sweep()
    machine.teardown()
