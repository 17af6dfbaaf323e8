"""``bench multimodal``: its figures by hand, and two arms on generated pairs."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace

import pytest

from flwr_afuic.bench import multimodal_table as tables
from flwr_afuic.bench.gsd import adapter_shapes
from flwr_afuic.bench.multimodal_figure import draw
from flwr_afuic.bench.multimodal_scores import Curve, Point, interval
from flwr_afuic.errors import ConfigError, DataError

needs_models = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("transformers", "peft"))),
    reason="needs the [multimodal] extra",
)


def scores(value: float) -> dict[str, float]:
    names = [
        f"{way}/r{k}" for way in ("image_to_text", "text_to_image", "mean") for k in (1, 5, 10)
    ]
    return dict.fromkeys(names, value)


def curve(arm: str, forget: list[float], retain: float = 0.5, merge: int = 0) -> Curve:
    points = [Point(v, v, scores(f), scores(retain)) for v, f in enumerate(forget)]
    blocks = {"text/0": {"cosines": [0.9, 0.1], "exclusive": 1, "retained": 4}}
    return Curve(arm, points, merge, "completed", subspaces={"rank": 1, "blocks": blocks})


def results():
    found = {
        "original": curve("original", [0.1, 0.5]),
        "retrained": curve("retrained", [0.10] * 6, 0.60),
        "retrained_again": curve("retrained_again", [0.12] * 6, 0.60),
        "ease": curve("ease", [0.5, 0.5, 0.10, 0.10, 0.11, 0.12, 0.12, 0.12], 0.58, 2),
        "excision_only": curve("excision_only", [0.5, 0.1, 0.15, 0.15, 0.15, 0.15, 0.15], 0.58, 1),
        "no_lock": curve("no_lock", [0.5, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2], 0.58, 1),
    }
    for arm in tables.ABLATION[2:]:
        found[arm] = curve(arm, [0.1, 0.3, 0.3, 0.3, 0.3, 0.3], 0.5)
    return {0: found, 1: found}


def test_figures_by_hand():
    flat = tables.figures(results())
    assert flat["ease/ease/forget_r1_gap"] == pytest.approx(0.114 - 0.10)
    assert flat["ease/ease/retain_r1_gap"] == pytest.approx(-0.02)
    assert flat["ease/ease/rebound"] == pytest.approx(0.114 - 0.10)
    assert flat["ease/no_lock/rebound"] == pytest.approx(0.1)
    assert flat["ease/ease/least_rebound"] == 1.0
    assert (
        flat["ease/ease/forget_r1_holds"] == 1.0
    )  # .014 is more than a point, less than the floor
    assert flat["ease/ease/retain_r1_holds"] == 1.0
    assert "ease/retrained/rebound" not in flat


def test_the_dip_by_hand():
    def retained(*values):
        points = [Point(v, v // 2, scores(0.1), scores(value)) for v, value in enumerate(values)]
        return Curve("ease", points, 1, "completed")

    assert retained(0.4, 0.5, 0.1, 0.2, 0.45, 0.5, 0.6).dip == (0.5, 0.1, 2)
    assert retained(0.4, 0.5, 0.1, 0.2).dip == (0.5, 0.1, None)
    assert retained(0.4, 0.5).dip == (0.4, 0.4, 0)
    found = {0: {**results()[0], "ease": retained(0.4, 0.5, 0.1, 0.2, 0.45, 0.5, 0.6)}}
    assert "by seed: 50 / 10 / 2 rounds." in tables.markdown(found)


def test_how_far_above_the_least_rebound():
    found = results()
    lower = curve("no_lock", [0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 0.58, 1)
    again = curve("retrained_again", [0.10, 0.10, 0.13, 0.13, 0.13, 0.13, 0.13], 0.60)
    found[0] = found[1] = {**found[0], "no_lock": lower, "retrained_again": again}
    flat = tables.figures(found)
    assert flat["ease/ease/least_rebound"] == 0.0
    assert flat["ease/ease/rebound_above_least"] == pytest.approx(0.014)
    assert flat["ease/ease/rebound_floor"] == pytest.approx(0.03)
    assert "1.40 points more, where two retrainings differ by 3.00" in tables.markdown(found)


def test_a_figure_beyond_bound_and_floor_does_not_hold():
    found = results()
    found[0] = found[1] = {**found[0], "ease": curve("ease", [0.5, 0.2, 0.2], 0.5, 1)}
    assert tables.figures(found)["ease/ease/forget_r1_holds"] == 0.0
    assert "does **not** hold" in tables.markdown(found)


def test_the_interval_is_students():
    mean, half = interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert math.isinf(interval([0.1])[1])


def test_table_and_figure(tmp_path):
    gsd = {"parameters": 491520, "updates": 400, "seconds": 9.0, "peak_mib": 175, "before_mib": 36}
    text = tables.markdown(results(), gsd)
    assert "| **EASE**: taken back, both towers, lock | 11.4 / 11.4 | 58.0 / 58.0 |" in text
    assert "+1.4 ± 0.0" in text
    assert "text/0 1 of 2" in text
    assert "400 updates" in text
    assert "least rebound of the ablation: **EASE**: taken back, both towers, lock" in text
    assert draw(results(), tmp_path / "images" / "m.png").stat().st_size > 10_000


def test_a_curve_survives_its_file_and_damage_is_named():
    one = curve("ease", [0.5, 0.2], merge=1)
    assert Curve.from_json(one.to_json()) == one
    with pytest.raises(DataError, match="damaged"):
        Curve.from_json({"points": [{}]})


def test_adapters_are_those_of_clip_b_32():
    assert sum(a * b for a, b in adapter_shapes().values()) == 491_520


@needs_models
@pytest.mark.slow
def test_original_and_erasure_on_generated_pairs(tmp_path):
    from flwr_afuic.bench.multimodal import MultimodalSettings
    from flwr_afuic.bench.multimodal_runs import MultimodalRunner

    settings = MultimodalSettings(
        dataset="phantoms", target="north", rounds=2, after=2, local_epochs=1, excision_steps=5,
        pretraining_steps=2, size=32, width=32,
    )  # fmt: skip
    told: list[str] = []
    runner = MultimodalRunner(tmp_path, told=told.append)
    found = runner.run(settings, [0], ["ease"])[0]
    assert set(found) == {"original", "ease"}
    ease = found["ease"]
    assert ease.merge_version > 2
    assert ease.points[-1].round >= 4
    assert ease.subspaces["updates"] > 0
    again = MultimodalRunner(tmp_path, told=told.append).run(settings, [0], ["ease"])[0]
    assert again["ease"].at_end("forget") == ease.at_end("forget")
    assert "taken from" in told[-1]
    other = replace(settings, excision_steps=6)  # same seed, and arms go by these settings
    assert runner._setup(other).settings == other
    with pytest.raises(ConfigError, match="unknown arms"):
        runner.run(settings, [0], ["none"])
