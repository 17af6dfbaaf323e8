"""Small requests: unlearned together where batching is on, protected by noise where it is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flwr_afuic.errors import StateTransitionError
from flwr_afuic.state.store import StateStore
from flwr_afuic.unlearning.privacy import DeltaPrivacy
from tests.erasure_helpers import federate, request_id
from tests.strategies.lives import LIFE, three

TOGETHER = {"batch_size": 2, "privacy": DeltaPrivacy(small=3, small_noise=0.0, small_clip=10.0)}


def file_two(sites):
    return {
        3: lambda s: sites[0].file(["patient-0-1"], 1),
        6: lambda s: sites[0].file(["patient-0-2"], 2),
    }


def test_two_small_requests_become_one_delta_and_two_certificates(tmp_path):
    sites = three()
    outcome = federate(sites, at=file_two(sites), state_dir=tmp_path, rounds=18, **TOGETHER)
    assert outcome.states(0) == outcome.states(1) == LIFE
    assert sum(entry.cause == "erasure" for entry in outcome.entries) == 1
    (task,) = sites[0].unlearned
    assert task.forget_ids == ["patient-0-1", "patient-0-2"]
    first, second = outcome.strategy.requests
    assert {first.request_id, second.request_id} == {request_id(1), request_id(2)}
    assert first.merge_version == second.merge_version
    with StateStore(tmp_path) as store:
        for number in (1, 2):
            document, _, _ = store.certificate(request_id(number))
            said = json.loads(document)["request"]
            assert said["batch"] == [request_id(3 - number)]
    assert sites[0].inbox.certificates.names()


def test_a_site_trains_on_while_a_small_request_waits_for_company():
    sites = three()
    outcome = federate(
        sites, at={3: lambda s: sites[0].file(["patient-0-1"], 1)}, rounds=12, **TOGETHER
    )
    assert outcome.states() == ["received"]
    assert [e.text for e in outcome.events("waits")]
    assert any("site-0" in entry.sites for entry in outcome.entries[-4:])
    assert "patient-0-1" not in sites[0].trained_on[-1]


def test_an_update_that_was_trained_before_the_request_beside_it_is_discarded():
    """The samples of a waiting request train no more, not even with the reply that names it."""
    sites = three()

    def file_once():
        if len(sites[0].trained_on) == 3:
            sites[0].file(["patient-0-1"], 1)

    sites[0].on_train = file_once
    outcome = federate(sites, rounds=12, **TOGETHER)
    assert outcome.states() == ["received"]
    (refused,) = outcome.events("update-refused")
    assert (refused.site, refused.time) == ("site-0", outcome.record.history[0].time)
    assert any("site-0" in entry.sites for entry in outcome.entries[-4:])


def test_company_is_not_waited_for_forever():
    sites = three()
    outcome = federate(
        sites,
        at={3: lambda s: sites[0].file(["patient-0-1"], 1)},
        rounds=20,
        batch_seconds=2.0,
        **TOGETHER,
    )
    assert outcome.states() == LIFE
    assert outcome.record.batch == ()


def test_larger_requests_and_whole_sites_wait_for_nobody():
    for samples in ([], ["patient-0-0", "patient-0-1", "patient-0-2"]):
        sites = three()
        outcome = federate(
            sites, at={3: lambda s, n=samples, t=sites: t[0].file(n, 1)}, rounds=18, **TOGETHER
        )
        assert outcome.states() == LIFE


def test_requests_of_different_sites_are_not_unlearned_together():
    sites = three()
    at = {
        3: lambda s: sites[0].file(["patient-0-1"], 1),
        4: lambda s: sites[1].file(["patient-1-1"], 2),
    }
    outcome = federate(sites, at=at, rounds=12, **TOGETHER)
    assert [r.state for r in outcome.strategy.requests] == ["received", "received"]


def test_a_batch_survives_restarts_and_stays_one(tmp_path):
    sites = three()
    federate(
        sites,
        at=file_two(sites),
        state_dir=tmp_path,
        rounds=30,
        stop_when=lambda run: any(r.state == "dispatched" for r in run.hooks.book),
        drain_seconds=0.0,
        **TOGETHER,
    )
    outcome = federate(sites, state_dir=tmp_path, rounds=40, **TOGETHER)
    assert [r.state for r in outcome.strategy.requests] == ["completed", "completed"]
    assert sum(entry.cause == "erasure" for entry in outcome.entries) == 1
    assert outcome.record.attempts == 1


def test_who_is_unlearned_with_others_is_no_longer_cancelled():
    sites = three()
    texts = []

    def cancel(strategy):
        hooks = strategy.run.hooks
        for record in hooks.book:
            if record.state == "dispatched":
                with pytest.raises(StateTransitionError) as caught:
                    hooks.desk.cancel(record, "no")
                texts.append(str(caught.value))

    at = {**file_two(sites), **dict.fromkeys(range(7, 12), cancel)}
    outcome = federate(sites, at=at, rounds=18, **TOGETHER)
    assert "together with others of its site" in texts[0]
    assert outcome.states(0) == outcome.states(1) == LIFE


def test_a_small_request_alone_is_clipped_and_noised_by_default():
    sites = three()
    plain = federate(sites, at={3: lambda s: sites[0].file(["patient-0-1"], 1)})
    other = three()
    protected = federate(
        other,
        at={3: lambda s: other[0].file(["patient-0-1"], 1)},
        privacy=DeltaPrivacy(),
        max_attempts=1,
    )
    evidence = protected.record.evidence[0]
    assert plain.record.evidence[0].privacy is None
    assert evidence.privacy is not None
    assert evidence.privacy["noise"] > 0
    facts = protected.strategy.merges[0]
    assert not np.allclose(facts.delta, plain.strategy.merges[0].delta)


def test_a_relearning_basis_is_locked_row_by_row_and_a_false_one_is_refused(tmp_path):
    from tests.erasure_helpers import ScriptedClient

    basis = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)

    def run(rows, **changes):
        from flwr.clientapp import ClientApp

        sites = three()

        class Based(ScriptedClient):
            def relearning_basis(self, task, unlearned, rank):
                return rows

        def make(context):
            return Based(sites[int(context.node_config["partition-id"])]).to_client()

        return federate(
            sites,
            app=ClientApp(make),
            at={3: lambda s: sites[0].file(number=1)},
            rounds=60,
            relearning_rank=2,
            **changes,
        )

    good = run(basis)
    assert good.states() == LIFE
    keys = good.strategy.run.hooks.calibrator.lock.keys
    assert [key.split("/", 1)[1] for key in keys] == ["1", "1/basis-0", "1/basis-1"]
    merged = good.models[good.record.merge_version][0]
    assert np.all(good.final()[0][:2] <= merged[:2] + 1e-5)

    long = run(basis * 2)
    assert long.record.state == "failed"
    assert "not orthonormal" in long.events("quarantined")[0].text
    assert long.strategy.merges == []


def test_the_stewards_cancellation_reaches_the_server_and_frees_the_samples(tmp_path):
    sites = three()
    at = {
        3: lambda s: sites[0].file(["patient-0-1"], 1),
        4: lambda s: sites[0].inbox.cancel(request_id(1)),
    }
    outcome = federate(sites, at=at, state_dir=tmp_path, factors={0: 3.0}, rounds=30)
    assert sites[0].inbox.status(request_id(1)) == "cancelled"
    assert sites[0].inbox.tombstones() == set()
    assert all(str(r.state) == "cancelled" for r in outcome.strategy.requests)
    assert outcome.strategy.merges == []
    assert sites[0].trained_on[-1] == sites[0].ids


def test_a_cancellation_after_the_merge_comes_too_late_and_that_is_told():
    sites = three()

    def cancel(strategy):
        if strategy.requests and strategy.requests[0].merged_before:
            with_status = sites[0].inbox.status(request_id(1))
            if with_status in ("filed", "known"):
                sites[0].inbox.cancel(request_id(1))

    at = {3: lambda s: sites[0].file(["patient-0-1"], 1), 8: cancel, 9: cancel}
    outcome = federate(sites, at=at, rounds=16)
    assert outcome.states() == LIFE
    assert outcome.events("not-cancelled")
    assert sites[0].inbox.status(request_id(1)) == "closed"
    assert sites[0].inbox.tombstones() == {"patient-0-1"}
