"""Pieces of ``bench forget`` on a tiny federation: shared training, scores, comparisons."""

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from flwr_afuic.app.federation import build_federation
from flwr_afuic.bench import forget_relearn
from flwr_afuic.bench.forget_piece import _judging, load_arrays, run_piece
from flwr_afuic.bench.forget_protocol import Piece, Protocol
from flwr_afuic.bench.forget_sites import Replies
from flwr_afuic.errors import DataError
from tests.app import tiny

PROTOCOL = Protocol(staleness=1, rounds_after=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("forget")


@pytest.fixture(scope="module")
def piece():
    return Piece(tiny.settings(), PROTOCOL, "backdoor", "original")


@pytest.fixture(scope="module")
def found(folder, piece):
    """Run the bases, AFU-IC, and a comparator that needs the time before the request."""
    with tiny.shortened(), mock.patch.object(forget_relearn, "_STEPS", 4):
        methods = ("original", "retrain", "afuic", "no_unlearning", "federaser")
        return {method: run_piece(piece.of(method), folder) for method in methods}


def test_training_up_to_the_request_is_done_once(found):
    kept = len(found["original"]["curve"])
    assert kept == 1
    assert found["original"]["replies_found"] == 0
    assert found["afuic"]["replies_found"] == found["federaser"]["replies_found"] >= 12


def test_a_method_is_the_same_without_the_shared_training(found, folder, piece, tmp_path):
    for name in ("original", "retrain"):
        path = piece.of(name).result(tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("json", "safetensors"):
            stored = piece.of(name).result(folder).with_suffix(f".{suffix}")
            path.with_suffix(f".{suffix}").write_bytes(stored.read_bytes())
    with mock.patch.object(forget_relearn, "_STEPS", 4):
        again = run_piece(piece.of("federaser"), tmp_path)
    assert again["replies_found"] == 0
    assert again["curve"] == found["federaser"]["curve"]
    assert again["merge"] == found["federaser"]["merge"]


def test_every_round_from_the_request_on_is_scored(found, piece):
    rounds = list(map(int, found["afuic"]["curve"]))
    first = piece.settings.request_round
    assert rounds == list(range(first, first + 1 + 3 + 1))
    assert list(map(int, found["retrain"]["curve"])) == rounds
    assert found["afuic"]["merge"]["round"] in rounds
    assert found["afuic"]["erasure"]["staleness"] >= 1
    assert 0 < found["afuic"]["distance_ratio"] < 2
    assert len(found["afuic"]["relearn"]) == 3
    assert found["no_unlearning"]["merge"] is None


def test_results_and_models_are_on_disk(found, folder, piece):
    stored = json.loads(piece.of("afuic").result(folder).read_text())
    assert stored["curve"] == found["afuic"]["curve"]
    assert "data_dir" not in stored["settings"] or stored["settings"]["data_dir"] == ""
    with pytest.raises(DataError, match="run its piece again"):
        load_arrays(piece.of("pga").arrays(folder), ["x"])


def test_a_kept_reply_comes_back_and_a_damaged_one_says_so(tmp_path):
    replies = Replies(tmp_path, keeps=True)
    replies.put("a", ([np.ones((2, 2), np.float32)], 5, {"loss": 0.5}))
    arrays, examples, metrics = replies.get("a")
    assert (examples, metrics) == (5, {"loss": 0.5})
    assert arrays[0].tolist() == [[1, 1], [1, 1]]
    assert replies.get("b") is None
    Replies(tmp_path, keeps=False).put("c", ([], 1, {}))
    assert replies.get("c") is None
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="delete"):
        replies.get("a")


def test_constants_are_chosen_on_validation_data(piece):
    data = build_federation(piece.settings)
    judged = _judging(replace(piece, protocol=Protocol(1, 3, "tuning")))
    assert judged.dataset.test is data.tuning
    assert len(judged.triggered) == int((data.tuning.labels != data.backdoor_label).sum())
    assert judged.forget is data.forget
    assert _judging(piece) is data


# ---- the scenarios' data -------------------------------------------------------------


def data_of(**changes):
    return build_federation(replace(tiny.settings(), **changes))


def test_a_class_is_at_the_target_alone_and_no_proxy_shows_it():
    data = data_of(scenario="exclusive")
    others = {int(label) for site in data.sites[1:] for label in site.labels}
    (alone,) = {int(label) for label in data.sites[0].labels} - others
    assert alone not in {int(label) for label in data.proxies.labels}
    assert sum(map(len, data.sites)) == len(data.dataset.train)
    assert len(data.forget) == len(data.sites[0])


def test_one_patient_has_the_wrong_label_and_is_erased():
    data, clean = data_of(scenario="patient", scope="samples"), data_of(scenario="clean")
    changed = (data.sites[0].labels != clean.sites[0].labels).nonzero().flatten()
    assert 1 <= len(changed) <= 16
    assert len(set(clean.sites[0].labels[changed].tolist())) == 1
    assert set(data.forget.ids) == {data.sites[0].ids[row] for row in changed}


def test_iid_sites_hold_equal_shares_however_many():
    sizes = [len(site) for site in data_of(partition="iid", sites=20, scenario="clean").sites]
    assert max(sizes) - min(sizes) <= 1
