"""Tasks: losses, scores and divergences, and unlearning of each."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from flwr_afuic.calibration.fidelity import keep_fidelity
from flwr_afuic.calibration.invariance import calibrate
from flwr_afuic.calibration.transforms import IdentityPhi, MonaiPhi
from flwr_afuic.errors import ConfigError
from flwr_afuic.unlearning import inference
from flwr_afuic.unlearning.inference import predict, sample_losses, score
from flwr_afuic.unlearning.level import forget_level_met
from flwr_afuic.unlearning.local import unlearn
from flwr_afuic.unlearning.objectives import OBJECTIVE_NAMES
from flwr_afuic.unlearning.reference import DistillationSettings, distil_reference
from flwr_afuic.unlearning.settings import UnlearningSettings
from flwr_afuic.unlearning.tasks import TASK_NAMES, Task, make_task, set_task, task_of

VOLUME = (8, 8, 4)


def sample_of(task: str, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Random outputs of three classes, and targets."""
    generator = torch.Generator().manual_seed(5)
    spatial = VOLUME if task == "segmentation" else ()
    outputs = 3 * torch.randn(n, 3, *spatial, generator=generator)
    if task == "multi-label":
        return outputs, torch.randint(0, 2, (n, 3), generator=generator).float()
    return outputs, torch.randint(0, 3, (n, *spatial), generator=generator)


def perfect(task: str, targets: torch.Tensor, strength: float) -> torch.Tensor:
    if task == "multi-label":
        return strength * (2 * targets - 1)
    return strength * functional.one_hot(targets, 3).movedim(-1, 1).float()


@pytest.mark.parametrize("name", TASK_NAMES)
class TestContract:
    def test_it_is_a_task(self, name: str) -> None:
        assert isinstance(make_task(name), Task)
        assert make_task(name).name == name

    def test_one_loss_and_one_score_a_sample(self, name: str) -> None:
        task, (outputs, targets) = make_task(name), sample_of(name)
        losses, scores = task.losses(outputs, targets), task.scores(outputs, targets)
        assert losses.shape == scores.shape == task.certainty(outputs, targets).shape == (6,)
        assert float(losses.min()) > 0
        assert 0 <= float(scores.min()) <= float(scores.max()) <= 1
        torch.testing.assert_close(losses.mean(), task.mean_loss(outputs, targets))

    def test_samples_do_not_touch_each_other(self, name: str) -> None:
        task, (outputs, targets) = make_task(name), sample_of(name)
        for measure in (task.losses, task.scores, task.certainty):
            torch.testing.assert_close(
                measure(outputs[2:3], targets[2:3]), measure(outputs, targets)[2:3]
            )

    def test_a_perfect_output_has_no_loss_and_full_score(self, name: str) -> None:
        task, (_, targets) = make_task(name), sample_of(name)
        sure = perfect(name, targets, 50.0)
        assert float(task.mean_loss(sure, targets)) < 1e-6
        assert task.scores(sure, targets).tolist() == [1.0] * 6
        assert float(task.certainty(sure, targets).min()) > 10
        unsure = perfect(name, targets, 0.1)
        assert task.certainty(unsure, targets).tolist() == [0.0] * 6

    def test_divergence(self, name: str) -> None:
        task, (one, targets) = make_task(name), sample_of(name)
        other = perfect(name, targets, 2.0)
        assert float(task.divergence(one, one)) == pytest.approx(0, abs=1e-6)
        assert float(task.divergence(one, other)) > 0.1
        # A pure mean: seeing every sample twice changes nothing.
        twice = task.divergence(torch.cat([one, one]), torch.cat([other, other]))
        torch.testing.assert_close(twice, task.divergence(one, other))

    def test_imitation_draws_a_student_towards_its_teacher(self, name: str) -> None:
        task, (teacher, _) = make_task(name), sample_of(name)
        student = torch.zeros_like(teacher).requires_grad_(True)
        before = float(task.divergence(teacher, student.detach()))
        for _ in range(30):
            (slope,) = torch.autograd.grad(task.imitation(teacher, student), student)
            student = (student - 20 * slope).detach().requires_grad_(True)
        assert float(task.divergence(teacher, student.detach())) < before

    def test_disagreement(self, name: str) -> None:
        task, (one, targets) = make_task(name), sample_of(name)
        assert task.disagreement(one, 5 * one) == pytest.approx(0)
        assert 0 < task.disagreement(one, perfect(name, targets, 1.0)) <= 1

    def test_training_lowers_the_loss(self, name: str) -> None:
        task, (outputs, targets) = make_task(name), sample_of(name)
        logits = outputs.clone().requires_grad_(True)
        before = float(task.mean_loss(logits.detach(), targets))
        for _ in range(20):
            (slope,) = torch.autograd.grad(task.training_loss(logits, targets), logits)
            logits = (logits - 5 * slope).detach().requires_grad_(True)
        assert float(task.mean_loss(logits.detach(), targets)) < before


def test_the_loss_of_a_case_is_its_mean_voxel_loss() -> None:
    task = make_task("segmentation")
    outputs = torch.zeros(1, 2, 2, 2, 1)
    outputs[0, 1, 0, 0, 0] = math.log(3.0)  # p = 3/4 at one voxel, 1/2 at three
    targets = torch.ones(1, 2, 2, 1, dtype=torch.int64)
    expected = (math.log(4 / 3) + 3 * math.log(2)) / 4
    assert float(task.losses(outputs, targets)) == pytest.approx(expected, rel=1e-5)


def test_a_rare_foreground_is_imitated_at_once() -> None:
    """The divergence alone hardly notices one voxel in 4,096."""
    task = make_task("segmentation")
    teacher = torch.zeros(1, 2, 16, 16, 16)
    teacher[:, 0] = 8.0
    teacher[0, :, 8, 8, 8] = torch.tensor([-8.0, 8.0])
    student = torch.zeros_like(teacher)
    student[:, 0] = 4.0
    student.requires_grad_(True)
    slopes = [
        float(torch.autograd.grad(measure(teacher, student), student)[0][0, 1, 8, 8, 8])
        for measure in (task.divergence, task.imitation)
    ]
    assert slopes[1] < 2 * slopes[0] < 0


def test_multi_label_divergence_by_hand() -> None:
    task = make_task("multi-label")
    teacher, student = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    # KL(1/2 || 3/4) = ln(1/2 / (3/4)) / 2 + ln(1/2 / (1/4)) / 2, and 0, over two labels
    expected = (math.log(2 / 3) + math.log(2)) / 2 / 2
    assert float(task.divergence(teacher, student)) == pytest.approx(expected, rel=1e-5)


def test_a_model_says_its_task() -> None:
    model = nn.Linear(2, 2)
    assert task_of(model).name == "classification"
    set_task(model, "multi-label")
    assert task_of(copy.deepcopy(model)).name == "multi-label"
    with pytest.raises(ConfigError, match="known: classification"):
        set_task(model, "regression")
    model.task_name = "nonsense"
    with pytest.raises(ConfigError, match="'nonsense'"):
        task_of(model)


def problem(name: str, n: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with targets that can be learned: bright voxels, or which half is bright."""
    generator = torch.Generator().manual_seed(seed)
    if name == "segmentation":
        x = torch.rand(n, 1, *VOLUME, generator=generator)
        return x, (x[:, 0] > 0.5).long() + (x[:, 0] > 0.8).long()
    x = torch.rand(n, 1, 8, 8, generator=generator)
    if name == "multi-label":
        return x, torch.stack([x.mean((1, 2, 3)) > 0.5, x[:, 0, :4].mean((1, 2)) > 0.5], 1).float()
    return x, (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()


def network(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "segmentation":
            model: nn.Module = nn.Sequential(
                nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 3, 1)
            )
        else:
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    set_task(model, name)
    return model


def trained(name: str, x: torch.Tensor, y: torch.Tensor, steps: int = 150) -> nn.Module:
    model, task = network(name), make_task(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        task.training_loss(model(x), y).backward()
        optimizer.step()
    return model


QUICK = UnlearningSettings(
    steps=60, attempts=3, batch_size=8, anchor_batch_size=8, lr=0.2, anchor_weight=1.0
)


@pytest.mark.parametrize("name", ["multi-label", "segmentation"])
def test_unlearning_raises_the_loss_to_the_references(name: str) -> None:
    x, y = problem(name)
    model = trained(name, x, y)
    proxies, _ = problem(name, seed=1)
    reference = network(name, seed=1)  # knows nothing
    outcome = unlearn(
        model,
        forget_x=x[:8],
        forget_y=y[:8],
        anchor_x=proxies,
        reference=reference,
        holdout=None,
        settings=QUICK,
        seed=1,
    )
    assert outcome.reference is not None
    assert not forget_level_met(outcome.before, outcome.reference).met
    assert outcome.after.loss > outcome.before.loss
    assert outcome.after.accuracy < outcome.before.accuracy
    assert outcome.after == score(model, x[:8], y[:8])


@pytest.mark.parametrize("name", ["multi-label", "segmentation"])
@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_every_objective_takes_every_task(name: str, objective: str) -> None:
    x, y = problem(name)
    model = trained(name, x, y, steps=30)
    settings = UnlearningSettings(objective=objective, steps=5, attempts=1, check_every=2)
    outcome = unlearn(
        model,
        forget_x=x[:8],
        forget_y=y[:8],
        anchor_x=x[8:],
        reference=network(name, seed=1),
        holdout=None,
        settings=settings,
        seed=1,
    )
    assert math.isfinite(outcome.delta_norm)
    assert outcome.delta_norm > 0


@pytest.mark.parametrize("name", ["multi-label", "segmentation"])
def test_a_hold_out_can_stand_in_for_the_reference(name: str) -> None:
    x, y = problem(name)
    model = trained(name, x, y)
    level = score(network(name, seed=1), x[8:], y[8:])
    outcome = unlearn(
        model,
        forget_x=x[:8],
        forget_y=y[:8],
        anchor_x=x[8:],
        reference=None,
        holdout=level,
        settings=QUICK,
        seed=1,
    )
    assert outcome.after.loss > outcome.before.loss


@pytest.mark.parametrize("name", ["multi-label", "segmentation"])
def test_the_servers_steps_take_every_task(name: str) -> None:
    x, y = problem(name)
    teacher = trained(name, x, y)
    student = network(name, seed=1)
    far = float(make_task(name).divergence(predict(teacher, x), predict(student, x)))
    settings = DistillationSettings(steps=120, batch_size=8, views=1)
    distil_reference(teacher, student, x, settings=settings, seed=1)
    near = float(make_task(name).divergence(predict(teacher, x), predict(student, x)))
    assert near < 0.7 * far
    drifted = copy.deepcopy(student)
    keep_fidelity(drifted, teacher, x, IdentityPhi(), seed=1)
    kept = float(make_task(name).divergence(predict(teacher, x), predict(drifted, x)))
    assert kept < near


def test_invariance_of_a_segmentation_moves_no_voxel() -> None:
    """With nothing but movements in Phi there is nothing to be invariant to."""
    x, y = problem("segmentation")
    model = trained("segmentation", x, y, steps=30)
    before = copy.deepcopy(model)
    calibrate(model, x, MonaiPhi(contrast=0, brightness=0, noise=0), seed=1)
    worst = max(
        float((a - b).detach().abs().max())
        for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )
    assert worst < 1e-6
    calibrate(model, x, MonaiPhi(), seed=1)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )


def test_volumes_are_moved_slice_by_slice_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 12, 12, generator=generator)
    volume = image[..., None].expand(-1, -1, -1, -1, 5).contiguous()
    phi = MonaiPhi(contrast=0, brightness=0, noise=0)
    flat = phi(image, generator=torch.Generator().manual_seed(3))
    moved = phi(volume, generator=torch.Generator().manual_seed(3))
    assert moved.shape == volume.shape
    assert not torch.allclose(moved, volume)
    for depth in range(5):
        torch.testing.assert_close(moved[..., depth], flat)


def test_losses_by_sample_are_those_of_the_task() -> None:
    x, y = problem("segmentation")
    model = network("segmentation")
    losses = sample_losses(model, x, y)
    assert losses.shape == (24,)
    assert float(losses.mean()) == pytest.approx(score(model, x, y).loss, rel=1e-6)


def test_large_volumes_go_through_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem("segmentation")
    model = network("segmentation")
    whole, together = predict(model, x), score(model, x, y)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(inference, "_MOST_ENTRIES", 7 * 8 * 8 * 4)
    torch.testing.assert_close(predict(model, x), whole)
    assert max(sizes) == 7
    apart = score(model, x, y)
    assert apart.loss == pytest.approx(together.loss, rel=1e-6)
    assert apart.accuracy == pytest.approx(together.accuracy)
    assert max(sizes) == 7
