from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_afuic.federation.snapshots import SnapshotStore


def test_a_snapshot_lives_until_its_last_release() -> None:
    store = SnapshotStore()
    arrays = [np.ones(2)]
    assert store.newest is None
    store.acquire(3, arrays)
    store.acquire(3, [np.zeros(2)])
    assert store.get(3) is arrays, "the first acquisition's arrays are kept"
    store.release(3)
    assert 3 in store
    store.release(3)
    assert 3 not in store
    assert len(store) == 0
    with pytest.raises(KeyError):
        store.get(3)
    with pytest.raises(KeyError):
        store.release(3)


def test_newest() -> None:
    store = SnapshotStore()
    for version in (4, 9, 2):
        store.acquire(version, [])
    assert (store.newest, len(store)) == (9, 3)
    store.release(9)
    assert store.newest == 4


@given(st.lists(st.integers(0, 4), max_size=40), st.randoms())
def test_releases_undo_acquisitions(versions: list[int], random: object) -> None:
    store = SnapshotStore()
    for version in versions:
        store.acquire(version, [])
    assert len(store) == len(set(versions))
    random.shuffle(versions)  # type: ignore[attr-defined]
    for done, version in enumerate(versions, 1):
        store.release(version)
        assert len(store) == len(set(versions[done:]))
