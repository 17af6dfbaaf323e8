"""The forget level: when a model has forgotten enough, and when it has forgotten too much."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr_afuic.errors import ConfigError

LOSS_SHARE = 0.8
ACCURACY_SLACK = 0.05
OVER_ACCURACY_GAP = 0.25
OVER_LOSS_FACTOR = 3.0
OVER_LOSS_GAP = 1.0
MOST_NAME = 40


@dataclass(frozen=True)
class ForgetScore:
    """A model's score on a set of labelled images, usually the forget set D_f.

    Parameters
    ----------
    loss : float
        Mean cross-entropy in nats. Must not be negative; infinity is allowed, NaN is not.
    accuracy : float
        Share of images classified as labelled, in ``[0, 1]``; of other tasks, their score: share
        of labels that are right, or mean Dice of a segmentation.
    count : int
        Number of images scored, at least 1.
    name : str
        What ``accuracy`` is, in words: ``accuracy``, ``label accuracy``, ``mean Dice``.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    loss: float
    accuracy: float
    count: int
    name: str = "accuracy"

    def __post_init__(self) -> None:
        if math.isnan(self.loss) or self.loss < 0:
            raise ConfigError(f"loss must be a cross-entropy >= 0, got {self.loss!r}")
        if not 0.0 <= self.accuracy <= 1.0:
            raise ConfigError(f"accuracy must lie in [0, 1], got {self.accuracy!r}")
        if self.count < 1:
            raise ConfigError(
                f"count must be at least 1, got {self.count!r}; score a non-empty set"
            )
        if not self.name.isprintable() or not 0 < len(self.name) <= MOST_NAME:
            raise ConfigError(
                f"a score's name must be 1 to {MOST_NAME} printable characters, "
                f"got {self.name[:60]!r}"
            )


@dataclass(frozen=True)
class LevelVerdict:
    """Whether the forget level is met.

    Parameters
    ----------
    met : bool
        The forget loss is high enough and the forget accuracy low enough.
    over_forgetting : bool
        The model does far worse on D_f than the reference, which never saw it. Reported, not
        gated on: a reference can itself be poor.
    text : str
        One sentence with the numbers compared, for logs, certificates and reports.
    """

    met: bool
    over_forgetting: bool
    text: str


def forget_level_met(current: ForgetScore, reference: ForgetScore) -> LevelVerdict:
    """Compare a model's score on D_f with the score of a reference that never saw D_f.

    The level is met when the mean loss is at least .8 of the reference's **and** the accuracy
    is at most the reference's + .05. Both are needed: a model may keep the labels it should
    forget at a low confidence, or lose a few samples entirely and keep the rest.

    Over-forgetting is an accuracy more than .25 below the reference's, or a loss above three
    times the reference's and more than 1 nat above it.

    Parameters
    ----------
    current : ForgetScore
        The model under test, on D_f.
    reference : ForgetScore
        The proxy-distilled reference on D_f, or, where there is none, the snapshot on data the
        site held out from training.

    Returns
    -------
    LevelVerdict

    Notes
    -----
    Our rule; the paper (arXiv 2604.26809) states no forget level.

    Examples
    --------
    >>> forget_level_met(ForgetScore(1.0, 0.5, 100), ForgetScore(1.2, 0.48, 100)).met
    True
    >>> forget_level_met(ForgetScore(0.3, 0.9, 100), ForgetScore(1.2, 0.48, 100)).met
    False
    """
    needed = LOSS_SHARE * reference.loss
    allowed = reference.accuracy + ACCURACY_SLACK
    # Accuracies are ratios of small counts: .55 against .50 + .05 must not fail by rounding.
    loss_ok = current.loss >= needed - 1e-9
    accuracy_ok = current.accuracy <= allowed + 1e-9
    over = current.accuracy < reference.accuracy - OVER_ACCURACY_GAP - 1e-9 or (
        current.loss > OVER_LOSS_FACTOR * reference.loss
        and current.loss > reference.loss + OVER_LOSS_GAP
    )
    met = loss_ok and accuracy_ok
    text = (
        f"forget level {'met' if met else 'not met'}: "
        f"loss {current.loss:.3f} (needs >= {needed:.3f}{'' if loss_ok else ', too low'}), "
        f"{reference.name} {current.accuracy:.3f} "
        f"(needs <= {allowed:.3f}{'' if accuracy_ok else ', too high'})"
    )
    if over:
        text += (
            f"; over-forgetting: the reference scores loss {reference.loss:.3f}, "
            f"{reference.name} {reference.accuracy:.3f}"
        )
    return LevelVerdict(met=met, over_forgetting=over, text=text)
