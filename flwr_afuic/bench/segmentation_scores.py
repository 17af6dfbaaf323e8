"""Scores of segmentation models around an erasure: Dice, membership by case, surfaces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flwr_afuic.app.arms import Recorder
from flwr_afuic.bench.hippocampus import HippocampusData, HippocampusSettings
from flwr_afuic.errors import DataError
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.metrics import membership_auc, resurfacing
from flwr_afuic.metrics.segmentation import hausdorff_distances
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.unlearning.inference import predict, sample_results, score
from flwr_afuic.unlearning.tasks import decided

_LAST_ROUNDS = 5  # gaps are means over so many rounds: one model's Dice wavers


@dataclass(frozen=True)
class VolumeScores:
    """Scores of one model.

    Attributes
    ----------
    dice, forget_dice : float
        Mean Dice on cases of no site, and on D_f.
    kept_dice : float or None
        On what the erasing site keeps.
    membership_auc : float
        Telling D_f from the test cases by the loss of a case.
    """

    dice: float
    forget_dice: float
    kept_dice: float | None
    membership_auc: float


SCORE_NAMES = tuple(VolumeScores.__dataclass_fields__)


@dataclass(frozen=True)
class ArmCurve:
    """What one arm left: its scores by round from the request on, and how its request ended.

    Attributes
    ----------
    rounds : dict of int to VolumeScores
    hausdorff : float
        95th percentile on the test cases at the end, mean, in voxels.
    before : VolumeScores or None
        Of the model at the request; this and what follows of the arm that erases only.
    merge_round : int or None
        Of the last merge.
    attempts : int
        Merges it took.
    state, reason : str
    cpu_seconds : float
        What the arm took, all of its threads together; 0 where it was not timed.
    """

    rounds: dict[int, VolumeScores]
    hausdorff: float = math.nan
    before: VolumeScores | None = None
    merge_round: int | None = None
    attempts: int = 0
    state: str = ""
    reason: str = ""
    cpu_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a JSON that knows no NaN."""
        distance = self.hausdorff if math.isfinite(self.hausdorff) else None
        return {**asdict(self), "hausdorff": distance}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ArmCurve:
        """Read what :meth:`to_json` returned; DataError if it is damaged."""
        try:
            before = row["before"]
            rounds = {int(r): VolumeScores(**scores) for r, scores in row["rounds"].items()}
            distance = math.nan if row["hausdorff"] is None else float(row["hausdorff"])
            told = {**row, "rounds": rounds, "hausdorff": distance}
            return cls(**{**told, "before": None if before is None else VolumeScores(**before)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the scores of an arm are damaged: {error!r}; repeat it") from error


@dataclass
class AreaResult:
    """One erasure beside its bounds.

    Attributes
    ----------
    area : str
    curves : dict of str to ArmCurve
        By arm; ``afuic`` and ``retrain`` are always there.
    """

    area: str
    curves: dict[str, ArmCurve] = field(default_factory=dict)

    @property
    def merge_round(self) -> int:
        """Round of the last merge; DataError where there was none."""
        merged = self.curves["afuic"].merge_round
        if merged is None:
            raise DataError(f"the erasure of the {self.area} was not merged; nothing to compare")
        return merged

    def last(self, arm: str, name: str) -> float:
        """Mean of a score over the last rounds of an arm; NaN where it was not measured."""
        if arm not in self.curves:
            return math.nan
        curve = self.curves[arm].rounds
        values = [getattr(curve[r], name) for r in sorted(curve)[-_LAST_ROUNDS:]]
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if found else math.nan

    def gap(self, name: str, arm: str = "afuic") -> float:
        """Difference of an arm's score from retraining's over the last rounds."""
        return self.last(arm, name) - self.last("retrain", name)

    def series(self, arm: str, name: str) -> dict[int, float]:
        """One score by round, from the last merge on."""
        curve = self.curves[arm].rounds
        return {r: float(getattr(curve[r], name)) for r in sorted(curve) if r >= self.merge_round}

    def resurfacing(self, arm: str) -> tuple[float, float]:
        """Mean and greatest difference of an arm's forget Dice from retraining's since the merge.

        NaN of an arm that was not run.
        """
        if arm not in self.curves:
            return math.nan, math.nan
        back = resurfacing(
            self.series(arm, "forget_dice"),
            self.series("retrain", "forget_dice"),
            merge_round=self.merge_round,
        )
        return back.mean, back.max

    def figures(self) -> dict[str, float]:
        """Flat figures of this area; those that do not apply are left out."""
        found: dict[str, float] = {}
        for arm, start in (
            ("afuic", ""),
            ("retrain_floor", "floor/"),
            ("no_unlearning", "no_unlearning/"),
        ):
            mean, most = self.resurfacing(arm)
            found |= {
                f"{start}dice_gap": self.gap("dice", arm),
                f"{start}forget_dice_gap": self.gap("forget_dice", arm),
                f"{start}kept_dice_gap": self.gap("kept_dice", arm),
                f"{start}membership_gap": self.gap("membership_auc", arm),
                f"{start}resurfacing_mean": mean,
                f"{start}resurfacing_max": most,
            }
        erased = self.curves["afuic"]
        found |= {
            "retrain/dice": self.last("retrain", "dice"),
            "retrain/forget_dice": self.last("retrain", "forget_dice"),
            "merge_round": float(self.merge_round),
            "merges": float(erased.attempts),
            "completed": float(erased.state == "completed"),
        }
        found |= {f"{arm}/hausdorff95": curve.hausdorff for arm, curve in self.curves.items()}
        spent = [curve.cpu_seconds for curve in self.curves.values()]
        if all(spent):
            found["cpu_minutes"] = sum(spent) / 60
        start = f"hippocampus/{self.area}/"
        return {start + k: v for k, v in found.items() if math.isfinite(v)}


class VolumeScorer:
    """Scores models of one federation against one erasure."""

    def __init__(self, settings: HippocampusSettings, data: HippocampusData, area: str) -> None:
        self._settings = settings
        self._test, self._forget, self._kept = data.test, data.forget(area), data.kept(area)

    def score(self, arrays: Arrays) -> VolumeScores:
        """Score one model."""
        model = self._settings.clinical().network()
        set_arrays(model, arrays)
        test, forget, kept = self._test, self._forget, self._kept
        members, forgotten = sample_results(model, forget.images, forget.targets)
        others, unseen = sample_results(model, test.images, test.targets)
        return VolumeScores(
            dice=float(unseen.mean()),
            forget_dice=float(forgotten.mean()),
            kept_dice=None if kept is None else score(model, kept.images, kept.targets).accuracy,
            membership_auc=membership_auc(members.numpy(), others.numpy()),
        )

    def curve(self, recorder: Recorder, first: int) -> ArmCurve:
        """Score the last model of every round from ``first`` on, and the last one's surfaces."""
        chosen = {}
        for version in sorted(recorder.versions):
            entry, arrays = recorder.versions[version]
            if recorder.first_round + entry.round >= first:
                chosen[recorder.first_round + entry.round] = arrays
        model = self._settings.clinical().network()
        set_arrays(model, chosen[max(chosen)])
        found = predict(model, self._test.images)
        distances = hausdorff_distances(decided(found), self._test.targets, found.shape[1])
        return ArmCurve(
            {round_: self.score(arrays) for round_, arrays in chosen.items()},
            float(distances.nanmean()),
        )
