"""Processes killed at every step of what they write, and those who come after them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.errors import StateLockedError
from flwr_afuic.state.reading import read_state, verify_state
from flwr_afuic.state.store import StateStore
from tests.state.helpers import arrays

WRITER = """
import os, signal, sys
from pathlib import Path
from flwr_afuic.state import database, vault
from flwr_afuic.state.store import StateStore
from tests.state.helpers import arrays, fill

left = [0]

def counted(function, *, after=False):
    def call(*arguments, **options):
        if not left[0] and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if not left[0] and after:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return result
    return call

def live(directory, step):
    with StateStore(directory, exclusive=True) as store:
        left[0] = step
        for name in ("replace", "fsync", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        vault.save_file = counted(vault.save_file, after=True)
        database.commit = counted(counted(database.commit), after=True)
        digest = store.vault.put(arrays(2))
        with store.transaction() as change:
            change.put_version(2, 2, 1.0, 2.0, "merge", ["a"], digest)
            change.hold("model", "2", digest)
            change.drop("model", "1")
            change.set("engine", {"round": 2})
            change.append("version", {"version": 2, "model": digest})
        store.sweep("no longer needed", "r1")
        document = b'{"a":1}'
        store.add_certificate("r1", document, store.keys.sign(document), "<p>")
        store.rotate_key()

for step in range(100):
    directory = Path(sys.argv[1]) / str(step)
    with StateStore(directory, exclusive=True) as store:
        print(fill(store), flush=True)
    child = os.fork()
    if not child:
        try:
            live(directory, step)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
    if status != -signal.SIGKILL:
        break
"""


@pytest.fixture
def quick(tmp_path):
    """A folder in memory, if there is one: a killed process loses nothing of it either."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_a_server_killed_at_any_step_leaves_the_old_state_or_the_new(quick):
    lives = subprocess.run(
        [sys.executable, "-c", WRITER, str(quick)], capture_output=True, text=True, check=True
    )
    words = lives.stdout.split()
    digests, statuses = words[::2], [int(word) for word in words[1::2]]
    assert len(statuses) > 30
    assert set(statuses[:-1]) == {-signal.SIGKILL}
    assert statuses[-1] == 0, lives.stderr
    seen = {check(quick / str(step), digest) for step, digest in enumerate(digests)}
    assert {(1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 1, 1)} == seen


def check(directory, old):
    """What anybody finds after the crash; (version, certificates, rotations)."""
    # The key ring may be in the middle of a rotation; everything else verifies as it lies.
    problems = [text for text in verify_state(directory) if "is signed by key" not in text]
    assert problems == []
    number = read_state(directory).versions[-1].number
    with StateStore(directory, exclusive=True) as store:
        assert store.verify(files=True) == []
        (*_, version) = store.versions()
        assert version.number == number
        assert store.get("engine")["round"] == number
        assert store.holdings() == {("model", str(number)): version.digest}
        model = store.vault.get(version.digest)
        np.testing.assert_array_equal(model["w"], arrays(0 if number == 1 else 2)["w"])
        ledger = [row.body for row in store.ledger() if row.kind == "version"]
        assert [body["version"] for body in ledger] == list(range(1, number + 1))
        gone = {row.digest for row in store.purges() if row.done}
        assert (old in gone) == (old not in store.vault)
        assert gone <= {old}
        store.sweep("after the crash")
        assert store.vault.digests() == {version.digest}
        assert list(directory.rglob(".partial-*")) == []
        issued = store.certificates()
        if issued:
            store.certificate("r1")
        rotated = [row for row in store.ledger() if row.kind == "key-rotated"]
        assert len(rotated) == len(store.keys.rotations)
    assert verify_state(directory) == []
    return number, len(issued), len(rotated)


HOLDER = """
import os, sys, time
from flwr_afuic.state.store import StateStore
store = StateStore(sys.argv[1], exclusive=True)
with store.transaction() as change:
    change.append("run-started", {})
if os.fork() == 0:  # a worker that outlives its server
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_a_killed_server_frees_its_lock_even_if_a_worker_lives_on(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(StateLockedError, match=f"process id {holder.pid};"):
            StateStore(tmp_path, exclusive=True)
        assert read_state(tmp_path).server == holder.pid
        with StateStore(tmp_path, create=False) as store:
            request = store.command("erase", site="a")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with StateStore(tmp_path, exclusive=True) as store:
            assert [command.id for command in store.pending_commands()] == [request]
            assert [row.kind for row in store.ledger()] == ["run-started"]
            assert read_state(tmp_path).server == os.getpid()
        assert read_state(tmp_path).server is None
        os.kill(worker, 0)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        os.kill(worker, signal.SIGKILL)


SERVER = """
import sys, time
from flwr_afuic.state.store import StateStore
with StateStore(sys.argv[1], exclusive=True) as store:
    print("up", flush=True)
    deadline = time.monotonic() + 30
    done = 0
    while done < 5 and time.monotonic() < deadline:
        for command in store.pending_commands():
            with store.transaction() as change:
                change.finish_command(command.id, "filed")
                change.append("command", {"id": command.id})
            done += 1
        time.sleep(0.005)
"""


def test_commands_of_another_process_are_seen_at_once(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout.readline() == "up\n"
    waits = []
    with StateStore(tmp_path, create=False) as store:
        for _ in range(5):
            began = time.monotonic()
            command = store.command("erase", site="a")
            while store.commands()[-1].outcome is None and time.monotonic() < began + 20:
                time.sleep(0.002)
            waits.append(time.monotonic() - began)
            assert store.commands()[-1].id == command
    assert server.wait(30) == 0
    server.stdout.close()
    assert min(waits) < 1.0
    assert [row.kind for row in read_state(tmp_path).ledger] == ["command"] * 5
    assert verify_state(tmp_path) == []
