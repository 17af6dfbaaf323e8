"""Average gap: how far an unlearned model is from retraining over all scores at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import share


@dataclass(frozen=True)
class Scores:
    """What one model scores; every field in [0, 1].

    Attributes
    ----------
    test, forget : float
        Accuracy, balanced accuracy, AUROC or Dice, on test data and on the erased data.
    membership_auc : float
        Erased data against unseen data of the same site.
    backdoor_success : float, optional
        Where there is a trigger.

    Raises
    ------
    ConfigError
        If a score is NaN or outside [0, 1].
    """

    test: float
    forget: float
    membership_auc: float
    backdoor_success: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.present().items():
            share(value, name)

    def present(self) -> dict[str, float]:
        """Return the scores by name, without backdoor success where there is no trigger."""
        scores = {
            "test": self.test,
            "forget": self.forget,
            "membership_auc": self.membership_auc,
        }
        if self.backdoor_success is not None:
            scores["backdoor_success"] = self.backdoor_success
        return scores


def gaps(unlearned: Scores, retrained: Scores) -> dict[str, float]:
    """Every score of the unlearned model minus retraining's, signed, by name.

    Parameters
    ----------
    unlearned, retrained : Scores

    Returns
    -------
    dict of str to float
        Keys ``test``, ``forget``, ``membership_auc`` and, with a trigger, ``backdoor_success``.

    Raises
    ------
    ConfigError
        If only one of the two has a backdoor success.

    Examples
    --------
    >>> gaps(Scores(0.5, 0.75, 0.5), Scores(0.75, 0.5, 0.5))
    {'test': -0.25, 'forget': 0.25, 'membership_auc': 0.0}
    """
    left, right = unlearned.present(), retrained.present()
    if left.keys() != right.keys():
        raise ConfigError(
            "only one of unlearned and retrained has a backdoor_success; score the trigger on both"
        )
    return {name: left[name] - right[name] for name in left}


def average_gap(unlearned: Scores, retrained: Scores) -> float:
    """Mean of |U - R| over test, forget, membership AUC and, with a trigger, backdoor success.

    NoT (CVPR 2025) averages over retain, forget, test and membership; the backdoor instead of
    the retain score is this project's decision.

    Parameters
    ----------
    unlearned, retrained : Scores

    Returns
    -------
    float
        In [0, 1]; 0 means indistinguishable from retraining by these scores.

    Raises
    ------
    ConfigError
        If only one of the two has a backdoor success.

    Examples
    --------
    >>> average_gap(Scores(0.5, 0.75, 0.5), Scores(0.75, 0.5, 0.25))
    0.25
    """
    return float(np.mean([abs(gap) for gap in gaps(unlearned, retrained).values()]))
