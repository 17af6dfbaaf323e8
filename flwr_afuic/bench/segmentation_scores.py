"""Scores of segmentation models around an erasure: Dice, membership by case, surfaces."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from flwr_afuic.app.arms import Recorder
from flwr_afuic.bench.hippocampus import HippocampusData, HippocampusSettings
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.metrics import membership_auc, resurfacing
from flwr_afuic.metrics.segmentation import hausdorff_distances
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.unlearning.inference import predict, sample_losses, score

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


@dataclass
class AreaResult:
    """What one erasure left: scores of each arm by round, and how the request ended.

    Attributes
    ----------
    area : str
    curves : dict of str to dict of int to VolumeScores
    merge_round : int
    state, reason : str
    before : VolumeScores
        Of the model at the request.
    hausdorff : dict of str to float
        95th percentile on the test cases at the end, mean, in voxels, by arm.
    """

    area: str
    merge_round: int
    state: str
    reason: str
    before: VolumeScores
    curves: dict[str, dict[int, VolumeScores]] = field(default_factory=dict)
    hausdorff: dict[str, float] = field(default_factory=dict)

    def last(self, arm: str, name: str) -> float:
        """Mean of a score over the last rounds of an arm; NaN where it was not measured."""
        curve = self.curves.get(arm, {})
        values = [getattr(curve[r], name) for r in sorted(curve)[-_LAST_ROUNDS:]]
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if found else math.nan

    def gap(self, name: str, arm: str = "afuic") -> float:
        """Difference of an arm's score from retraining's over the last rounds."""
        return self.last(arm, name) - self.last("retrain", name)

    def series(self, arm: str, name: str) -> dict[int, float]:
        """One score by round."""
        curve = self.curves[arm]
        return {r: float(getattr(curve[r], name)) for r in sorted(curve)}

    def figures(self) -> dict[str, float]:
        """Flat figures of this area; those that do not apply are left out."""
        back = resurfacing(
            self.series("afuic", "forget_dice"),
            self.series("retrain", "forget_dice"),
            merge_round=self.merge_round,
        )
        found = {
            "dice_gap": self.gap("dice"),
            "forget_dice_gap": self.gap("forget_dice"),
            "kept_dice_gap": self.gap("kept_dice"),
            "membership_gap": self.gap("membership_auc"),
            "resurfacing_mean": back.mean,
            "resurfacing_max": back.max,
            "floor/dice_gap": self.gap("dice", "retrain_floor"),
            "floor/forget_dice_gap": self.gap("forget_dice", "retrain_floor"),
            "no_unlearning/forget_dice_gap": self.gap("forget_dice", "no_unlearning"),
            "no_unlearning/membership_gap": self.gap("membership_auc", "no_unlearning"),
            "retrain/dice": self.last("retrain", "dice"),
            "completed": float(self.state == "completed"),
        }
        for arm, distance in self.hausdorff.items():
            found[f"{arm}/hausdorff95"] = distance
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
        members = sample_losses(model, forget.images, forget.targets)
        others = sample_losses(model, test.images, test.targets)
        return VolumeScores(
            dice=score(model, test.images, test.targets).accuracy,
            forget_dice=score(model, forget.images, forget.targets).accuracy,
            kept_dice=None if kept is None else score(model, kept.images, kept.targets).accuracy,
            membership_auc=membership_auc(members.numpy(), others.numpy()),
        )

    def curve(self, result: AreaResult, arm: str, recorder: Recorder) -> None:
        """Score every model from the merge's round on, and the surfaces of the last one."""
        chosen = {}
        for version in sorted(recorder.versions):
            entry, arrays = recorder.versions[version]
            if recorder.first_round + entry.round >= result.merge_round:
                chosen[recorder.first_round + entry.round] = arrays
        result.curves[arm] = {round_: self.score(arrays) for round_, arrays in chosen.items()}
        model = self._settings.clinical().network()
        set_arrays(model, chosen[max(chosen)])
        found = predict(model, self._test.images)
        distances = hausdorff_distances(found.argmax(1), self._test.targets, found.shape[1])
        result.hausdorff[arm] = float(distances.nanmean())


def summary(result: AreaResult) -> str:
    """Write the table of one area as Markdown."""
    lines = [
        f"**hippocampus, {result.area}**: {result.state}; {result.reason}",
        "",
        "| model | test Dice | forget Dice | kept Dice | membership AUC | Hausdorff 95 (voxels) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    names = [f.name for f in dataclasses.fields(VolumeScores)]
    before = [getattr(result.before, name) for name in names]
    lines.append(_line("at the request", [math.nan if v is None else v for v in before]))
    for arm in result.curves:
        values = [result.last(arm, name) for name in names]
        lines.append(_line(arm, [*values, result.hausdorff.get(arm, math.nan)]))
    return "\n".join(lines)


def _line(name: str, values: list[float]) -> str:
    cells = [f"{value:.3f}" if math.isfinite(value) else "-" for value in values]
    return f"| {name} | {' | '.join([*cells, *['-'] * (5 - len(cells))])} |"
