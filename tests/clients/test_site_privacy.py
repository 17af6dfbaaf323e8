"""What an unlearning returns is protected at the site; batches; the relearning basis."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from flwr_afuic import wire
from flwr_afuic.calibration.basis import check_basis
from flwr_afuic.clients import site_privacy
from flwr_afuic.clients.deltas import ErasureDelta
from flwr_afuic.clients.node import open_inbox
from flwr_afuic.erasure.keys import KeyRing
from flwr_afuic.errors import AfuicError, ConfigError, SignatureError
from flwr_afuic.federation.layout import Layout
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.unlearning.inference import score
from flwr_afuic.unlearning.privacy import NO_PRIVACY, DeltaPrivacy
from flwr_afuic.unlearning.settings import UnlearningSettings
from tests.erasure_helpers import (
    FORGOTTEN,
    ScriptedClient,
    Site,
    ToyClient,
    norm_model,
    request_id,
    toy_model,
)

START = [np.ones(3, np.float32)]
QUICK = UnlearningSettings(steps=10, attempts=1, batch_size=8, anchor_batch_size=8)


@pytest.fixture
def site():
    return Site(kinds=["trained"], privacy=DeltaPrivacy())


def config(number=1, **changes):
    return {
        wire.SEED: 1,
        wire.TASK: wire.TASK_UNLEARN,
        wire.REQUEST: request_id(number),
        wire.SCOPE: "samples",
        wire.SETTINGS: QUICK.to_json(),
        **changes,
    }


def unlearn(site, samples=("patient-0-1",), start=START, **changes):
    site.file(list(samples), number=1)
    arrays, _, metrics = ScriptedClient(site).fit(start, config(**changes))
    return arrays, wire.Evidence.from_json(metrics[wire.EVIDENCE])


def test_a_small_request_is_protected_without_being_asked(site):
    delta, evidence = unlearn(site)
    assert delta[0].tolist() != [0, 0, -1]
    clip = 0.02 * np.sqrt(3)
    assert evidence.privacy["clip"] == pytest.approx(clip)
    assert evidence.privacy["std"] == pytest.approx(2.5 * clip / np.sqrt(3))
    assert (evidence.privacy["small"], evidence.privacy["release"]) == (1, 1)
    assert evidence.delta_norm == pytest.approx(np.linalg.norm(delta[0]), rel=1e-5)
    assert evidence.after == FORGOTTEN
    assert site.verified == 1  # scored anew: the score is of the model as protected
    assert site.unlearned[0].radius == pytest.approx(clip)  # and it was looked for within that


def test_a_request_that_is_not_small_is_left_alone():
    site = Site(kinds=["trained"], privacy=DeltaPrivacy(), ids=[f"p{n}" for n in range(9)])
    delta, evidence = unlearn(site, site.ids[:8])
    assert delta[0].tolist() == [0, 0, -1]
    assert evidence.privacy is None
    assert site.verified == 0
    assert site.unlearned[0].radius == np.inf


@pytest.mark.parametrize(
    ("server", "own", "norm"),
    [
        (DeltaPrivacy(clip=0.5, small=0), NO_PRIVACY, 0.5),
        (None, DeltaPrivacy(clip=0.25, small=0), 0.25),
        (DeltaPrivacy(clip=0.5, small=0), DeltaPrivacy(clip=0.25, small=0), 0.25),
        (DeltaPrivacy(clip=0.5, small=0), DeltaPrivacy(clip=0.75, small=0), 0.5),
        (NO_PRIVACY, NO_PRIVACY, 1.0),
    ],
)
def test_of_the_servers_and_the_sites_wishes_the_stricter_holds(site, server, own, norm):
    site.privacy = own
    wanted = {} if server is None else {wire.PRIVACY: server.to_json()}
    delta, _ = unlearn(site, **wanted)
    assert np.linalg.norm(delta[0]) == pytest.approx(norm)


def test_the_server_cannot_talk_a_site_out_of_it(site):
    delta, evidence = unlearn(site, **{wire.PRIVACY: NO_PRIVACY.to_json()})
    assert evidence.privacy is not None
    assert delta[0].tolist() != [0, 0, -1]


@pytest.mark.parametrize("text", ["{", '{"clip": -1}', '{"more": 1}', 3])
def test_wishes_that_cannot_be_read_are_a_failure_not_an_unprotected_delta(site, text):
    site.file(["patient-0-1"], number=1)
    arrays, _, metrics = ScriptedClient(site).fit(START, config(**{wire.PRIVACY: text}))
    assert metrics[wire.FAILURE].startswith("AFUIC-")
    assert wire.EVIDENCE not in metrics
    assert np.array_equal(arrays[0], START[0])


def test_a_retried_task_carries_the_same_noise_and_another_delta_other_noise(site):
    one, _ = unlearn(site)
    same, evidence = unlearn(site, **{wire.SEED: 99})  # the server's seed has no part in it
    assert np.array_equal(one[0], same[0])
    assert evidence.privacy["release"] == 1
    site.delta = (0.0, 0.0, -1.0 - 1e-6)
    other, evidence = unlearn(site)
    assert np.abs(other[0] - one[0]).max() > 1e-3
    assert evidence.privacy["release"] == 2


def test_one_delta_under_two_rules_does_not_carry_one_noise_at_two_strengths(site):
    """Or the server could ask twice and solve for noise and delta."""
    site.delta = (0.0, 0.0, 0.0)
    noises = []
    for noise in (3.0, 6.0):
        wanted = DeltaPrivacy(small_noise=noise)
        delta, evidence = unlearn(site, **{wire.PRIVACY: wanted.to_json()})
        noises.append(delta[0] / evidence.privacy["std"])
    assert np.abs(noises[0] - noises[1]).max() > 0.1


def test_two_sites_draw_different_noise():
    deltas = []
    for _ in range(2):
        deltas.append(unlearn(Site(kinds=["trained"], privacy=DeltaPrivacy()))[0][0])
    assert not np.array_equal(*deltas)


# ---- arrays that are not trained -----------------------------------------------------


def test_statistics_carry_neither_noise_nor_data():
    start = [np.ones(3, np.float32), np.full(2, 5, np.float32), np.array(7, np.int64)]
    after = [array + 1 for array in start]
    delta = ErasureDelta.of(after, start, ["trained", "statistic", "counter"])
    assert delta.vector.tolist() == [1, 1, 1]
    arrays = delta.arrays(delta.vector * 2)
    assert [a.tolist() for a in arrays] == [[2, 2, 2], [5, 5], 7]
    assert [a.dtype for a in arrays] == [a.dtype for a in start]
    assert [a.tolist() for a in delta.model(arrays)] == [[3, 3, 3], [5, 5], 7]
    assert delta.scale == pytest.approx(np.sqrt(3))


def test_where_kinds_are_unknown_only_what_moved_is_covered():
    start = [np.ones(3, np.float32), np.full(2, 5, np.float32), np.array(7, np.int64)]
    after = [start[0] + 1, start[1].copy(), start[2].copy()]
    delta = ErasureDelta.of(after, start, None)
    assert delta.vector.tolist() == [1, 1, 1]
    arrays = delta.arrays(delta.vector)
    assert [a.tolist() for a in arrays] == [[1, 1, 1], [0, 0], 7]  # a difference, as the kind says
    assert [a.tolist() for a in delta.model(arrays)] == [[2, 2, 2], [5, 5], 7]
    nothing = ErasureDelta.of(start, start, None)
    assert nothing.vector.tolist() == [0] * 5


# ---- torch ---------------------------------------------------------------------------


@pytest.fixture
def toy():
    ids = [f"patient-0-{row}" for row in range(24)]
    return Site(0, ids=ids, privacy=DeltaPrivacy())


@pytest.mark.parametrize("build", [toy_model, norm_model])
def test_evidence_is_of_the_model_as_protected(toy, build):
    toy.file(["patient-0-3"], number=1)
    client, start = ToyClient(toy, build), get_arrays(build())
    delta, _, metrics = client.fit(start, config())
    evidence = wire.Evidence.from_json(metrics[wire.EVIDENCE])
    kinds = client.array_kinds()
    merged = [
        a + d if kind == "trained" else a for a, d, kind in zip(start, delta, kinds, strict=True)
    ]
    model, data = build(), client.data()
    set_arrays(model, merged)
    expected = score(model, data.images[3:4], data.labels[3:4])
    assert evidence.after.loss == pytest.approx(expected.loss, rel=1e-4)
    for a, d, kind in zip(start, delta, kinds, strict=True):
        if kind != "trained":
            assert np.array_equal(a, d)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("build", [toy_model, norm_model])
def test_a_basis_travels_only_if_asked_for(toy, build, private):
    if not private:
        toy.privacy = NO_PRIVACY
    toy.file(["patient-0-3", "patient-0-4"], number=1)
    start = get_arrays(build())
    without, _, plain = ToyClient(toy, build).fit(start, config())
    with_basis, _, metrics = ToyClient(toy, build).fit(start, config(**{wire.BASIS_RANK: 2}))
    assert wire.EXTRAS not in plain
    assert json.loads(metrics[wire.EXTRAS]) == {"basis": 1}
    groups = wire.split_groups(with_basis, metrics[wire.EXTRAS])
    assert all(np.array_equal(a, b) for a, b in zip(groups["model"], without, strict=True))
    (basis,) = groups["basis"]
    layout = Layout.of(build().state_dict(), start)
    assert basis.dtype == np.float32
    check_basis(basis, 2, layout.trained_size)


def test_the_basis_of_a_protected_request_is_noised(toy):
    toy.file(["patient-0-3", "patient-0-4"], number=1)
    start = get_arrays(toy_model())
    rank = {wire.BASIS_RANK: 1}
    noised = ToyClient(toy).fit(start, config(**rank))[0][-1]
    again = ToyClient(toy).fit(start, config(**rank))[0][-1]
    assert np.array_equal(noised, again)
    made = []
    spy = ToyClient(toy)
    spy.relearning_basis = lambda *args: (
        made.append(ToyClient.relearning_basis(spy, *args)) or (made[-1])
    )
    spy.fit(start, config(**rank))
    cosine = abs(float(noised[0] @ made[0][0]))
    assert 0.1 < cosine < 0.7  # noise of 2.5 leaves about 1 / sqrt(1 + 2.5 ** 2) = .37


def test_a_framework_without_a_basis_sends_none(site):
    arrays, _ = unlearn(site, **{wire.BASIS_RANK: 3})
    assert len(arrays) == 1


# ---- gradients -----------------------------------------------------------------------


def gradient(site, **changes):
    start = get_arrays(toy_model())
    asked = {wire.TASK: wire.TASK_GRADIENT, wire.SETTINGS: "cross-entropy", **changes}
    arrays, count, metrics = ToyClient(site).fit(start, asked)
    assert metrics[wire.KIND] == wire.KIND_GRADIENT
    return np.concatenate([a.ravel() for a in arrays]), count


def test_the_gradient_of_few_erased_samples_is_protected_as_a_delta_is(toy):
    toy.file(["patient-0-3"], number=1)
    request = {wire.REQUEST: request_id(1), wire.SCOPE: "samples"}
    protected, count = gradient(toy, **request)
    toy.privacy = NO_PRIVACY
    raw, _ = gradient(toy, **request)
    assert count == 1
    scale = np.linalg.norm(np.concatenate([a.ravel() for a in get_arrays(toy_model())]))
    clip = min(0.02 * scale, np.linalg.norm(raw))
    cosine = protected @ raw / np.linalg.norm(raw) / np.linalg.norm(protected)
    assert np.linalg.norm(protected) == pytest.approx(0.02 * scale * 2.7, rel=0.25)
    assert cosine == pytest.approx(clip / np.linalg.norm(protected), abs=0.25)
    again, _ = gradient(toy, **request)
    assert np.array_equal(raw, again)


def test_the_gradient_of_what_is_kept_is_as_an_update_is(toy):
    kept, count = gradient(toy)
    toy.privacy = NO_PRIVACY
    assert np.array_equal(kept, gradient(toy)[0])
    assert count == 24


# ---- batches -------------------------------------------------------------------------


def test_a_batch_is_unlearned_and_verified_as_one(site):
    site.file(["patient-0-1", "patient-0-2"], number=1)
    site.file(["patient-0-0", "patient-0-2"], number=2)
    site.file(["patient-0-3"], number=3)
    client, asked = ScriptedClient(site), []
    client.score = lambda parameters, ids: asked.append(list(ids)) or site.scores()
    batch = {wire.BATCH: f"{request_id(1)},{request_id(2)}"}
    _, _, metrics = client.fit(START, config(**batch))
    union = ["patient-0-0", "patient-0-1", "patient-0-2"]
    assert site.unlearned[0].forget_ids == union
    assert metrics[wire.REQUEST] == request_id(1)
    verify = {wire.TASK: wire.TASK_VERIFY, wire.REQUEST: request_id(2), **batch}
    _, _, metrics = client.evaluate(START, verify)
    assert metrics[wire.REQUEST] == request_id(2)
    assert asked[-1] == union


def test_a_batch_of_small_requests_is_no_small_request():
    site = Site(kinds=["trained"], privacy=DeltaPrivacy(), ids=[f"p{n}" for n in range(9)])
    for number in (1, 2):
        site.file(site.ids[4 * number - 4 : 4 * number], number=number)
    batch = {wire.BATCH: f"{request_id(1)},{request_id(2)}"}
    _, _, metrics = ScriptedClient(site).fit(START, config(**batch))
    assert wire.Evidence.from_json(metrics[wire.EVIDENCE]).privacy is None


def test_a_batch_the_inbox_does_not_hold_is_not_carried_out(site):
    site.file(["patient-0-1"], number=1)
    batch = f"{request_id(1)},{request_id(9)}"
    _, _, metrics = ScriptedClient(site).fit(START, config(**{wire.BATCH: batch}))
    assert metrics[wire.FAILURE].startswith("AFUIC-500")
    for malformed in ("x", 3, ",".join([request_id()] * (wire.MAX_PENDING + 1))):
        with pytest.raises(AfuicError, match="AFUIC-400"):
            ScriptedClient(site).fit(START, config(**{wire.BATCH: malformed}))
    assert site.unlearned == []


def test_what_is_being_cancelled_is_the_servers_to_decide_what_is_cancelled_is_not(site):
    site.file(["patient-0-1"], number=1)
    site.inbox.cancel(request_id(1))
    client = ScriptedClient(site)
    _, _, metrics = client.fit(START, config())
    assert wire.EVIDENCE in metrics
    assert metrics[wire.CANCEL] == request_id(1)
    _, _, metrics = client.fit(START, config(**{wire.CANCELLED: request_id(1)}))
    assert metrics[wire.FAILURE] == "AFUIC-504 (StateTransitionError); see the site's log"
    assert len(site.unlearned) == 1


# ---- a node's configuration ----------------------------------------------------------


def context(**node_config):
    return Context(7, 3, node_config, RecordDict(), {})


def test_without_entries_small_requests_are_protected():
    assert site_privacy(context()) == DeltaPrivacy()


def test_a_site_may_want_more_or_leave_it_to_the_server():
    found = site_privacy(context(**{"erasure-clip": 2, "erasure-noise": 0.5, "erasure-small": 20}))
    assert found == DeltaPrivacy(clip=2.0, noise=0.5, small=20)
    assert site_privacy(context(**{"erasure-small": 0})) == NO_PRIVACY


@pytest.mark.parametrize(
    "entries",
    [
        {"erasure-clip": "2"}, {"erasure-clip": True}, {"erasure-clip": -1.0},
        {"erasure-noise": 1.0}, {"erasure-small": 1.5}, {"erasure-small": -1},
        {"erasure-clip": 10**400}, {"erasure-small": float("nan")},
    ],
)  # fmt: skip
def test_entries_that_make_no_sense_are_refused(entries):
    with pytest.raises(ConfigError):
        site_privacy(context(**entries))


def test_a_configured_server_key_is_pinned(tmp_path):
    keys = KeyRing(tmp_path / "keys")
    entries = {
        "inbox": str(tmp_path / "in.sqlite"),
        "server-key": str(tmp_path / "keys/server.pub"),
    }
    assert open_inbox(context(**entries)).server.server().pinned == keys.public_hex
    with pytest.raises(SignatureError, match="no public key"):
        open_inbox(context(**{**entries, "server-key": str(tmp_path / "nothing")}))
