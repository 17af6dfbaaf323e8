"""Resurfacing: erased influence that comes back while the retained sites train on."""

from __future__ import annotations

from dataclasses import dataclass

from flwr_afuic.metrics._curves import Curve, align


@dataclass(frozen=True)
class Resurfacing:
    """Unlearned minus retrained over the rounds after a merge.

    Attributes
    ----------
    mean, max : float
        Of `values`, signed: negative means below retraining.
    values : tuple of float, length k
        Difference at every round.
    rounds : tuple of int, length k
        The rounds compared. Fewer than 30 say little about staying erased.
    """

    mean: float
    max: float
    values: tuple[float, ...]
    rounds: tuple[int, ...]

    @property
    def n_rounds(self) -> int:
        """How many rounds were compared."""
        return len(self.rounds)


def resurfacing(
    unlearned_curve: Curve, retrain_curve: Curve, *, merge_round: int | None = None
) -> Resurfacing:
    """Mean and maximum over rounds of m(U_k) - m(R_k), aligned by round.

    Subtracting retraining's curve matters: forget accuracy also rises by generalisation.

    Parameters
    ----------
    unlearned_curve, retrain_curve : mapping of int to float, or array of shape (n,)
        A score that is higher the more is remembered (backdoor success, forget accuracy,
        membership AUC; never a loss) by round. An array's index is the round. Rounds that only
        one curve has are left out.
    merge_round : int, optional
        Round of the merge: only later rounds count. Without it, all shared rounds do.

    Returns
    -------
    Resurfacing

    Raises
    ------
    ConfigError
        If a curve is empty or not finite, or no round is shared after the merge.

    Examples
    --------
    >>> result = resurfacing({6: 0.25, 7: 0.5, 8: 0.9}, {6: 0.25, 7: 0.25}, merge_round=5)
    >>> result.mean, result.max, result.n_rounds
    (0.125, 0.25, 2)
    """
    first = None if merge_round is None else merge_round + 1
    names = ("unlearned_curve", "retrain_curve")
    rounds, unlearned, retrained = align(unlearned_curve, retrain_curve, names, first)
    values = unlearned - retrained
    return Resurfacing(
        mean=float(values.mean()),
        max=float(values.max()),
        values=tuple(values.tolist()),
        rounds=tuple(rounds.tolist()),
    )
