"""Weights on disk: named by their bytes, whole or not there."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from flwr_afuic.errors import StateError
from flwr_afuic.state.vault import DTYPES, Purged, Vault


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "weights")


def sample():
    return {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(0.5)}


def same(left, right):
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype.newbyteorder("=")
        assert left[name].shape == right[name].shape
        np.testing.assert_array_equal(left[name], right[name])


def test_a_file_is_named_by_its_bytes(vault):
    digest = vault.put(sample())
    path = vault.folder / f"{digest}.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert vault.path(digest) == path
    assert vault.size(digest) == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert digest in vault
    assert vault.digests() == {digest}
    same(vault.get(digest), sample())
    same(load_file(path), {name: sample()[name] for name in load_file(path)})


def test_the_digest_stays_the_same_from_process_to_process(vault):
    code = (
        "import sys, numpy as np\n"
        "from flwr_afuic.state.vault import Vault\n"
        "print(Vault(sys.argv[1]).put({'w': np.arange(6, dtype=np.float32).reshape(2, 3),"
        " 'b': np.array(0.5)}))"
    )
    other = vault.folder.parent / "other"
    found = subprocess.run(
        [sys.executable, "-c", code, str(other)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == vault.put(sample())


def test_putting_again_writes_nothing(vault):
    digest = vault.put(sample())
    before = vault.path(digest).stat()
    assert vault.put(sample()) == digest
    assert vault.path(digest).stat() == before
    assert [path.name for path in vault.folder.iterdir()] == [f"{digest}.safetensors"]


def test_what_differs_has_another_digest(vault):
    base = sample()
    others = [
        {"w": base["w"]},
        {"b": base["b"], "w": base["w"]},
        {"w": base["w"].reshape(3, 2), "b": base["b"]},
        {"w": base["w"].astype(np.float64), "b": base["b"]},
        {"w": base["w"], "b": base["b"].reshape(1)},
        {"v": base["w"], "b": base["b"]},
        {},
    ]
    assert len({vault.put(entry) for entry in [base, *others]}) == 8


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_every_dtype_and_shape(vault, dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    same(vault.get(vault.put({"a": np.asarray(array)})), {"a": np.asarray(array)})


def test_other_layouts_in_memory(vault):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "transposed": base.T,
        "fortran": np.asfortranarray(base),
        "sliced": base[1:, ::2],
        "reversed": base[::-1],
        "broadcast": np.broadcast_to(base[0], (3, 6)),
        "big": base.astype(">f4"),
    }
    same(vault.get(vault.put(arrays)), arrays)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        hnp.arrays(
            st.sampled_from(sorted(DTYPES)), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
        ),
        max_size=4,
    )
)
def test_what_was_put_comes_back(vault, arrays):
    found = vault.get(vault.put(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].tobytes() == array.tobytes()
        assert found[name].shape == array.shape
        assert found[name].flags.writeable


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.array(["a"]), "<U1"),
        (np.array([None]), "object"),
        (np.zeros(2, np.complex64), "complex64"),
        (np.zeros(2, np.longdouble), "float128"),
        (np.zeros(2, "datetime64[s]"), "datetime64"),
        ([1.0], "list"),
        (1.0, "float"),
    ],
)
def test_other_arrays_are_refused_by_name(vault, value, kind):
    with pytest.raises(StateError, match=rf"'bad' is .*{kind}.*convert it"):
        vault.put({"good": np.zeros(2), "bad": value})
    assert list(vault.folder.iterdir()) == []


def test_a_name_the_format_keeps_for_itself_is_refused(vault):
    with pytest.raises(StateError, match="rename it"):
        vault.put({"__metadata__": np.zeros(2)})


@pytest.mark.parametrize("name", ["", "../x", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_only_digests_name_files(vault, name):
    for use in (vault.get, vault.delete, vault.path, vault.size):
        with pytest.raises(StateError, match="no digest"):
            use(name)
    assert name not in vault
    assert 5 not in vault


def test_every_damage_is_named(vault):
    digest = vault.put(sample())
    path = vault.path(digest)
    good = path.read_bytes()
    damaged = [good[:size] for size in range(0, len(good), 7)]
    damaged += [good + b"\0", b"\0" * len(good)]
    for place in range(0, len(good), 5):
        damaged.append(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(StateError, match=f"{digest}.safetensors is damaged"):
            vault.get(digest)
    path.unlink()
    with pytest.raises(StateError, match=f"{digest}.safetensors cannot be read"):
        vault.get(digest)
    with pytest.raises(StateError, match="cannot be read"):
        vault.size(digest)


def test_bytes_that_are_no_weights_are_refused_even_under_their_own_digest(vault):
    for data in (b"", b"text", b"\xff" * 100):
        digest = hashlib.sha256(data).hexdigest()
        vault.path(digest).write_bytes(data)
        with pytest.raises(StateError, match="no readable weights"):
            vault.get(digest)


def test_a_truncated_file_is_healed_by_putting_it_again(vault):
    digest = vault.put(sample())
    vault.path(digest).write_bytes(b"")
    assert vault.put(sample()) == digest
    same(vault.get(digest), sample())


def test_deleting(vault):
    digest = vault.put(sample())
    size = vault.size(digest)
    assert vault.delete(digest) == Purged(digest, f"{digest}.safetensors", size)
    assert vault.delete(digest) is None
    assert digest not in vault
    assert list(vault.folder.iterdir()) == []


def test_leftovers_of_a_crash_are_removed_by_the_one_that_writes(vault):
    (vault.folder / ".partial-1-ab").write_bytes(b"half")
    vault.put(sample())
    assert Vault(vault.folder).digests() == vault.digests()
    assert len(list(vault.folder.iterdir())) == 2
    Vault(vault.folder, clean=True)
    assert len(list(vault.folder.iterdir())) == 1


def test_a_full_disk_leaves_nothing(vault, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StateError, match="No space left on device"):
        vault.put(sample())
    assert list(vault.folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="file"):
        Vault(tmp_path / "file" / "weights")


COPIES = """
import resource, sys, numpy as np
from flwr_afuic.state.vault import Vault
vault = Vault(sys.argv[1])
vault.put({"a": np.ones(10)})
arrays = {str(i): np.ones((1 << 20,), np.float32) for i in range(64)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
digest = vault.put(arrays)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_putting_makes_no_copy_of_the_model(tmp_path):
    grown = subprocess.run(
        [sys.executable, "-c", COPIES, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(grown.stdout) < 64 * 1024, "256 MB of arrays, in kB"
