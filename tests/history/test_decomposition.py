"""GSD over a history: raw or compressed, it finds the same basis."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_afuic.calibration.blocks import Blocks
from flwr_afuic.calibration.exclusive import decompose
from flwr_afuic.errors import HistoryError
from flwr_afuic.federation.buffer import Update
from flwr_afuic.history.decomposition import decompose_history, recording_for_subspaces
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.raw import RawHistory
from flwr_afuic.history.recorder import Recorder

NAMES = ["vision_model.layers.0.lora_A", "text_model.layers.0.lora_A"]
SIZES = [1000, 800]
BLOCKS = Blocks(NAMES, SIZES)
ROUNDS, CLIENTS = 20, 4


def updates(seed: int = 0):
    """Updates by round and site, and the directions that are site 0's alone, by block."""
    rng = np.random.default_rng(seed)
    directions = [np.linalg.qr(rng.normal(size=(d, 9)))[0].T for d in SIZES]
    rounds = []
    for _ in range(ROUNDS):
        sites = {}
        for number in range(CLIENTS):
            parts = []
            for basis in directions:
                strengths = np.ones(9) if number == 0 else np.repeat([1.0, 0.0], [6, 3])
                part = (rng.normal(size=9) * strengths) @ basis
                parts.append((part + 4e-4 * rng.normal(size=part.size)).astype(np.float32))
            sites[f"site-{number}"] = parts
        rounds.append(sites)
    own = {"vision/0": directions[0][6:], "text/0": directions[1][6:]}
    return rounds, own


def compressed(rounds) -> MemoryStore:
    store = MemoryStore()
    recorder = Recorder(store, recording_for_subspaces())
    for version, sites in enumerate(rounds, 1):
        for site, arrays in sites.items():
            recorder.add(site, arrays, 10.0)
        recorder.merged(version, version)
        recorder.close()
    return store


def raw(rounds) -> MemoryStore:
    store = MemoryStore()
    history = RawHistory(store)
    history.begin([np.zeros(d, np.float32) for d in SIZES], NAMES)
    for version, sites in enumerate(rounds, 1):
        for site, arrays in sites.items():
            history.add(Update(site, version - 1, 10, arrays), 1.0)
        history.merged(version, version)
    return store


def test_a_raw_history_gives_what_the_updates_give():
    rounds, own = updates()
    found = decompose_history(raw(rounds), "site-0", BLOCKS)
    assert found.sites == ("site-1", "site-2", "site-3")
    assert found.updates == ROUNDS * CLIENTS
    for index, block in ((0, "vision/0"), (1, "text/0")):
        rows = {s: np.stack([r[s][index] for r in rounds]) for s in rounds[0]}
        direct = decompose(rows.pop("site-0"), list(rows.values()))
        np.testing.assert_allclose(found.basis.rows[block], direct.basis, atol=1e-10)
        np.testing.assert_allclose(found.blocks[block].cosines, direct.cosines, atol=1e-10)
        assert np.linalg.norm(own[block] @ direct.basis.T, axis=1).min() > 0.99


@pytest.mark.parametrize("seed", [0, 1])
def test_the_basis_is_stable_under_the_default_compression(seed):
    rounds, own = updates(seed)
    exact = decompose_history(raw(rounds), "site-0", BLOCKS)
    coarse = decompose_history(compressed(rounds), "site-0", BLOCKS)
    assert coarse.basis.ranks == exact.basis.ranks == {"text/0": 3, "vision/0": 3}
    for block, rows in exact.basis.rows.items():
        cosines = np.linalg.svd(rows @ coarse.basis.rows[block].T, compute_uv=False)
        assert cosines.min() > 0.99
        captured = np.linalg.norm(own[block] @ coarse.basis.rows[block].T, axis=1)
        assert captured.min() > 0.985


def test_directions_may_stand_in_for_updates():
    rounds, own = updates()
    given = np.zeros((3, sum(SIZES)))
    given[:, : SIZES[0]] = own["vision/0"]
    found = decompose_history(raw(rounds), "site-0", BLOCKS, directions=given)
    assert found.basis.ranks == {"vision/0": 3}
    assert found.updates == ROUNDS * (CLIENTS - 1)
    assert np.linalg.norm(own["vision/0"] @ found.basis.rows["vision/0"].T, axis=1).min() > 0.99


def test_sites_erased_before_are_no_retained_ones():
    rounds, _ = updates()
    found = decompose_history(raw(rounds), "site-0", BLOCKS, without=["site-2"])
    assert found.sites == ("site-1", "site-3")


def test_what_cannot_be_decomposed():
    rounds, _ = updates()
    store = raw(rounds[:2])
    with pytest.raises(HistoryError, match="no update of nobody"):
        decompose_history(store, "nobody", BLOCKS)
    with pytest.raises(HistoryError, match="any site that stays"):
        decompose_history(store, "site-0", BLOCKS, without=["site-1", "site-2", "site-3"])
    with pytest.raises(HistoryError, match="1800 entries, the model 7"):
        decompose_history(store, "site-0", Blocks(["a"], [7]))


def test_the_summary_is_plain():
    rounds, _ = updates()
    row = decompose_history(raw(rounds[:5]), "site-0", BLOCKS).summary()
    assert row["rank"] == sum(b["exclusive"] for b in row["blocks"].values())
    assert not row["entangled"]
