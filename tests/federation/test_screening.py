from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Layout
from flwr_afuic.federation.screening import UpdateScreen

LAYOUT = Layout.of(["w", "running_var"], [np.zeros(1), np.ones(1)])


def step(norm: float, variance: float = 1.0) -> list[np.ndarray]:
    return [np.array([norm]), np.array([variance])]


def screen(accepted: int, norm: float = 1.0, factor: float = 20.0) -> UpdateScreen:
    result = UpdateScreen(LAYOUT, norm_factor=factor)
    for _ in range(accepted):
        assert result.refuse(step(norm), 1) is None
    return result


@pytest.mark.parametrize("examples", [0, -3])
def test_examples(examples: int) -> None:
    assert f"num_examples is {examples}" in str(screen(0).refuse(step(1), examples))


def test_far_out_norms_once_five_are_known() -> None:
    assert screen(4).refuse(step(1e6), 1) is None, "four are too few to judge by"
    assert screen(4).typical_norm is None
    judge = screen(5)
    assert judge.typical_norm == 1.0
    assert judge.refuse(step(20.0), 1) is None
    assert "over 20 times the median 1 of" in str(judge.refuse(step(20.1), 1))


def test_the_refused_do_not_move_the_median() -> None:
    judge = screen(5)
    for _ in range(50):
        assert judge.refuse(step(1000), 1) is not None
    assert judge.typical_norm == 1.0


def test_the_median_follows_recent_updates() -> None:
    judge = screen(32)
    for _ in range(32):
        assert judge.refuse(step(10), 1) is None
    assert judge.typical_norm == 10.0
    assert judge.refuse(step(199), 1) is None


def test_zero_is_allowed_and_teaches_nothing() -> None:
    judge = screen(50, norm=0.0)
    assert judge.typical_norm is None
    assert judge.refuse(step(1), 1) is None
    judge = screen(5)
    for _ in range(50):
        assert judge.refuse(step(0), 1) is None
    assert judge.typical_norm == 1.0


@pytest.mark.parametrize("norm", [1e-12, 15.0])
def test_one_site_that_sends_much_does_not_move_the_median(norm: float) -> None:
    judge = UpdateScreen(LAYOUT)
    for site in ("a", "b"):
        for _ in range(3):
            assert judge.refuse(step(1), 1, site) is None
    for _ in range(100):
        assert judge.refuse(step(norm), 1, "c") is None
    assert judge.typical_norm == 1.0
    again = UpdateScreen(LAYOUT)
    again.remember(judge.norms)
    assert again.typical_norm == 1.0


def test_statistics_have_no_part_in_the_norm() -> None:
    assert screen(5).refuse(step(1, variance=1e9), 1) is None


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_norm_beyond_float64() -> None:
    assert "not finite" in str(screen(0).refuse(step(np.inf), 1))
    two = Layout.of(["w"], [np.zeros(2)])
    assert "not finite" in str(UpdateScreen(two).refuse([np.full(2, 1.7e308)], 1))


@pytest.mark.parametrize("factor", [1.0, 0.0, float("nan")])
def test_factor(factor: float) -> None:
    with pytest.raises(ConfigError, match="norm_factor must exceed 1"):
        UpdateScreen(LAYOUT, norm_factor=factor)


def test_the_typical_norm_is_the_median_over_sites_of_their_medians() -> None:
    rng = np.random.default_rng(3)
    own = UpdateScreen(LAYOUT)
    recent: dict[str, deque[float]] = {}
    for number in range(400):
        site, norm = f"s{rng.integers(9)}", float(rng.choice([0.5, 1.0, 2.0, rng.exponential()]))
        own.remember([(site, norm)])
        recent.setdefault(site, deque(maxlen=32)).append(norm)
        medians = [np.median(norms) for norms in recent.values()]
        assert own.typical_norm == (None if number < 4 else float(np.median(medians)))
