"""Backups are whole, and only whole ones become state directories."""

from __future__ import annotations

import io
import shutil
import sqlite3
import stat
import tarfile
import threading

import pytest

from flwr_afuic.errors import StateError
from flwr_afuic.state import copying
from flwr_afuic.state.backup import backup, restore
from flwr_afuic.state.reading import read_state, verify_state
from flwr_afuic.state.store import StateStore
from tests.state.helpers import arrays, fill
from tests.state.test_reading import DAMAGES, certify


@pytest.fixture
def store(tmp_path):
    with StateStore(tmp_path / "state", exclusive=True) as store:
        fill(store)
        certify(store)
        store.rotate_key()
        yield store


@pytest.mark.parametrize("name", ["copy", "copy.tar"])
def test_a_backup_of_a_running_server_is_restored_and_goes_on(store, tmp_path, name):
    assert backup(store.directory, tmp_path / name) == tmp_path / name
    before = read_state(store.directory)
    store.close()
    restore(tmp_path / name, tmp_path / "new")
    after = read_state(tmp_path / "new")
    assert verify_state(tmp_path / "new", [("a", before.head)]) == []
    assert after.ledger[:-1] == before.ledger
    restored = after.ledger[-1]
    assert (restored.kind, restored.body) == (
        "restored",
        {"row": before.head.seq, "hash": before.head.hash},
    )
    for field in ("federation", "versions", "requests", "holdings", "settings", "weights"):
        assert getattr(after, field) == getattr(before, field)
    assert after.rotations == before.rotations
    assert after.certificates == before.certificates
    with StateStore(tmp_path / "new", exclusive=True) as new:
        assert new.certificate("r1")[0] == b'{"a":1}'
        with new.transaction() as change:
            change.append("run-resumed", {})
        assert new.verify(files=True) == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"state", name, "new"}


def test_only_the_owner_can_read_a_backup(store, tmp_path):
    backup(store.directory, tmp_path / "copy")
    backup(store.directory, tmp_path / "copy.tar")
    restore(tmp_path / "copy", tmp_path / "new")
    for path in [*(tmp_path / "copy").rglob("*"), *(tmp_path / "new").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    for name, mode in (("copy", 0o700), ("new", 0o700), ("copy.tar", 0o600)):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_a_backup_without_the_private_key_needs_it_from_elsewhere(store, tmp_path):
    backup(store.directory, tmp_path / "copy", keys=False)
    kept = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert not any(b"PRIVATE" in path.read_bytes() for path in kept)
    with pytest.raises(StateError, match="holds no private key"):
        restore(tmp_path / "copy", tmp_path / "new")
    with (
        StateStore(tmp_path / "other") as other,
        pytest.raises(StateError, match="from one backup"),
    ):
        restore(tmp_path / "copy", tmp_path / "new", keys=other.directory / "keys")
    with pytest.raises(StateError, match="was not restored"):
        restore(tmp_path / "copy", tmp_path / "new", keys=tmp_path)
    assert not (tmp_path / "new").exists()
    restore(tmp_path / "copy", tmp_path / "new", keys=store.directory / "keys")
    assert verify_state(tmp_path / "new") == []
    assert read_state(tmp_path / "new").public_keys == store.keys.public_keys


def test_a_purged_file_is_in_no_later_backup(store, tmp_path):
    digest = store.vault.put(arrays(7))
    with store.transaction() as change:
        change.hold("update", "a", digest)
    backup(store.directory, tmp_path / "before")
    store.vault.put(arrays(8))  # kept by nothing
    with store.transaction() as change:
        change.drop("update", "a")
    backup(store.directory, tmp_path / "after")
    names = [
        {path.stem for path in (tmp_path / x / "weights").iterdir()} for x in ("before", "after")
    ]
    assert names[0] - names[1] == {digest}
    assert len(names[1]) == 1


def test_a_backup_is_consistent_while_a_writer_is_active(store, tmp_path):
    stop, errors = threading.Event(), []

    def write():
        number = 10
        try:
            while not stop.is_set():
                digest = store.vault.put(arrays(number))
                with store.transaction() as change:
                    change.put_version(number, number, 0.0, 0.0, "merge", ["a"], digest)
                    change.hold("model", "newest", digest)
                    change.set("number", number)
                    change.append("version", {"version": number, "model": digest})
                store.sweep("no longer needed")
                if number % 20 == 0:
                    store.rotate_key()
                if number % 7 == 0:
                    certify(store, f"r{number}")
                number += 1
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        numbers = []
        for turn in range(6):
            backup(store.directory, tmp_path / f"copy{turn}")
            restore(tmp_path / f"copy{turn}", tmp_path / f"new{turn}")
            view = read_state(tmp_path / f"new{turn}")
            number = view.settings.get("number")
            if number is not None:
                assert view.versions[-1].number == number
                assert view.holdings["model", "newest"] == view.versions[-1].digest
                numbers.append(number)
            assert set(view.weights) == set(view.holdings.values())
    finally:
        stop.set()
        writer.join()
    assert errors == []
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1


def test_weights_that_go_while_they_are_copied_are_followed(store, tmp_path, monkeypatch):
    keys = {}
    for seed in range(20, 23):
        digest = store.vault.put(arrays(seed))
        keys[digest] = str(seed)
        with store.transaction() as change:
            change.hold("model", str(seed), digest)
    first, *_, last = sorted(keys)
    plain, copies = copying._copy_database, []

    def purge(digest):
        with store.transaction() as change:
            change.drop("model", keys[digest])
        store.sweep("no longer needed")

    def copy(directory, target):
        if copies:  # what was copied goes before the second copy
            purge(first)
        plain(directory, target)
        copies.append(target)
        if len(copies) == 1:  # what the first copy names goes before it is copied
            purge(last)

    monkeypatch.setattr(copying, "_copy_database", copy)
    backup(store.directory, tmp_path / "copy")
    assert len(copies) == 2
    view = read_state(tmp_path / "copy")
    assert view.holdings == store.holdings()
    assert set(view.weights) == set(view.holdings.values())
    assert verify_state(tmp_path / "copy") == []


def test_a_backup_never_replaces_anything(store, tmp_path):
    for name in ("file", "file.tar"):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(StateError, match="exists; name a new one"):
            backup(store.directory, tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"mine"
    with pytest.raises(StateError, match="no state directory"):
        backup(tmp_path / "missing", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_directory_that_lost_weights_is_not_backed_up(store, tmp_path):
    (digest,) = store.holdings().values()
    data = store.vault.path(digest).read_bytes()
    store.vault.path(digest).unlink()
    with pytest.raises(StateError, match=rf"{digest}\.safetensors is missing"):
        backup(store.directory, tmp_path / "copy")
    store.vault.path(digest).write_bytes(data[:-1])
    with pytest.raises(StateError, match=r"safetensors is damaged"):
        backup(store.directory, tmp_path / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"state"}


def test_a_restore_never_writes_into_what_exists(store, tmp_path):
    backup(store.directory, tmp_path / "copy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    for name in ("full", "file", "state"):
        with pytest.raises(StateError, match="is not empty"):
            restore(tmp_path / "copy", tmp_path / name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "copy", tmp_path / "empty")
    assert verify_state(tmp_path / "empty") == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backup_is_not_restored(store, tmp_path, damage):
    backup(store.directory, tmp_path / "copy")
    message = damage(tmp_path / "copy")
    with pytest.raises(StateError, match=message):
        restore(tmp_path / "copy", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"state", "copy"}


def test_a_cut_ledger_is_not_restored(store, tmp_path):
    backup(store.directory, tmp_path / "copy")
    connection = sqlite3.connect(tmp_path / "copy" / "state.sqlite")
    with connection:
        connection.execute("DROP TRIGGER ledger_loses_no_row")
        connection.execute("DELETE FROM ledger WHERE seq = (SELECT max(seq) FROM ledger)")
    connection.close()
    with pytest.raises(StateError, match=r"its tail was cut|takes no more rows"):
        restore(tmp_path / "copy", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_no_backup_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.tar").write_bytes(b"text" * 1000)
    for source, message in (
        ("folder", "is no backup"),
        ("file.tar", "was not restored"),
        ("missing", "was not restored"),
    ):
        with pytest.raises(StateError, match=message):
            restore(tmp_path / source, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file.tar"}


def test_an_archive_brings_nothing_of_its_own(store, tmp_path):
    """Names that lead elsewhere, links and other files are left out."""
    backup(store.directory, tmp_path / "copy.tar")
    with tarfile.open(tmp_path / "copy.tar", "a") as archive:
        for name in ("../evil", f"{tmp_path}/evil", "weights/../evil", "evil", "keys/old/evil.pub"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("certificates/x.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    restore(tmp_path / "copy.tar", tmp_path / "new")
    found = [path for path in tmp_path.rglob("*") if "evil" in path.name or path.is_symlink()]
    assert found == []
    assert not (tmp_path / "new" / "certificates" / "x.json").exists()


def test_a_plain_copy_of_a_stopped_servers_directory_is_a_backup(store, tmp_path):
    directory = store.directory
    store.close()
    shutil.copytree(directory, tmp_path / "copy")
    (tmp_path / "copy" / "certificates" / "x.json").symlink_to("/etc/passwd")
    restore(tmp_path / "copy", tmp_path / "new")
    assert verify_state(tmp_path / "new") == []
    assert not (tmp_path / "new" / "certificates" / "x.json").exists()
