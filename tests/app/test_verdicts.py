import pytest

from flwr_afuic.app.verdicts import Bound, bounds_for, judge, judge_mean


def verdict(name, value, floor=None, dataset="pneumoniamnist"):
    return judge(dataset, {name: value}, {name: floor})[0]


@pytest.mark.parametrize(
    ("name", "value", "floor", "holds"),
    [
        ("asr_gap_at_merge", 0.02, None, True),
        ("asr_gap_at_merge", 0.021, 0.0, False),
        ("asr_gap_at_merge", 0.05, 0.03, True),
        ("asr_gap_at_merge", -0.5, 0.0, True),
        ("test_gap_at_merge", -0.04, 0.0, False),
        ("test_gap_at_merge", -0.04, -0.05, True),
        ("resurfacing_mean", -0.03, 0.0, False),
        ("dip_rounds", None, 1.0, False),
        ("dip_rounds", None, 4.0, True),
        ("stall_seconds", 0.01, None, False),
        ("lost_progress", 1.0, None, False),
        ("lost_progress", 1e-9, None, True),
    ],
)
def test_a_figure_holds_if_met_or_if_the_floor_is_beyond_the_bound(name, value, floor, holds):
    assert verdict(name, value, floor).holds is holds


def test_mednist_has_tighter_bounds_on_resurfacing():
    assert bounds_for("mednist")["resurfacing_mean"] == Bound(0.005, two_sided=True)
    assert not verdict("resurfacing_max", 0.02, 0.0, "mednist").holds
    assert verdict("resurfacing_max", 0.02, 0.0).holds


def test_figures_a_run_does_not_have_are_left_out():
    assert [v.name for v in judge("x", {"average_gap": 0.0}, {})] == ["average_gap"]


def test_means_are_judged_and_an_unreached_figure_has_none():
    runs = [({"dip_rounds": 0.0}, {"dip_rounds": 0.0}), ({"dip_rounds": 8.0}, {"dip_rounds": 0.0})]
    assert judge_mean("x", runs)[0].value == 4.0
    assert not judge_mean("x", runs)[0].holds
    runs[1][0]["dip_rounds"] = None
    assert judge_mean("x", runs)[0].value is None
    assert not judge_mean("x", runs)[0].holds


def test_the_average_gap_may_be_as_large_as_its_own_runs_floor():
    def runs(*pairs):
        return [({"average_gap": value}, {"average_gap": floor}) for value, floor in pairs]

    assert judge_mean("x", runs((0.01, 0.0), (0.03, 0.0)))[0].holds
    assert not judge_mean("x", runs((0.01, 0.0), (0.04, 0.0)))[0].holds
    noisy = judge_mean("x", runs((0.01, 0.0), (0.04, 0.035)))[0]
    assert noisy.holds
    assert noisy.bound == "<= 0.02 or the run's floor: 0.0275"
    assert not judge_mean("x", runs((0.03, 0.0), (0.04, 0.035)))[0].holds
