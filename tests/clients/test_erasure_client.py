"""The erasure protocol at the site, without any framework."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from flwr_afuic import wire
from flwr_afuic.erasure.inbox import CANCELLED, CLOSED, KNOWN
from flwr_afuic.errors import AfuicError, UnknownSampleError
from tests.erasure_helpers import ScriptedClient, Site, request_id

START = [np.zeros(3, np.float32)]
SEED = {wire.SEED: 1}


@pytest.fixture
def site():
    return Site(kinds=["trained"])


@pytest.fixture
def client(site):
    return ScriptedClient(site)


def notices(metrics):
    return wire.decode_notices(metrics[wire.PENDING]) if wire.PENDING in metrics else []


def unlearn_config(number=1, **changes):
    return {
        **SEED,
        wire.TASK: wire.TASK_UNLEARN,
        wire.REQUEST: request_id(number),
        wire.SCOPE: "samples",
        wire.KNOWN: request_id(number),
        **changes,
    }


def test_it_says_who_it_is_and_what_was_filed(site, client):
    said = client.get_properties({})
    assert said == {wire.CLIENT: wire.PROTOCOL, wire.SITE: "site-0", wire.SCORES: True}
    site.file(["patient-0-1"], number=1)
    assert [n.request_id for n in notices(client.get_properties({}))] == [request_id(1)]


def test_weights_or_a_delta_and_both_say_the_same(client):
    weights, examples, plain = client.fit(START, SEED)
    delta, _, metrics = client.fit(START, {**SEED, wire.WANT_DELTA: True})
    assert examples == 4
    assert wire.KIND not in plain
    assert metrics[wire.KIND] == wire.KIND_DELTA
    np.testing.assert_allclose(START[0] + delta[0], weights[0], atol=1e-7)
    assert delta[0].dtype == np.float32


def test_without_kinds_it_returns_weights(site, client):
    site.kinds = None
    _, _, metrics = client.fit(START, {**SEED, wire.WANT_DELTA: True})
    assert wire.KIND not in metrics


def test_statistics_and_counters_are_values_not_differences(site, client):
    site.kinds = ["trained", "statistic", "counter"]
    start = [np.zeros(3, np.float32), np.full(2, 5, np.float32), np.array(7, np.int64)]
    delta, _, _ = client.fit(start, {**SEED, wire.WANT_DELTA: True})
    assert delta[1].tolist() == [6, 6]
    assert delta[2] == 8


def test_training_leaves_the_arrays_it_got_alone(client):
    given = [np.ones(3, np.float32)]
    given[0].flags.writeable = False
    client.fit(given, SEED)
    assert given[0].tolist() == [1, 1, 1]


def test_erased_samples_never_train_again(site, client):
    site.file(["patient-0-1"], number=1)
    client.fit(START, {**SEED, wire.KNOWN: request_id(1)})
    client.fit(START, {**SEED, wire.KNOWN: "", wire.CLOSED: request_id(1)})
    ScriptedClient(site).fit(START, SEED)
    assert site.trained_on == [["patient-0-0", "patient-0-2", "patient-0-3"]] * 3


def test_a_cancelled_request_frees_its_samples(site, client):
    site.file(["patient-0-1"], number=1)
    client.fit(START, {**SEED, wire.KNOWN: "", wire.CANCELLED: request_id(1)})
    assert site.inbox.status(request_id(1)) == CANCELLED
    assert site.trained_on == [site.ids]


def test_a_site_with_news_does_not_train_in_vain(site, client):
    site.file(["patient-0-1"], number=1)
    same, examples, metrics = client.fit(START, {**SEED, wire.KNOWN: "", wire.CLOSED: ""})
    assert (examples, metrics[wire.STEPS]) == (0, 0)
    assert same[0].tolist() == START[0].tolist()
    assert [n.request_id for n in notices(metrics)] == [request_id(1)]
    assert site.trained_on == []


def test_under_a_server_without_erasure_it_trains_on_what_is_kept(site, client):
    site.file(["patient-0-1"], number=1)
    _, examples, _ = client.fit(START, SEED)
    assert examples == 3


def test_with_everything_erased_it_has_nothing_to_train_on(site, client):
    site.file(number=1)
    result, examples, metrics = client.fit(
        START, {**SEED, wire.KNOWN: "", wire.CLOSED: request_id(1), wire.WANT_DELTA: True}
    )
    assert examples == 0
    assert metrics[wire.KIND] == wire.KIND_DELTA
    assert not result[0].any()
    assert site.trained_on == []


def test_what_is_filed_during_training_travels_with_that_reply(site, client):
    site.on_train = lambda: site.file(["patient-0-1"], number=1)
    _, _, metrics = client.fit(START, {**SEED, wire.KNOWN: ""})
    assert [n.request_id for n in notices(metrics)] == [request_id(1)]


def test_news_are_told_until_the_server_names_them(site, client):
    site.file(["patient-0-1"], number=1)
    site.file(["patient-0-2"], number=2)
    _, _, metrics = client.evaluate(START, {wire.KNOWN: request_id(1)})
    assert [n.request_id for n in notices(metrics)] == [request_id(2)]
    assert site.inbox.status(request_id(1)) == KNOWN
    # Another server, or the same one started anew, does not name it: it is told again.
    assert len(notices(client.get_properties({}))) == 2
    assert len(notices(client.get_properties({wire.CLOSED: request_id(1)}))) == 1
    assert site.inbox.status(request_id(1)) == CLOSED


def test_more_requests_than_a_reply_may_hold_come_one_reply_after_another(site, client):
    site.ids = [f"p{row:03d}" for row in range(wire.MAX_PENDING + 5)]
    filed = {site.file([sample]) for sample in site.ids}
    first = [n.request_id for n in notices(client.get_properties({}))]
    assert len(first) == wire.MAX_PENDING
    rest = [n.request_id for n in notices(client.get_properties({wire.KNOWN: ",".join(first)}))]
    assert set(first) | set(rest) == filed


def test_unlearning_reads_its_samples_from_the_inbox(site, client):
    site.file(["patient-0-1", "patient-0-3"], number=1)
    snapshot, reference = [np.ones(3, np.float32)], [np.full(3, 2, np.float32)]
    proxies = np.zeros((2, 1, 4, 4), np.float32)
    config = unlearn_config(
        **{wire.EXTRAS: json.dumps({"reference": 1, "proxies": 1}), wire.SETTINGS: '{"steps": 3}'}
    )
    delta, examples, metrics = client.fit([*snapshot, *reference, proxies], config)
    task = site.unlearned[0]
    assert task.forget_ids == ["patient-0-1", "patient-0-3"]
    assert [a.tolist() for a in task.snapshot] == [[1, 1, 1]]
    assert [a.tolist() for a in task.reference] == [[2, 2, 2]]
    assert task.proxies.shape == (2, 1, 4, 4)
    assert (task.settings, task.seed) == ('{"steps": 3}', 1)
    assert delta[0].tolist() == [0, 0, -1]
    assert metrics[wire.KIND] == wire.KIND_ERASURE
    assert metrics[wire.REQUEST] == request_id(1)
    assert examples == 4
    assert wire.Evidence.from_json(metrics[wire.EVIDENCE]).steps == 10
    assert wire.PENDING not in metrics


def test_without_extras_there_is_neither_reference_nor_proxies(site, client):
    site.file(["patient-0-1"], number=1)
    client.fit(START, unlearn_config())
    assert site.unlearned[0].reference is None
    assert site.unlearned[0].proxies is None


def test_an_operators_request_erases_all_the_site_holds(site, client):
    client.fit(START, unlearn_config(5, **{wire.SCOPE: "client"}))
    assert site.unlearned[0].forget_ids == site.ids
    assert site.inbox.tombstones() == set(site.ids)
    client.fit(START, {**SEED, wire.KNOWN: request_id(5)})
    assert site.trained_on == []


def test_a_samples_request_the_inbox_does_not_hold_is_a_failure_with_a_code(site, client):
    _, examples, metrics = client.fit(START, unlearn_config(8))
    assert metrics[wire.FAILURE] == "AFUIC-500 (ErasureError); see the site's log"
    assert examples == 0
    assert wire.EVIDENCE not in metrics
    assert site.unlearned == []


def test_verification_scores_the_erased_samples(site, client):
    site.file(["patient-0-1"], number=1)
    asked = []
    client.score = lambda parameters, ids: asked.append(list(ids)) or site.scores()
    config = {wire.TASK: wire.TASK_VERIFY, wire.REQUEST: request_id(1), wire.KNOWN: request_id(1)}
    loss, count, metrics = client.evaluate(START, config)
    assert (loss, count, metrics["accuracy"]) == (1.1, 4, 0.4)
    assert metrics[wire.REQUEST] == request_id(1)
    assert asked == [["patient-0-1"]]


SECRET = "patient-0-1 of Mrs Smith"


def fails_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(SECRET), "AFUIC-000 (RuntimeError); see the site's log"),
        (UnknownSampleError(SECRET), "AFUIC-502 (UnknownSampleError); see the site's log"),
        (KeyError(SECRET), "AFUIC-000 (KeyError); see the site's log"),
    ],
)
@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("train", lambda c: c.fit(START, SEED)),
        ("test", lambda c: c.evaluate(START, {})),
        (
            "score",
            lambda c: c.evaluate(START, {wire.TASK: wire.TASK_VERIFY, wire.REQUEST: request_id(1)}),
        ),
        ("sample_ids", lambda c: c.fit(START, SEED)),
    ],
)
def test_no_text_of_an_exception_leaves_the_site(site, client, method, call, error, code):
    site.file(["patient-0-1"], number=1)
    setattr(client, method, fails_with(error))
    with pytest.raises(AfuicError) as caught:
        call(client)
    assert str(caught.value) == code
    assert caught.value.__suppress_context__


def test_a_failed_unlearning_says_its_code_or_is_tried_again(site, client):
    site.file(["patient-0-1"], number=1)
    # What the package knows to be hopeless is reported; anything else is an error reply.
    site.on_unlearn = fails_with(UnknownSampleError(SECRET))
    _, _, metrics = client.fit(START, unlearn_config())
    assert metrics[wire.FAILURE] == "AFUIC-502 (UnknownSampleError); see the site's log"
    assert "Smith" not in str(metrics)
    site.on_unlearn = fails_with(RuntimeError(SECRET))
    with pytest.raises(AfuicError, match=r"AFUIC-000 \(RuntimeError\)"):
        client.fit(START, unlearn_config())


@pytest.mark.parametrize(
    "extras", ["[]", '{"a": -1}', '{"a": 9}', '{"a": "1"}', "{", '{"a": true}', '{"a": 1}']
)
def test_extras_that_do_not_fit_the_arrays_are_refused(site, client, extras):
    site.file(["patient-0-1"], number=1)
    with pytest.raises(AfuicError, match="AFUIC-400"):
        client.fit(START, unlearn_config(**{wire.EXTRAS: extras}))


def test_a_client_of_another_framework_loads_neither_torch_nor_scipy():
    """A deployed site starts a process a message, so that every import is paid for again."""
    script = (
        "import sys\n"
        "from flwr_afuic.clients import ErasureClient, message_app, open_inbox, site_privacy\n"
        "heavy = {'torch', 'monai', 'ray', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
