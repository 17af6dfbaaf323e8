"""What a federation learns: losses, scores and divergences of a task behind one interface.

A model says itself which task it is for, so that server and site need not be told again:
:func:`~flwr_afuic.models.networks.make_model` sets ``task_name``; a model without it classifies.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.errors import ConfigError
from flwr_afuic.monai_import import import_monai

_SMOOTH = 1e-5

SURE = math.log(9.0)
"""Log-odds of p = .9."""


@runtime_checkable
class Task(Protocol):
    """How outputs of a model are judged against targets, sample by sample.

    A sample is what is erased: an image, or a case with all of its voxels. Outputs have shape
    (n, k, spatial...), with no spatial axes unless ``dense``.
    """

    @property
    def name(self) -> str:
        """Name under which :func:`make_task` knows the task."""
        ...

    @property
    def score_name(self) -> str:
        """What :meth:`scores` are, in words."""
        ...

    @property
    def dense(self) -> bool:
        """Whether each voxel has an output, so that moving an image moves its output."""
        ...

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample, shape (n,), in nats: what the forget level compares."""
        ...

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean of :meth:`losses`, shape ()."""
        ...

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What a site minimises when it trains, shape ()."""
        ...

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How good each sample's output is, shape (n,), in [0, 1]; no gradient."""
        ...

    def certainty(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """By how much the target's log-odds exceed those of p = .9, shape (n,), >= 0."""
        ...

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Kullback-Leibler divergence of two outputs, mean over samples, shape (), in nats."""
        ...

    def imitation(self, teacher: Tensor, student: Tensor) -> Tensor:
        """What a student minimises to learn a teacher's outputs from scratch, shape ()."""
        ...

    def disagreement(self, one: Tensor, other: Tensor) -> float:
        """How far the decisions of two outputs differ, in [0, 1]."""
        ...


class Classification:
    """One class an image: cross-entropy and accuracy. Targets int64 (n,)."""

    name, score_name, dense = "classification", "accuracy", False

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(outputs, targets)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where the class is right, else 0."""
        return (outputs.argmax(dim=1) == targets).double()

    def certainty(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Excess of the labelled class's log-odds."""
        return functional.relu(_log_odds(outputs, targets) - SURE)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """``KL(softmax(teacher) || softmax(student))``."""
        return kl_divergence(teacher, student)

    def imitation(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The divergence."""
        return self.divergence(teacher, student)

    def disagreement(self, one: Tensor, other: Tensor) -> float:
        """Share of images put into different classes."""
        return float((one.argmax(1) != other.argmax(1)).float().mean())


class MultiLabel:
    """Any number of labels an image: mean binary cross-entropy. Targets float (n, k), 0 or 1.

    The score is the share of labels that are right.
    """

    name, score_name, dense = "multi-label", "label accuracy", False

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, mean over labels."""
        losses = functional.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype), reduction="none"
        )
        return losses.mean(dim=1)

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over images and labels."""
        return self.losses(outputs, targets).mean()

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over images and labels."""
        return self.mean_loss(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Share of each image's labels that are right at p = .5."""
        return ((outputs > 0) == (targets > 0.5)).double().mean(dim=1)

    def certainty(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Excess of the log-odds of each right answer, mean over labels."""
        return functional.relu(torch.where(targets > 0.5, outputs, -outputs) - SURE).mean(dim=1)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Between the Bernoulli distributions of each label, mean over labels."""
        p = torch.sigmoid(teacher)
        yes = p * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
        no = (1 - p) * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
        return (yes + no).mean()

    def imitation(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The divergence."""
        return self.divergence(teacher, student)

    def disagreement(self, one: Tensor, other: Tensor) -> float:
        """Share of labels answered differently."""
        return float(((one > 0) != (other > 0)).float().mean())


class Segmentation:
    """One class a voxel: a case's loss is its mean voxel loss. Targets int64 (n, spatial...).

    Class 0 is the background; the score of a case is its mean Dice over the other classes. Sites
    train on MONAI's Dice loss plus cross-entropy, since the foreground is a few per cent of a
    volume.
    """

    name, score_name, dense = "segmentation", "mean Dice", True

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over the voxels of each case."""
        return functional.cross_entropy(outputs, targets, reduction="none").flatten(1).mean(dim=1)

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over cases; all are of one size."""
        return functional.cross_entropy(outputs, targets)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Dice loss of the foreground plus mean voxel cross-entropy."""
        import_monai()
        from monai.losses.dice import DiceCELoss

        measure = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        loss: Tensor = measure(outputs, targets[:, None])
        return loss

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean Dice of each case over its foreground classes."""
        from flwr_afuic.metrics.segmentation import dice_scores

        return dice_scores(decided(outputs), targets, outputs.shape[1])

    def certainty(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Excess of the log-odds of each voxel's class, mean over voxels."""
        return functional.relu(_log_odds(outputs, targets) - SURE).flatten(1).mean(dim=1)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """``KL(softmax(teacher) || softmax(student))``, mean over voxels."""
        return kl_divergence(teacher, student)

    def imitation(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The divergence, plus a soft Dice loss of the foreground against the teacher's.

        From scratch the divergence alone stays for hundreds of steps where all is background,
        which is right at almost every voxel.
        """
        wanted, given = teacher.softmax(dim=1)[:, 1:], student.softmax(dim=1)[:, 1:]
        axes = (0, *range(2, student.ndim))
        shared = (wanted * given).sum(dim=axes)
        total = wanted.sum(dim=axes) + given.sum(dim=axes)
        dice = 1 - (2 * shared + _SMOOTH) / (total + _SMOOTH)
        return self.divergence(teacher, student) + dice.mean()

    def disagreement(self, one: Tensor, other: Tensor) -> float:
        """1 - the mean Dice between the two segmentations."""
        return 1.0 - float(self.scores(one, decided(other)).mean())


def decided(outputs: Tensor) -> Tensor:
    """Class of the greatest logit of each voxel, shape (n, *spatial).

    ``argmax`` along an axis that is not the last takes ten times as long on the CPU.
    """
    return outputs.max(dim=1).indices


def kl_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """``KL(softmax(teacher) || softmax(student))``, mean over samples and voxels, in nats.

    Parameters
    ----------
    teacher, student : Tensor, shape (n, k, *spatial)
        Logits; gradient flows through both unless detached.

    Returns
    -------
    Tensor, shape ()
    """
    total = functional.kl_div(
        functional.log_softmax(student, dim=1),
        functional.log_softmax(teacher, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    voxels = math.prod(student.shape[2:])
    return total if voxels == 1 else total / voxels


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of the labelled class, shaped like labels; exact where p rounds to 1."""
    own = labels[:, None]
    others = logits.scatter(1, own, float("-inf"))
    return logits.gather(1, own)[:, 0] - others.logsumexp(dim=1)


CLASSIFICATION = Classification()
_TASKS: dict[str, Task] = {
    task.name: task for task in (CLASSIFICATION, MultiLabel(), Segmentation())
}
TASK_NAMES = tuple(_TASKS)
_ATTRIBUTE = "task_name"


def make_task(name: str) -> Task:
    """Return a task by name.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if name not in _TASKS:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(TASK_NAMES)}")
    return _TASKS[name]


def task_of(model: nn.Module) -> Task:
    """Return the task a model says it is for; classification where it says nothing."""
    return make_task(getattr(model, _ATTRIBUTE, CLASSIFICATION.name))


def set_task(model: nn.Module, name: str) -> None:
    """Have a model say which task it is for."""
    setattr(model, _ATTRIBUTE, make_task(name).name)
