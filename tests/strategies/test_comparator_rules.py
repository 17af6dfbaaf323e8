"""Each comparator against its own equation, in a running federation."""

from __future__ import annotations

import numpy as np

from flwr_afuic.federation.buffer import Update, UpdateBuffer
from flwr_afuic.federation.layout import Layout
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.raw import RawHistory
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.models.reinitialise import reinitialise
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.codec import from_record
from flwr_afuic.strategies.comparators import FCU, PGA, FedEraser, FedOSD, NoT, ProxyDistill
from flwr_afuic.strategies.comparators.federaser import recalibrate, replayed
from flwr_afuic.strategies.comparators.fedosd import OrthogonalDescent
from flwr_afuic.strategies.comparators.negation import layer_arrays, negate
from flwr_afuic.unlearning.ascent import PgaSettings, ascend, start_from_reference
from flwr_afuic.unlearning.contrast import unlearn_by_contrast
from flwr_afuic.unlearning.orthogonal import LOSSES, mean_gradient, orthogonal_direction
from flwr_afuic.unlearning.reference import distil_reference
from tests.erasure_helpers import norm_model, toy_data, toy_model, toy_sites
from tests.strategies.rivals import DISTILLING, erase_one, toy_record

INITIAL = from_record(toy_record())
LAYOUT = Layout.of(toy_record().keys(), INITIAL)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def before_and_after(outcome):
    merge = outcome.record.merge_version
    return outcome.models[merge - 1], outcome.models[merge]


def loaded(arrays):
    model = toy_model()
    set_arrays(model, arrays)
    return model


# ---- NoT -----------------------------------------------------------------------------


def test_not_negates_the_first_layer_bit_for_bit():
    before, after = before_and_after(erase_one(NoT))
    names = LAYOUT.names
    for name, old, new in zip(names, before, after, strict=True):
        expected = -old if name in ("1.weight", "1.bias") else old
        assert new.tobytes() == expected.tobytes()


def test_not_negates_the_layer_it_is_told():
    outcome = erase_one(NoT, layer="3")
    before, after = before_and_after(outcome)
    assert same(after[:2], before[:2])
    assert same(after[2:], [-array for array in before[2:]])


def test_negated_twice_is_as_before_and_statistics_stay():
    model = norm_model()
    arrays = get_arrays(model)
    layout = Layout.of(model.state_dict(), arrays)
    for layer in ("0", "1", "4.weight"):
        once = negate(layout, arrays, layer)
        assert not same(once, arrays)
        assert same(negate(layout, once, layer), arrays)
    assert layer_arrays(layout, "1") == ["1.weight", "1.bias"]


# ---- ProxyDistill --------------------------------------------------------------------


def test_proxy_distill_is_the_distilled_reference_of_the_snapshot():
    outcome = erase_one(ProxyDistill, seed=5)
    base = outcome.record.base_version
    teacher, student = loaded(outcome.models[base]), toy_model()
    seed = derive_seed(5, "reference", base)
    reinitialise(student, seed=seed)
    distil_reference(teacher, student, DISTILLING["proxies"], seed=seed)
    assert same(before_and_after(outcome)[1], get_arrays(student))


# ---- FedEraser -----------------------------------------------------------------------


def kept_history(store, without=()):
    return list(RawHistory(store).merges(without=without))


def replay(store, lr, without=()):
    model = INITIAL
    for _, merged in kept_history(store, without):
        buffer = UpdateBuffer(LAYOUT)
        for one in merged:
            buffer.add(one.update, one.weight)
        if len(buffer):
            model = buffer.merge(model, server_lr=lr)
    return model


class Kept(MemoryStore):
    """A history that outlives its run, and its erasures."""

    def close(self) -> None:
        pass

    def delete_client(self, site):
        return []


def test_everything_replayed_is_the_model_that_was_trained():
    """With staleness weights, two updates of one site in a merge, and half a server step."""
    for options in ({"server_lr": 0.5, "factors": {2: 3.0}}, {"mode": "sync"}):
        store = Kept()
        outcome = erase_one(FedEraser, history=store, at={}, rounds=6, **options)
        assert same(replay(store, outcome.strategy.server_lr), outcome.final())


def test_with_nothing_to_recalibrate_it_equals_replay():
    store = Kept()
    outcome = erase_one(FedEraser, history=store, effort=0.0)
    base = outcome.record.base_version
    windows = [w for w, _ in kept_history(store) if w.version <= base]
    full = Kept()
    for window in windows:
        with full.begin() as writer:
            for participant in window.participants:
                writer.write(participant.site, store.record(window.number, participant.site))
            writer.commit(window)
    expected = replay(full, 1.0, without=["site-0"])
    assert same(before_and_after(outcome)[1], expected)
    assert not same(expected, replay(full, 1.0))
    assert not [s for s in outcome.strategy.journal.spans if s.kind == "unlearn"]


def test_a_recalibrated_update_has_the_stored_length_and_the_new_direction():
    rng = np.random.default_rng(0)
    stored, trained = ([rng.normal(size=a.shape).astype(a.dtype) for a in INITIAL] for _ in "ab")
    got = LAYOUT.flatten(recalibrate(LAYOUT, stored, trained))
    u, new = LAYOUT.flatten(stored), LAYOUT.flatten(trained)
    np.testing.assert_allclose(got, np.linalg.norm(u) * new / np.linalg.norm(new), rtol=1e-6)
    nothing = [np.zeros_like(a) for a in INITIAL]
    assert recalibrate(LAYOUT, stored, nothing) is stored


def test_retained_sites_recalibrate_every_merge_but_the_first():
    outcome = erase_one(FedEraser, effort=0.25)
    base = outcome.record.base_version
    entries = [e for e in outcome.entries if e.cause == "merge" and e.version <= base]
    wanted = [set(e.sites) - {"site-0"} for e in entries]
    wanted = [sites for sites in wanted if sites][1:]
    spans = [s for s in outcome.strategy.journal.spans if s.kind == "unlearn"]
    assert len(spans) == sum(map(len, wanted))
    # A quarter of four steps is one: .2 s of overhead and .05 s of work.
    assert all(abs(s.end - s.start - 0.25) < 1e-9 for s in spans)


def test_only_every_so_many_merges_are_stored():
    store = Kept()
    outcome = erase_one(FedEraser, history=store, interval=3, at={}, rounds=6)
    merges = [e.version for e in outcome.entries if e.cause == "merge"]
    assert [w.version for w in store.windows()] == merges[::3]


def test_the_erased_updates_leave_the_history():
    store = MemoryStore()
    store.close = lambda: None
    erase_one(FedEraser, history=store)
    parts = [p for w in store.windows() for p in w.participants if p.site == "site-0"]
    assert parts
    assert {p.status for p in parts} == {"purged"}


def test_updates_merge_as_the_engine_merges_them():
    update = [np.ones_like(a) for a in INITIAL]
    one = RawHistory(MemoryStore())
    one.begin(INITIAL)
    one.add(Update("a", 0, 10, update), 0.5)
    one.add(Update("a", 0, 30, update), 1.0)
    one.merged(1, 1)
    ((window, merged),) = one.merges()
    assert [(m.update.examples, m.weight) for m in merged] == [(10, 0.5), (30, 1.0)]
    assert [(p.site, p.weight) for p in window.participants] == [("a", 1.0)]
    model = replayed(LAYOUT, INITIAL, merged, 1.0)
    np.testing.assert_allclose(model[0] - INITIAL[0], (10 * 0.5 + 30) / 40, rtol=1e-6)


# ---- FedOSD --------------------------------------------------------------------------


def test_fedosd_steps_along_the_orthogonal_direction():
    """Its rounds again, from the sites' data: the same model."""
    outcome = erase_one(FedOSD, unlearning_rounds=4, unlearning_lr=0.3)
    before, after = before_and_after(outcome)
    model = before
    for _ in range(4):
        gradients = []
        for number in range(4):
            x, y = toy_data(number, flip=number == 0)
            loss = LOSSES[1] if number == 0 else LOSSES[0]
            found = mean_gradient(loaded(model), x, y, loss=loss)
            gradients.append(LAYOUT.flatten(found))
        direction = orthogonal_direction(gradients[0], gradients[1:])
        for other in gradients[1:]:
            scale = np.linalg.norm(other) * np.linalg.norm(direction)
            assert abs(other @ direction) <= 1e-8 * scale
        model = LAYOUT.with_trained(LAYOUT.flatten(model) - 0.3 * direction, model)
    for got, expected in zip(after, model, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)  # the site sums in another order


def test_fedosd_never_goes_back(monkeypatch):
    take, seen = OrthogonalDescent.take_update, []

    def watched(self, update, weight):
        taken = take(self, update, weight)
        for before in self._before.values():
            away = LAYOUT.flatten(self.run.arrays) - LAYOUT.flatten(before)
            away /= np.linalg.norm(away)
            seen.append([float(LAYOUT.flatten(u.arrays) @ away) for u in (update, taken)])
        return taken

    monkeypatch.setattr(OrthogonalDescent, "take_update", watched)
    # A site like the others: what they learn leads back to what was unlearned.
    ask = {8: lambda strategy: strategy.request_erasure("site-1")}
    outcome = erase_one(FedOSD, unlearning_rounds=10, rounds=20, at=ask)
    assert min(came for came, _ in seen) < -0.001  # some do point back
    assert min(kept for _, kept in seen) > -1e-6
    assert all(kept == came for came, kept in seen if came > 0)
    merge = outcome.record.merge_version
    origin = LAYOUT.flatten(outcome.models[merge - 1])
    later = [v for v in sorted(outcome.models) if v > merge]
    assert len(later) > 10
    for version in later:
        old, new = (LAYOUT.flatten(outcome.models[v]) for v in (version - 1, version))
        step, away = new - old, old - origin
        assert step @ away >= -1e-6 * np.linalg.norm(step) * np.linalg.norm(away)


# ---- PGA and FCU ---------------------------------------------------------------------


def test_pga_ascends_from_the_others_mean():
    """In sync mode w is the mean of the local models: the site's ascent again, from outside."""
    sites = toy_sites(4)
    ascent = PgaSettings(epochs=2, batch_size=8, lr=0.05, stop_accuracy=0.0)
    outcome = erase_one(PGA, sites=sites, mode="sync", ascent=ascent)
    (sent,) = [
        m.content
        for m in outcome.grid.crossed
        if "fitins.config" in m.content
        and m.content["fitins.config"].get("afuic.task") == "unlearn"
    ]
    groups = [array.numpy() for array in sent["fitins.parameters"].values()]
    current, own = groups[:4], groups[4:]
    before, after = before_and_after(outcome)
    assert same(current, before)
    model = loaded(current)
    start_from_reference(model, loaded(own), 4)
    x, y = toy_data(0, flip=True)
    seed = sent["fitins.config"]["afuic.seed"]
    order = [sites[0].ids.index(i) for i in sorted(sites[0].ids)]
    settings = PgaSettings(**{**vars(ascent), "sites": 4})
    ascend(model, forget_x=x[order], forget_y=y[order], settings=settings, seed=seed)
    for got, expected in zip(after, get_arrays(model), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_pga_keeps_each_sites_last_model():
    outcome = erase_one(PGA, at={}, rounds=3, mode="sync", server_lr=1.0)
    method = outcome.strategy.method
    mean = sum(LAYOUT.flatten(arrays) for arrays in method._locals.values()) / 4
    # Equal sites, one local model each: the global model is their mean.
    np.testing.assert_allclose(mean, LAYOUT.flatten(outcome.final()), atol=1e-6)


def test_fcu_contrasts_with_the_initial_model():
    sites = toy_sites(4)
    outcome = erase_one(FCU, sites=sites)
    before, after = before_and_after(outcome)
    (config,) = [
        m.content["fitins.config"]
        for m in outcome.grid.crossed
        if "fitins.config" in m.content
        and m.content["fitins.config"].get("afuic.task") == "unlearn"
    ]
    model = loaded(before)
    x, y = toy_data(0, flip=True)
    order = [sites[0].ids.index(i) for i in sorted(sites[0].ids)]
    unlearn_by_contrast(
        model,
        loaded(INITIAL),
        forget_x=x[order],
        forget_y=y[order],
        settings=outcome.strategy.contrast,
        seed=config["afuic.seed"],
    )
    for got, expected in zip(after, get_arrays(model), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_runs_repeat():
    one, other = (erase_one(FedOSD, factors={1: 2.0}) for _ in range(2))
    assert same(one.final(), other.final())
