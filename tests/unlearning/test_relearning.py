"""The relearning basis: it spans the way back, and nothing random does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from flwr_afuic.calibration.basis import check_basis
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.federation.layout import Layout
from flwr_afuic.models.arrays import get_arrays
from flwr_afuic.unlearning.relearning import (
    RelearningSettings,
    principal_directions,
    relearning_basis,
)


def flat(model):
    arrays = get_arrays(model)
    return Layout.of(model.state_dict(), arrays).flatten(arrays)


@pytest.fixture
def unlearned(model, toy):
    """A model that was pushed off the marked images."""
    x, y = toy.marked(32, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.eval()
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), 1 - y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.train()
    return model


def basis_of(model, toy, rank=3, **options):
    x, y = toy.marked(32, 9)
    return relearning_basis(model, forget_x=x, forget_y=y, rank=rank, seed=1, **options)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_it_is_what_the_servers_check_wants(unlearned, toy, rank):
    basis = basis_of(unlearned, toy, rank)
    assert basis.shape == (rank, len(flat(unlearned)))
    assert basis.dtype == np.float32
    check_basis(basis, rank, len(flat(unlearned)))


def test_it_leaves_the_model_alone_and_repeats(unlearned, toy):
    before = copy.deepcopy(unlearned.state_dict())
    one, two = basis_of(unlearned, toy), basis_of(unlearned, toy)
    assert np.array_equal(one, two)
    assert all(torch.equal(before[name], value) for name, value in unlearned.state_dict().items())
    assert unlearned.training


def test_a_step_along_it_relearns(unlearned, toy):
    """The loss on the erased data falls along +row 0 and rises along -row 0."""
    x, y = toy.marked(64, 77)
    basis = basis_of(unlearned, toy)

    def loss(step):
        moved = copy.deepcopy(unlearned)
        start = 0
        with torch.no_grad():
            for parameter in moved.parameters():
                part = step[start : start + parameter.numel()]
                parameter += torch.from_numpy(part).float().reshape(parameter.shape)
                start += parameter.numel()
        moved.eval()
        return float(functional.cross_entropy(moved(x), y).detach())

    here = loss(np.zeros(basis.shape[1]))
    assert loss(0.3 * basis[0]) < here - 0.05
    assert loss(-0.3 * basis[0]) > here + 0.05


def test_it_spans_the_way_that_ordinary_training_goes(unlearned, toy):
    x, y = toy.marked(32, 9)
    learner = copy.deepcopy(unlearned)
    learner.eval()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        functional.cross_entropy(learner(x), y).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 5.0)
        optimizer.step()
    way = flat(learner) - flat(unlearned)
    way /= np.linalg.norm(way)
    assert np.linalg.norm(basis_of(unlearned, toy) @ way) > 0.99
    random = np.linalg.qr(np.random.default_rng(0).normal(size=(len(way), 3)))[0].T
    assert np.linalg.norm(random @ way) < 0.3


def test_moves_by_hand():
    moves = np.array([[3.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0]])
    basis = principal_directions(moves)
    np.testing.assert_allclose(basis, [[1, 0, 0, 0], [0, -1, 0, 0]], atol=1e-6)


def test_signs_follow_the_whole_movement():
    rng = np.random.default_rng(3)
    for _ in range(20):
        moves = rng.normal(size=(4, 30))
        assert (principal_directions(moves) @ moves.sum(axis=0) >= 0).all()


@pytest.mark.parametrize("moves", [[[1.0, 2.0, 3.0]] * 3, [[1.0, 0, 0], [2.0, 0, 0], [0, 0, 0]]])
def test_fewer_directions_give_fewer_rows(moves):
    assert principal_directions(np.array(moves)).shape == (1, 3)


def test_no_movement_gives_no_row():
    assert principal_directions(np.zeros((2, 5))).shape == (0, 5)


@pytest.mark.parametrize("rank", [0, -1, True])
def test_a_rank_is_a_count(unlearned, toy, rank):
    with pytest.raises(ConfigError, match="rank"):
        basis_of(unlearned, toy, rank)


def test_what_diverges_is_said(unlearned, toy):
    with pytest.raises(DataError, match="diverged"):
        basis_of(unlearned, toy, settings=RelearningSettings(lr=1e30, clip=1e30))


def test_an_empty_forget_set_is_refused(unlearned):
    with pytest.raises(DataError):
        relearning_basis(
            unlearned, forget_x=torch.zeros(0, 1, 8, 8), forget_y=torch.zeros(0).long(),
            rank=1, seed=0,
        )  # fmt: skip
