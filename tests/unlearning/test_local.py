from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.unlearning.inference import index_batches, score_logits
from flwr_afuic.unlearning.level import forget_level_met
from flwr_afuic.unlearning.local import (
    ForgetScore,
    UnlearningSettings,
    score,
    unlearn,
)
from flwr_afuic.unlearning.reference import DistillationSettings, distil_reference


@pytest.fixture(scope="session")
def reference(toy, trained):
    student = toy.network(seed=9)
    settings = DistillationSettings(steps=150, views=4)
    distil_reference(
        copy.deepcopy(trained), student, toy.images(128, 50)[0], settings=settings, seed=0
    )
    return student


def run(toy, model, reference=None, holdout=None, seed=0, anchor=None, radius=math.inf, **options):
    x, y = toy.marked(128, 2)
    return unlearn(
        model,
        forget_x=x,
        forget_y=y,
        anchor_x=toy.images(128, 50)[0] if anchor is None else anchor,
        reference=reference,
        holdout=holdout,
        settings=UnlearningSettings(**options),
        seed=seed,
        radius=radius,
    )


def test_the_mark_is_forgotten_and_the_task_kept(toy, model, reference):
    outcome = run(toy, model, reference)
    assert outcome.before.accuracy > 0.95
    assert outcome.after.loss >= 0.8 * outcome.reference.loss
    assert outcome.after.accuracy <= outcome.reference.accuracy + 0.1
    assert score(model, *toy.images(200, 70)).accuracy > 0.9
    assert outcome.steps == 60
    assert outcome.stop_reason == "budget"
    assert outcome.delta_norm > 0


def test_bounded_by_the_reference_it_does_not_run_away(toy, trained, reference):
    bounded, free = copy.deepcopy(trained), copy.deepcopy(trained)
    kept = run(toy, bounded, reference, steps=120)
    lost = run(toy, free, steps=120, objective="ascent", objective_option=1e6)
    assert kept.after.accuracy > kept.reference.accuracy - 0.15
    assert lost.after.accuracy < 0.05
    assert lost.after.loss > 4 * kept.after.loss


def test_within_a_radius_more_is_forgotten_than_by_cutting_afterwards(toy, trained, reference):
    within, free = copy.deepcopy(trained), copy.deepcopy(trained)
    norm = run(toy, free, reference).delta_norm
    radius = norm / 2
    found = run(toy, within, reference, radius=radius)
    assert found.delta_norm <= radius * (1 + 1e-5)
    with torch.no_grad():
        for parameter, start in zip(free.parameters(), trained.parameters(), strict=True):
            parameter.copy_(start + (parameter - start) * (radius / norm))
    cut = score(free, *toy.marked(128, 2))
    assert found.after.loss > cut.loss + 0.1
    wide = run(toy, copy.deepcopy(trained), reference, radius=100 * norm)
    assert wide == run(toy, copy.deepcopy(trained), reference)
    with pytest.raises(ConfigError, match="radius is 0"):
        run(toy, within, reference, radius=0.0)


def test_statistics_stay_frozen_and_modes_are_restored(toy, model, reference):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reference_before = {k: v.clone() for k, v in reference.state_dict().items()}
    outcome = run(toy, model, reference, steps=3)
    after = model.state_dict()
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(after[name], before[name])
    assert all(torch.equal(v, reference_before[k]) for k, v in reference.state_dict().items())
    assert all(module.training for module in model.modules())
    moved = sum(float((after[n] - before[n]).pow(2).sum()) for n, _ in model.named_parameters())
    assert outcome.delta_norm == pytest.approx(moved**0.5, rel=1e-4)


def test_threads_do_not_disturb_each_other(toy, trained, reference):
    def one(seed):
        model = copy.deepcopy(trained)
        run(toy, model, copy.deepcopy(reference), steps=10, seed=seed)
        return model.state_dict()

    alone = [one(seed) for seed in (0, 1, 2)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(one, (0, 1, 2)))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(alone[0]["5.weight"], alone[1]["5.weight"])


def test_ascent_stops_at_its_bound(toy, model):
    outcome = run(
        toy,
        model,
        objective="ascent",
        objective_option=0.5,
        anchor_weight=0.0,
        check_every=1,
        anchor=torch.zeros(0, 1, 8, 8),
    )
    assert outcome.stop_reason == "level reached"
    assert outcome.after.loss >= 0.5
    assert outcome.steps < 60
    assert outcome.reference is None


def test_without_a_reference_the_holdout_score_is_the_level(toy, model):
    holdout = ForgetScore(loss=0.5, accuracy=0.9, count=50)
    outcome = run(toy, model, holdout=holdout, lr=0.01)
    assert outcome.reference == holdout
    assert outcome.after.loss >= 0.4
    with pytest.raises(ConfigError, match="held-out"):
        run(toy, model)


def test_another_attempt_follows_only_where_the_level_is_not_met(toy, trained, reference):
    short = run(toy, copy.deepcopy(trained), reference, steps=1, lr=1e-4, attempts=2)
    assert short.steps == 2
    assert not forget_level_met(short.after, short.reference).met
    easy = ForgetScore(loss=0.0, accuracy=1.0, count=50)
    assert run(toy, copy.deepcopy(trained), holdout=easy, steps=5, attempts=9).steps == 5


def test_memorised_marks_are_forgotten_too(toy, trained, reference):
    # Logits ten times as large: cross-entropy's slope on the marked images rounds to zero.
    sure = copy.deepcopy(trained)
    with torch.no_grad():
        sure[5].weight *= 10
        sure[5].bias *= 10
    outcome = run(toy, sure, reference, clip=100.0, lr=0.3)
    assert outcome.before.loss < 1e-12
    assert outcome.after.loss > 0.3


def test_divergence_gives_the_snapshot_back(toy, model, reference):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outcome = run(toy, model, reference, lr=1e30, clip=1e30)
    assert outcome.stop_reason == "diverged"
    assert outcome.delta_norm == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_empty_and_mismatched_sets_are_refused(toy, model, reference):
    empty = torch.zeros(0, 1, 8, 8)
    with pytest.raises(DataError, match="anchor"):
        run(toy, model, reference, anchor=empty)
    with pytest.raises(DataError, match="scored set"):
        score(model, empty, torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="forget set"):
        unlearn(
            model,
            forget_x=toy.images(3, 0)[0],
            forget_y=torch.zeros(2, dtype=torch.long),
            anchor_x=empty,
            reference=reference,
            holdout=None,
            settings=UnlearningSettings(),
            seed=0,
        )


def test_scores_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]))
    logits[0, 0] += 1e-4
    result = score_logits(logits, torch.tensor([0, 0, 0]))
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.loss == pytest.approx(-math.log(0.5 * 0.2 * 0.9) / 3, abs=1e-4)
    assert result.count == 3
    assert score_logits(logits * torch.nan, torch.tensor([0, 0, 0])).loss == float("inf")


def test_batches_cover_each_epoch_once():
    batches = index_batches(10, 4, torch.Generator().manual_seed(0))
    for _ in range(5):
        epoch = torch.cat([next(batches), next(batches)])
        assert len(set(epoch.tolist())) == 8
    assert len(next(index_batches(3, 64, torch.Generator().manual_seed(0)))) == 3
