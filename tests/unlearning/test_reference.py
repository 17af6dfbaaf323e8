from __future__ import annotations

import copy

import pytest
import torch

from flwr_afuic.calibration.transforms import IdentityPhi
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.unlearning.inference import score
from flwr_afuic.unlearning.reference import DistillationSettings, distil_reference

SETTINGS = DistillationSettings(steps=150, views=4)


def test_the_reference_knows_the_task_and_not_what_was_erased(toy, model):
    student = toy.network(seed=9)
    teacher_state = {k: v.clone() for k, v in model.state_dict().items()}
    distil_reference(model, student, toy.images(128, 50)[0], settings=SETTINGS, seed=0)
    assert score(model, *toy.marked(200, 60)).accuracy > 0.95
    assert score(student, *toy.images(200, 70)).accuracy > 0.9
    assert score(student, *toy.marked(200, 60)).accuracy < 0.75  # chance is .5
    assert all(torch.equal(v, teacher_state[k]) for k, v in model.state_dict().items())


def test_only_the_seed_decides(toy, model):
    short = DistillationSettings(steps=5, views=2)
    proxies = toy.images(64, 50)[0]
    states = []
    for noise, seed in [(1, 3), (2, 3), (3, 4)]:
        student = toy.network(seed=9)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        distil_reference(model, student, proxies, settings=short, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        states.append(copy.deepcopy(student.state_dict()))
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_modes_are_restored(toy, model):
    student = toy.network()
    student.eval()
    distil_reference(
        model,
        student,
        toy.images(8, 50)[0],
        settings=DistillationSettings(steps=2),
        phi=IdentityPhi(),
        seed=0,
    )
    assert not any(module.training for module in student.modules())
    assert all(module.training for module in model.modules())
    assert student[1].num_batches_tracked == 2  # the student's own statistics are learned


def test_what_does_not_fit_is_refused(toy, model):
    with pytest.raises(DataError, match="proxies"):
        distil_reference(model, toy.network(), torch.zeros(0, 1, 8, 8), seed=0)
    for wrong in ({"steps": 0}, {"views": -1}, {"lr": 0.0}, {"momentum": 1.0}, {"clip": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DistillationSettings(**wrong)
