"""TorchClient: four hooks, and it trains, forgets and verifies."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flwr_afuic import wire
from flwr_afuic.clients import SiteData, TorchClient
from flwr_afuic.clients.torch_client import open_inbox
from flwr_afuic.errors import AfuicError, ConfigError, DataError, UnknownSampleError
from flwr_afuic.federation.layout import Layout
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.unlearning.inference import score
from flwr_afuic.unlearning.settings import UnlearningSettings
from tests.erasure_helpers import Site, ToyClient, norm_model, request_id, toy_model

QUICK = UnlearningSettings(steps=40, lr=0.1, batch_size=8, anchor_batch_size=8)


@pytest.fixture
def site():
    return Site(0, ids=[f"patient-0-{row}" for row in range(24)])


class Spy(ToyClient):
    """Notes the images of every training batch."""

    def __init__(self, site, build=toy_model):
        super().__init__(site, build)
        self.seen = []

    def model(self):
        model = super().model()
        model.register_forward_pre_hook(
            lambda module, inputs: self.seen.append(inputs[0]) if module.training else None
        )
        return model


def start(build=toy_model):
    return get_arrays(build())


def rows_of(client, batches):
    images = client.data().images
    return {
        row for batch in batches for image in batch
        for row in range(len(images)) if torch.equal(images[row], image)
    }  # fmt: skip


def test_only_retained_rows_train(site):
    client = Spy(site)
    client.local_steps = 12
    client.fit(start(), {wire.SEED: 1})
    assert rows_of(client, client.seen) == set(range(24))
    site.file(["patient-0-3", "patient-0-20"])
    again = Spy(site)
    again.local_steps = 12
    _, examples, _ = again.fit(start(), {wire.SEED: 2})
    assert examples == 22
    assert rows_of(again, again.seen) == set(range(24)) - {3, 20}


def test_delta_and_weights_agree(site):
    before = start()
    weights, _, _ = ToyClient(site).fit(before, {wire.SEED: 1})
    delta, _, metrics = ToyClient(site).fit(before, {wire.SEED: 1, wire.WANT_DELTA: True})
    assert metrics[wire.KIND] == wire.KIND_DELTA
    for base, change, after in zip(before, delta, weights, strict=True):
        np.testing.assert_allclose(base + change, after, atol=1e-6)


def test_the_seed_decides_everything(site):
    def train(seed, noise):
        torch.manual_seed(noise)
        return ToyClient(site).fit(start(), {wire.SEED: seed})[0]

    one, same, other = train(1, 0), train(1, 99), train(2, 0)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_training_learns_and_reports(site):
    client = ToyClient(site)
    client.local_steps = 60
    weights, _, metrics = client.fit(start(), {wire.SEED: 1})
    assert metrics["train_accuracy"] > 0.8
    assert metrics[wire.STEPS] == 60
    model = toy_model()
    set_arrays(model, weights)
    data = client.data()
    assert score(model, data.images, data.labels).accuracy > 0.9


@pytest.mark.parametrize(("steps", "epochs", "taken"), [(None, 1, 3), (None, 2, 6), (4, 1, 4)])
def test_steps_or_epochs(site, steps, epochs, taken):
    client = ToyClient(site)
    client.local_steps, client.local_epochs = steps, epochs
    assert client.fit(start(), {wire.SEED: 1})[2][wire.STEPS] == taken


def test_a_training_makes_one_model(site):
    made = []
    client = ToyClient(site, lambda: made.append(1) or toy_model())
    client.fit(start(), {wire.SEED: 1})
    assert len(made) == 1


def test_kinds_are_what_the_server_infers(site):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = norm_model()
            self.register_buffer("table", torch.ones(4))

        def forward(self, x):
            return self.inner(x) * self.table[0]

    state = Scaled().state_dict()
    layout = Layout.of(state, [t.numpy() for t in state.values()])
    assert ToyClient(site, Scaled).array_kinds() == [spec.kind for spec in layout.specs]
    # A buffer neither side calls a statistic must not double with every version.
    delta, _, _ = ToyClient(site, Scaled).fit(start(Scaled), {wire.SEED: 1, wire.WANT_DELTA: True})
    assert not delta[list(state).index("table")].any()


def test_evaluation_is_on_held_out_data(site):
    client = ToyClient(site)
    loss, count, metrics = client.evaluate(start(), {})
    model, data = toy_model(), client.data()
    expected = score(model, data.holdout_images, data.holdout_labels)
    assert (loss, count) == (pytest.approx(expected.loss), 24)
    assert metrics["accuracy"] == expected.accuracy


class NoHoldout(ToyClient):
    def data(self):
        held = super().data()
        return SiteData(held.images, held.labels, held.ids)


def test_without_held_out_data_there_is_nothing_to_evaluate(site):
    assert NoHoldout(site).evaluate(start(), {})[:2] == (0.0, 0)


def trained(site, build=toy_model):
    client = ToyClient(site, build)
    client.local_steps = 80
    return client.fit(start(build), {wire.SEED: 3})[0]


def unlearn(client, arrays, scope="client", settings=QUICK, **config):
    config = {
        wire.TASK: wire.TASK_UNLEARN,
        wire.REQUEST: request_id(1),
        wire.KNOWN: request_id(1),
        wire.SCOPE: scope,
        wire.SETTINGS: settings.to_json(),
        wire.SEED: 4,
        **config,
    }
    return client.fit(arrays, config)


def test_unlearning_a_whole_site_raises_its_loss_to_the_level(site):
    client, before = ToyClient(site), trained(site)
    site.file(number=1)
    delta, _, metrics = unlearn(client, before)
    evidence = wire.Evidence.from_json(metrics[wire.EVIDENCE])
    assert evidence.before.accuracy > 0.9  # it knew the flipped labels
    assert evidence.after.loss > evidence.before.loss
    assert evidence.after.count == 24
    assert evidence.reference == evidence.holdout  # no reference: the hold-out is the level
    after = [base + change for base, change in zip(before, delta, strict=True)]
    model, data = toy_model(), client.data()
    set_arrays(model, after)
    assert score(model, data.images, data.labels).loss == pytest.approx(
        evidence.after.loss, rel=1e-3
    )
    # The same numbers come back with a verification of that model.
    config = {wire.TASK: wire.TASK_VERIFY, wire.REQUEST: request_id(1)}
    loss, count, reply = client.evaluate(after, config)
    assert (loss, count) == (pytest.approx(evidence.after.loss, rel=1e-3), 24)
    assert reply["accuracy"] == pytest.approx(evidence.after.accuracy)


def test_unlearning_with_reference_and_proxies(site):
    client, before = ToyClient(site), trained(site)
    site.file(["patient-0-0", "patient-0-1"], number=1)
    fresh, proxies = start(), np.random.default_rng(0).normal(size=(16, 1, 4, 4))
    delta, _, metrics = unlearn(
        client,
        [*before, *fresh, proxies.astype(np.float32)],
        scope="samples",
        **{wire.EXTRAS: json.dumps({"reference": len(fresh), "proxies": 1})},
    )
    evidence = wire.Evidence.from_json(metrics[wire.EVIDENCE])
    assert evidence.after.count == 2
    model = toy_model()
    expected = score(model, client.data().images[:2], client.data().labels[:2])
    assert evidence.reference.loss == pytest.approx(expected.loss)
    assert len(delta) == len(before)


def test_unlearning_repeats_with_its_seed(site):
    before = trained(site)
    site.file(number=1)
    one, two = (unlearn(ToyClient(site), before)[0] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_unlearning_leaves_statistics_alone(site):
    before = trained(site, norm_model)
    site.file(["patient-0-0"], number=1)
    client = ToyClient(site, norm_model)
    delta, _, _ = unlearn(client, before, scope="samples")
    for kind, old, new in zip(client.array_kinds(), before, delta, strict=True):
        if kind != "trained":
            assert np.array_equal(old, new)


def test_with_nothing_to_anchor_on_the_failure_is_a_code(site):
    site.file(number=1)
    _, _, metrics = unlearn(NoHoldout(site), start())
    assert metrics[wire.FAILURE] == "AFUIC-100 (ConfigError); see the site's log"
    with pytest.raises(ConfigError, match="give SiteData holdout images"):
        NoHoldout(site)._anchor(type("Task", (), {"proxies": None})(), NoHoldout(site).data())


def test_a_verification_of_samples_no_longer_held_names_none(site):
    site.inbox.file(
        scope="samples", sample_ids=["gone-7"], held=["gone-7"], request_id=request_id()
    )
    config = {wire.TASK: wire.TASK_VERIFY, wire.REQUEST: request_id()}
    with pytest.raises(AfuicError) as caught:
        ToyClient(site).evaluate(start(), config)
    assert str(caught.value) == "AFUIC-502 (UnknownSampleError); see the site's log"
    with pytest.raises(UnknownSampleError, match="gone-7"):
        ToyClient(site).score(start(), ["gone-7"])


@pytest.mark.parametrize(
    ("ids", "text"), [(["a"], "2 images, 2 labels and 1 ids"), (["a", "a"], "ids repeat")]
)
def test_data_need_one_id_each(ids, text):
    with pytest.raises(DataError, match=text):
        SiteData(torch.zeros(2, 1, 4, 4), torch.zeros(2), ids)


def context(run=7, node=3, **config):
    return Context(run, node, config, RecordDict(), {})


def test_the_inbox_is_where_the_node_says(tmp_path):
    path = tmp_path / "in" / "box.sqlite"
    assert open_inbox(context(inbox=str(path))).path == path


def test_without_one_each_node_of_each_run_has_its_own_and_keeps_it():
    one, other = context(), context()
    first = open_inbox(one)
    first.file(scope="client", sample_ids=(), held=["a"])
    assert open_inbox(one).tombstones() == {"a"}
    # Same ids, another run: no tombstones of strangers.
    assert open_inbox(other).tombstones() == set()


def test_a_client_comes_from_its_context(tmp_path):
    class Mine(ToyClient):
        def data(self):
            assert self.context.node_id == 3
            return super().data()

        script, build = Site(0), staticmethod(toy_model)

    client = Mine.from_context(context(**{"partition-id": 2, "inbox": str(tmp_path / "x")}))
    assert isinstance(client, TorchClient)
    assert client.site == "site-2"
    assert len(client.sample_ids()) == 24


class Ward(Spy):
    """A client that knows whose each sample is."""

    count = 24

    def data(self):
        held = super().data()
        ids = held.ids[: self.count]
        whose = [f"person-{row % 4}" for row in range(len(ids))]
        return SiteData(held.images[: self.count], held.labels[: self.count], ids, patients=whose)


def test_an_erased_patient_does_not_train_nor_what_comes_later_of_them(site):
    client = Ward(site)
    client.count = 20
    client.local_steps = 12
    client.fit(start(), {wire.SEED: 1})
    client.inbox.file(
        scope="samples", sample_ids=(), held=client.sample_ids(), patients=["person-1"]
    )
    grown = Ward(site)  # rows 20 to 23 came since
    grown.local_steps = 12
    _, examples, _ = grown.fit(start(), {wire.SEED: 2})
    theirs = {1, 5, 9, 13, 17, 21}
    assert examples == 24 - len(theirs)
    assert rows_of(grown, grown.seen) == set(range(24)) - theirs
    (notice,) = grown.inbox.unfinished()
    assert notice.count == 5


def test_every_sample_needs_a_patient_if_one_has():
    with pytest.raises(DataError, match="1 patients for 2 samples"):
        SiteData(torch.zeros(2, 1, 4, 4), torch.zeros(2), ["a", "b"], patients=["p"])
