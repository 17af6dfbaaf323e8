"""MultimodalClient: adapters train on retained pairs, pairs are excised, and the site verifies."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from flwr_afuic import wire
from flwr_afuic.clients import MultimodalClient, PairData
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import AfuicError, DataError
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.unlearning.pairs import similarities
from flwr_afuic.unlearning.privacy import NO_PRIVACY
from flwr_afuic.unlearning.settings import UnlearningSettings
from tests.unlearning.towers import Towers, pairs

torch.set_num_threads(1)
IDS = [f"p{row // 2}/x{row % 2}" for row in range(12)]
EXCISION = ExcisionSettings(steps=80, lr=0.3, batch_size=8, retained_batch_size=8)


class Hospital(MultimodalClient):
    """Twelve pairs of six patients, on two small linear towers."""

    lr = 0.05
    batch_size = 6
    local_steps = 60

    def __init__(self, inbox, holdout=None):
        super().__init__(inbox=inbox, site="site-0", privacy=NO_PRIVACY)
        self.held_out = holdout
        self.seen = []

    def data(self):
        return PairData(
            pairs(1),
            IDS,
            patients=[name.split("/")[0] for name in IDS],
            classes=["ARDS" if row % 3 else "COVID-19" for row in range(12)],
            holdout=self.held_out,
        )

    def model(self):
        client = self

        class Watched(Towers):
            def embed_images(self, images):
                if torch.is_grad_enabled():
                    client.seen.append(images)
                return super().embed_images(images)

        return Watched()


@pytest.fixture
def inbox(tmp_path):
    return SiteInbox(tmp_path / "inbox.sqlite")


@pytest.fixture
def start():
    return get_arrays(Towers())


def file(inbox, samples):
    return inbox.file(scope="samples", sample_ids=samples, held=IDS).request_id


def unlearning(request, settings=None):
    text = (settings or EXCISION).to_json()
    return {
        wire.TASK: wire.TASK_UNLEARN,
        wire.REQUEST: request,
        wire.SCOPE: "samples",
        wire.SETTINGS: text,
        wire.SEED: 5,
    }


def mean_similarity(arrays, rows, *, adapters=True):
    model, data = Towers(), pairs(1).take(rows)
    set_arrays(model, arrays)
    if adapters:
        return float(similarities(model, data).mean())
    with model.adapters_off():
        return float(similarities(model, data).mean())


def test_training_aligns_the_pairs_and_repeats(inbox, start):
    trained, examples, metrics = Hospital(inbox).fit(start, {wire.SEED: 1})
    again, _, _ = Hospital(inbox).fit(start, {wire.SEED: 1})
    other, _, _ = Hospital(inbox).fit(start, {wire.SEED: 2})
    assert examples == 12
    assert metrics[wire.STEPS] == 60
    assert mean_similarity(trained, range(12)) > mean_similarity(start, range(12)) + 0.2
    assert all(np.array_equal(a, b) for a, b in zip(trained, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(trained, other, strict=True))


def test_erased_pairs_train_no_more(inbox, start):
    file(inbox, [IDS[0], IDS[5]])
    client = Hospital(inbox)
    _, examples, _ = client.fit(start, {wire.SEED: 1})
    images = pairs(1).images
    used = {
        row
        for batch in client.seen
        for image in batch
        for row in range(12)
        if torch.equal(images[row], image)
    }
    assert examples == 10
    assert used == set(range(12)) - {0, 5}


def test_a_patient_is_erased_as_a_whole(inbox, start):
    client = Hospital(inbox)
    client.fit(start, {wire.SEED: 1})
    client.inbox.file(scope="samples", sample_ids=(), patients=["p2"], held=IDS)
    assert set(IDS) - set(client.retained_ids()) == {"p2/x0", "p2/x1"}
    assert client.sample_classes()["p0/x0"] == "COVID-19"


def test_an_unlearning_excises_the_pairs_and_keeps_the_others(inbox, start):
    trained, _, _ = Hospital(inbox).fit(start, {wire.SEED: 1})
    gone, kept = [0, 1, 2, 3], list(range(4, 12))
    request = file(inbox, [IDS[row] for row in gone])
    delta, count, metrics = Hospital(inbox).fit(trained, unlearning(request))
    after = [a + d for a, d in zip(trained, delta, strict=True)]
    base = mean_similarity(trained, gone, adapters=False)
    assert count == 4
    assert mean_similarity(trained, gone) > base + 0.15
    assert mean_similarity(after, gone) < base + 0.05
    assert mean_similarity(after, kept) > mean_similarity(trained, kept) - 0.1
    evidence = wire.Evidence.from_json(metrics[wire.EVIDENCE])
    client = Hospital(inbox)
    ids = [IDS[row] for row in gone]
    assert evidence.before == client.score(trained, ids)
    assert evidence.reference == client.base_score(trained, ids)
    assert evidence.after.accuracy == pytest.approx(client.score(after, ids).accuracy)
    assert evidence.after.accuracy <= evidence.reference.accuracy + 0.3
    assert evidence.before.accuracy > evidence.reference.accuracy
    assert evidence.holdout is None


def test_a_site_that_leaves_with_everything_is_excised_too(inbox, start):
    trained, _, _ = Hospital(inbox).fit(start, {wire.SEED: 1})
    request = inbox.file(scope="client", sample_ids=(), held=IDS).request_id
    config = {**unlearning(request), wire.SCOPE: "client"}
    delta, count, metrics = Hospital(inbox).fit(trained, config)
    after = [a + d for a, d in zip(trained, delta, strict=True)]
    assert count == 12
    assert wire.FAILURE not in metrics
    base = mean_similarity(trained, range(12), adapters=False)
    assert mean_similarity(after, range(12)) < base + 0.05
    same, examples, _ = Hospital(inbox).fit(trained, {wire.SEED: 3})
    assert examples == 0
    assert all(np.array_equal(a, b) for a, b in zip(same, trained, strict=True))


def test_ascent_is_there_to_compare_with(inbox, start):
    trained, _, _ = Hospital(inbox).fit(start, {wire.SEED: 1})
    request = file(inbox, IDS[:4])
    settings = ExcisionSettings(objective="pairs-ascent", steps=20, lr=0.3)
    _, _, metrics = Hospital(inbox).fit(trained, unlearning(request, settings))
    evidence = wire.Evidence.from_json(metrics[wire.EVIDENCE])
    assert evidence.after.loss > evidence.before.loss


def test_what_is_no_excision_is_refused_by_its_code(inbox, start):
    request = file(inbox, IDS[:4])
    config = unlearning(request, UnlearningSettings())
    _, count, metrics = Hospital(inbox).fit(start, config)
    assert count == 0
    assert metrics[wire.FAILURE]
    assert wire.EVIDENCE not in metrics
    with pytest.raises(AfuicError):
        Hospital(inbox).score(start, ["somebody else's"])


def test_verification_looks_for_the_erased_pairs_among_all(inbox, start):
    trained, _, _ = Hospital(inbox).fit(start, {wire.SEED: 1})
    request = file(inbox, IDS[:3])
    config = {
        wire.TASK: wire.TASK_VERIFY,
        wire.REQUEST: request,
        wire.SCOPE: "samples",
    }
    loss, count, metrics = Hospital(inbox).evaluate(trained, config)
    expected = Hospital(inbox).score(trained, IDS[:3])
    assert (loss, count) == (pytest.approx(expected.loss), 3)
    assert metrics["accuracy"] == pytest.approx(expected.accuracy)


def test_held_out_pairs_are_tested_and_in_the_evidence(inbox, start):
    client = Hospital(inbox, holdout=pairs(7, 5))
    trained, _, _ = client.fit(start, {wire.SEED: 1})
    loss, count, metrics = client.evaluate(trained, {})
    assert count == 5
    assert loss > 0
    assert 0 <= metrics["accuracy"] <= 1
    assert Hospital(inbox).evaluate(trained, {})[:2] == (0.0, 0)
    request = file(inbox, IDS[:4])
    _, _, said = client.fit(trained, unlearning(request))
    evidence = wire.Evidence.from_json(said[wire.EVIDENCE])
    assert evidence.holdout is not None
    assert evidence.holdout.loss == pytest.approx(loss)


def test_gradients_and_directions_fit_the_adapters(inbox, start):
    trained, _, _ = Hospital(inbox).fit(start, {wire.SEED: 1})
    found = Hospital(inbox).gradient(trained, IDS, "cross-entropy")
    assert [a.shape for a in found] == [a.shape for a in trained]
    assert any(np.abs(a).max() > 0 for a in found)
    request = file(inbox, IDS[:4])
    config = {**unlearning(request), wire.BASIS_RANK: 3}
    arrays, _, metrics = Hospital(inbox).fit(trained, config)
    assert json.loads(metrics[wire.EXTRAS]) == {"basis": 1}
    basis = arrays[-1]
    assert basis.shape[1] == sum(a.size for a in trained)
    assert np.allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-4)


class Spring:
    """Stands in for a forget lock: keeps everything where it was, and counts."""

    def __init__(self, at):
        self.at, self.calls = [torch.from_numpy(a.copy()) for a in at], []

    def step_(self, trained, lr):
        self.calls.append(lr)
        with torch.no_grad():
            for tensor, value in zip(trained, self.at, strict=True):
                tensor.copy_(value)


def test_a_forget_lock_is_held_after_every_step(inbox, start):
    client = Hospital(inbox)
    client.forget_lock = Spring(start)
    trained, _, _ = client.train([np.array(a) for a in start], {wire.SEED: 1})
    assert client.forget_lock.calls == [pytest.approx(0.05)] * 60
    assert all(np.array_equal(a, b) for a, b in zip(trained, start, strict=True))


def test_a_client_of_a_node_is_made_from_its_context(tmp_path):
    class FromNode(Hospital):
        def __init__(self):  # never called
            raise AssertionError

        held_out = None

    context = Context(
        1, 1, {"partition-id": 3, "inbox": str(tmp_path / "i.sqlite")}, RecordDict(), {}
    )
    client = FromNode.from_context(context)
    assert client.site == "site-3"
    assert client.context is context


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"ids": IDS[:3]}, "3 ids for 12 pairs"),
        ({"ids": [*IDS[:11], IDS[0]]}, "ids repeat"),
        ({"ids": IDS, "patients": ["a"]}, "1 patients for 12 pairs"),
    ],
)
def test_data_that_do_not_fit_are_refused(given, text):
    with pytest.raises(DataError, match=text):
        PairData(pairs(1), **given)
