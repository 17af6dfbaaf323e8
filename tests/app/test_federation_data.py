"""The data of the demo: who holds what, what is planted, and what is to be forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_afuic.app.federation import build_federation
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.data.probes import Trigger, apply_trigger
from flwr_afuic.errors import AfuicError, DataError
from tests.app.tiny import write_npz


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return str(write_npz(tmp_path_factory.mktemp("data") / "tiny.npz"))


def build(npz, **changes):
    values = {"sites": 3, "scenario": "clean", **changes}
    return build_federation(AppSettings(dataset=npz, **values))


def test_every_training_image_is_at_exactly_one_site(npz):
    data = build(npz, sites=4)
    ids = [sample for site in data.sites for sample in site.ids]
    assert len(ids) == len(set(ids)) == len(data.dataset.train)
    assert set(ids) == set(data.dataset.train.ids)


@pytest.mark.parametrize("seed", range(5))
def test_the_target_holds_its_share(npz, seed):
    data = build(npz, sites=6, seed=seed)
    assert 0.12 <= len(data.sites[0]) / len(data.dataset.train) <= 0.35


def test_validation_is_halved_and_the_halves_are_apart_from_all_else(npz):
    data = build(npz)
    groups = [set(data.proxies.ids), set(data.tuning.ids), set(data.dataset.train.ids)]
    groups.append(set(data.dataset.test.ids))
    assert abs(len(data.proxies) - len(data.tuning)) <= 1
    assert groups[0] | groups[1] == set(data.dataset.val.ids)
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_the_backdoor_is_at_the_target_only(npz):
    clean, data = build(npz), build(npz, scenario="backdoor")
    assert clean.triggered is None
    changed = (clean.sites[0].images != data.sites[0].images).flatten(1).any(1)
    relabelled = clean.sites[0].labels != data.sites[0].labels
    assert changed.any()
    assert not (relabelled & ~changed).any()
    assert (data.sites[0].labels[changed] == data.backdoor_label).all()
    for before, after in zip(clean.sites[1:], data.sites[1:], strict=True):
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.labels, after.labels)
    # Success is measured on held-out images of other classes.
    trigger = Trigger.for_channels(1)
    test = data.dataset.test
    others = test.images[test.labels != data.backdoor_label]
    assert torch.equal(data.triggered, apply_trigger(others, trigger))


def test_wrong_labels_are_at_the_target_only(npz):
    clean, data = build(npz), build(npz, scenario="mislabel", poison_fraction=0.5)
    wrong = clean.sites[0].labels != data.sites[0].labels
    assert float(wrong.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(clean.sites[0].images, data.sites[0].images)
    assert torch.equal(clean.sites[1].labels, data.sites[1].labels)


def test_client_scope_forgets_the_whole_target_as_it_was_trained(npz):
    data = build(npz, scenario="backdoor")
    assert data.forget.ids == data.sites[0].ids
    assert torch.equal(data.forget.images, data.sites[0].images)
    assert torch.equal(data.forget.labels, data.sites[0].labels)


@pytest.mark.parametrize("scenario", ["clean", "backdoor", "mislabel"])
def test_samples_scope_forgets_a_share_planted_ones_first(npz, scenario):
    data = build(npz, scenario=scenario, scope="samples", poison_fraction=0.1)
    held = len(data.sites[0])
    assert len(data.forget) == round(0.3 * held)
    assert set(data.forget.ids) <= set(data.sites[0].ids)
    clean = build(npz)
    same = (clean.sites[0].images == data.sites[0].images).flatten(1).all(1)
    same &= clean.sites[0].labels == data.sites[0].labels
    planted = {data.sites[0].ids[row] for row in np.flatnonzero(~same.numpy())}
    assert planted <= set(data.forget.ids)


def test_a_share_of_next_to_nothing_is_one_sample(npz):
    data = build(npz, scope="samples", forget_fraction=1e-6)
    assert len(data.forget) == 1


def test_the_seed_decides_who_holds_what(npz):
    one, other = build(npz, seed=1, scenario="backdoor"), build(npz, seed=2, scenario="backdoor")
    assert one.sites[0].ids != other.sites[0].ids
    assert build(npz, seed=1, scenario="backdoor") is one  # made once a process
    build_federation.cache_clear()
    again = build(npz, seed=1, scenario="backdoor")
    assert again.sites[0].ids == one.sites[0].ids
    assert torch.equal(again.sites[0].images, one.sites[0].images)


def test_a_sites_data_keep_their_ids(npz):
    data = build(npz)
    held = data.site_data(1)
    assert tuple(held.ids) == tuple(data.sites[1].ids)
    assert held.images.shape == data.sites[1].images.shape


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "no-such-set"},
        {"partition": "by-hand"},
        {"sites": 500},
        {"alpha": 1e-9, "sites": 20},
    ],
)
def test_what_cannot_be_built_is_one_clear_line(npz, changes):
    values = {"dataset": npz, "sites": 3, **changes}
    with pytest.raises(AfuicError) as caught:
        build_federation(AppSettings(**values))
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_one_clear_line(npz, tmp_path):
    cut = tmp_path / "cut.npz"
    with open(npz, "rb") as file:
        cut.write_bytes(file.read()[:5000])
    with pytest.raises(DataError) as caught:
        build_federation(AppSettings(dataset=str(cut)))
    assert "\n" not in str(caught.value)
