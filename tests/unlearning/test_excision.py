"""Pairs, their losses and scores, and the excision of both towers."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch

from flwr_afuic.calibration.blocks import BlockBasis, Blocks
from flwr_afuic.errors import ConfigError, DataError, WireError
from flwr_afuic.models.arrays import get_arrays
from flwr_afuic.unlearning.excision import (
    ExcisionSettings,
    excess_loss,
    excise,
    excise_parameters,
    forget_directions,
)
from flwr_afuic.unlearning.local import STOP_DIVERGED, STOP_REACHED
from flwr_afuic.unlearning.pairs import (
    Pairs,
    as_towers,
    concatenate,
    contrastive_loss,
    forgetting_loss,
    pairs_gradient,
    score_pairs,
    similarities,
    targets_of,
)
from flwr_afuic.unlearning.procedures import read_settings, write_settings
from tests.unlearning.towers import Towers, pairs

torch.set_num_threads(1)


def trained(sets, steps: int = 150) -> Towers:
    model, data = Towers(), concatenate(sets)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        v, t = model.embed_images(data.images), model.embed_texts(data.tokens, data.mask)
        loss = contrastive_loss(v, t, model.scale(), data.groups)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def learnt():
    return trained([pairs(1), pairs(2)])


# ---- pairs ---------------------------------------------------------------------------


def test_info_nce_by_hand():
    v, t = torch.eye(2), torch.eye(2)
    loss = contrastive_loss(v, t, torch.tensor(3.0), torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-3.0)))
    # With one caption twice there is nothing to tell apart: half the mass each.
    same = contrastive_loss(v, torch.ones(2, 2) / 2**0.5, torch.tensor(3.0), torch.tensor([7, 7]))
    assert float(same) == pytest.approx(math.log(2))


def test_the_forgetting_loss_by_hand():
    same = torch.eye(1).expand(2, 1)
    loss = forgetting_loss(same, same, torch.tensor(3.0), torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(-math.log(1 - 0.25))


def test_targets_share_a_group():
    expected = [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]
    assert targets_of(torch.tensor([4, 5, 4])).tolist() == expected


def test_scores_count_identical_captions_as_hits(learnt):
    data = pairs(1)
    score = score_pairs(learnt, data)
    assert score.accuracy > 0.9
    assert score.count == 12
    one = Pairs(data.images, data.tokens[:1].expand(12, -1), data.mask, torch.zeros(12, dtype=int))
    assert score_pairs(learnt, one).accuracy == 1.0
    among = score_pairs(learnt, data, pairs(3, 200))
    assert among.accuracy < score.accuracy
    assert among.count == 12


def test_the_gradient_is_the_losss(learnt):
    data = pairs(2)
    arrays = pairs_gradient(learnt, data)
    names = list(learnt.state_dict())
    step = 1e-3
    moved = copy.deepcopy(learnt)
    with torch.no_grad():
        for parameter, array in zip(moved.parameters(), arrays, strict=True):
            parameter -= step * torch.from_numpy(array)

    def loss(model):
        v, t = model.embed_images(data.images), model.embed_texts(data.tokens, data.mask)
        return float(contrastive_loss(v, t, model.scale(), data.groups))

    slope = (loss(learnt) - loss(moved)) / step
    assert names == [n for n, _ in learnt.named_parameters()]
    assert slope == pytest.approx(sum(float(np.vdot(a, a)) for a in arrays), rel=0.1)
    assert np.linalg.norm(pairs_gradient(learnt, data, loss="unlearning-cross-entropy")[0]) > 0
    with pytest.raises(DataError, match="unknown loss"):
        pairs_gradient(learnt, data, loss="other")


def test_what_is_no_set_of_pairs_or_no_two_towers():
    data = pairs(1)
    with pytest.raises(DataError, match="pairs of 12 images"):
        Pairs(data.images, data.tokens[:3], data.mask[:3], data.groups)
    with pytest.raises(DataError, match="lacks embed_images"):
        as_towers(torch.nn.Linear(1, 1))
    for use in (similarities, score_pairs, pairs_gradient):
        with pytest.raises(DataError, match="pass at least one"):
            use(Towers(), data.take([]))


# ---- the loss ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "moves"), [("both", (1, 1)), ("vision", (1, 0)), ("text", (0, 1))]
)
def test_each_side_moves_its_own_tower(learnt, sides, moves):
    data = pairs(1)
    v, t = learnt.embed_images(data.images), learnt.embed_texts(data.tokens, data.mask)
    loss = excess_loss(v, t, torch.zeros(12), sides)
    parts = (learnt.vision_model.lora_B, learnt.text_model.lora_B)
    gradients = torch.autograd.grad(loss, parts, allow_unused=True)
    norms = [0.0 if g is None else float(g.norm()) for g in gradients]
    assert [norm > 0 for norm in norms] == [bool(move) for move in moves]


def test_the_excess_by_hand():
    v, t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.8, 0.6], [1.0, 0.0]])
    assert float(excess_loss(v, t, torch.tensor([0.5, 0.4]), "vision")) == pytest.approx(0.09 / 2)
    assert float(excess_loss(v, t, torch.tensor([0.5, 0.4]))) == pytest.approx(0.09)


# ---- the excision --------------------------------------------------------------------


def test_excised_pairs_fall_to_what_the_base_knew_and_kept_ones_stay(learnt):
    model, forget, kept = copy.deepcopy(learnt), pairs(1), pairs(2)
    settings = ExcisionSettings(steps=200, lr=0.5)
    outcome = excise(model, forget, kept, settings=settings, seed=0)
    assert outcome.before.accuracy > 0.9
    assert outcome.after.accuracy <= outcome.reference.accuracy + 0.15
    assert score_pairs(model, kept).accuracy > 0.9
    with model.adapters_off():
        base = similarities(model, forget)
    excess = torch.relu(similarities(model, forget) - base)
    before = torch.relu(similarities(learnt, forget) - base)
    assert float(excess.mean()) < 0.2 * float(before.mean())
    assert outcome.delta_norm > 0


def test_nothing_is_done_where_the_forget_level_is_met():
    model = Towers()
    before = [p.detach().clone() for p in model.parameters()]
    outcome = excise(model, pairs(1), None, settings=ExcisionSettings(), seed=0)
    assert (outcome.stop_reason, outcome.steps, outcome.delta_norm) == (STOP_REACHED, 0, 0.0)
    assert outcome.after == outcome.before
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    ascent = ExcisionSettings(objective="pairs-ascent", steps=3)  # has no level to stop at
    assert excise(model, pairs(1), None, settings=ascent, seed=0).steps == 3


def test_it_repeats_with_a_seed_and_keeps_to_its_radius(learnt):
    models = [copy.deepcopy(learnt) for _ in range(3)]
    settings = ExcisionSettings(steps=8, batch_size=4, radius=0.05)
    for model, seed in zip(models, (0, 0, 1), strict=True):
        outcome = excise(model, pairs(1), pairs(2), settings=settings, seed=seed)
        assert outcome.delta_norm <= 0.05 * (1 + 1e-6)
    first, same, other = (np.concatenate([a.ravel() for a in get_arrays(m)]) for m in models)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_ascent_raises_the_loss(learnt):
    model = copy.deepcopy(learnt)
    settings = ExcisionSettings(objective="pairs-ascent", steps=10, gamma=0.0)
    outcome = excise(model, pairs(1), None, settings=settings, seed=0)
    assert outcome.after.loss > outcome.before.loss


def test_a_diverged_excision_gives_the_snapshot_back(learnt):
    model, forget = copy.deepcopy(learnt), pairs(1)
    forget.images[0] = float("nan")
    outcome = excise(model, forget, None, settings=ExcisionSettings(), seed=0)
    assert outcome.stop_reason == STOP_DIVERGED
    for mine, theirs in zip(get_arrays(model), get_arrays(learnt), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_parameter_mode_takes_back_what_lies_along_the_basis():
    blocks = Blocks(["vision_model.layers.0.a", "text_model.layers.0.a"], [3, 2])
    basis = BlockBasis(blocks, {"vision/0": np.eye(3)[:1], "text/0": np.array([[0.6, 0.8]])})
    initial, model = np.ones(5), np.array([5.0, 5.0, 5.0, 4.0, 5.0])
    found = excise_parameters(model, initial, basis, 1.0)
    np.testing.assert_allclose(basis.coordinates(found), basis.coordinates(initial), atol=1e-12)
    np.testing.assert_allclose(found[1:3], 5.0)
    half = excise_parameters(model, initial, basis, 0.5)
    np.testing.assert_allclose(half, (found + model) / 2)
    np.testing.assert_array_equal(model, [5, 5, 5, 4, 5])
    with pytest.raises(ConfigError, match="beta"):
        excise_parameters(model, initial, basis, 0.0)


def test_forget_directions_are_where_the_pairs_are_learned_again(learnt):
    rows = forget_directions(Towers(), pairs(1), rank=3, seed=0)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5)
    assert rows.shape[1] == sum(a.size for a in get_arrays(learnt))
    gradient = np.concatenate([g.ravel() for g in pairs_gradient(Towers(), pairs(1))])
    inside = np.linalg.norm(rows @ gradient) / np.linalg.norm(gradient)
    assert inside > 0.9


def test_settings_cross_the_wire():
    settings = ExcisionSettings(objective="bke", sides="text", steps=7, radius=1.5)
    assert read_settings(settings.to_json()) == settings
    assert read_settings(write_settings(settings)) == settings
    spoilt = (
        ({"steps": "many"}, WireError),
        ({"step": 1}, WireError),
        ({"sides": "left"}, ConfigError),
        ({"lr": -1.0}, ConfigError),
    )
    for change, error in spoilt:
        text = json.dumps({**json.loads(settings.to_json()), **change})
        with pytest.raises(error):
            read_settings(text)
    with pytest.raises(ConfigError, match="objective"):
        ExcisionSettings(objective="ascent")
