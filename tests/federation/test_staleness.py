from __future__ import annotations

import math
from itertools import pairwise

import pytest

from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.staleness import staleness_weight


@pytest.mark.parametrize(
    ("rule", "a", "b", "expected"),
    [
        ("constant", 0.5, 4.0, [1, 1, 1, 1]),
        ("polynomial", 0.5, 4.0, [1, 1 / math.sqrt(2), 0.5, 0.25]),
        ("polynomial", 1.0, 4.0, [1, 0.5, 0.25, 1 / 16]),
        ("hinge", 0.5, 4.0, [1, 1, 1, 1 / 6.5]),
        ("hinge", 10.0, 0.0, [1, 1 / 11, 1 / 31, 1 / 151]),
    ],
)
def test_golden(rule: str, a: float, b: float, expected: list[float]) -> None:
    weight = staleness_weight(rule, a=a, b=b)
    assert [weight(t) for t in (0, 1, 3, 15)] == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["constant", "polynomial", "hinge"])
def test_starts_at_one_and_never_rises(rule: str) -> None:
    weights = [staleness_weight(rule, a=0.3, b=2)(t) for t in range(50)]
    assert weights[0] == 1
    assert all(0 < later <= sooner <= 1 for sooner, later in pairwise(weights))


def test_refuses() -> None:
    with pytest.raises(ConfigError, match="unknown staleness rule 'linear'; use one of constant"):
        staleness_weight("linear")
    for a, b in ((0, 4), (-1, 4), (math.nan, 4), (0.5, -1), (0.5, math.nan)):
        with pytest.raises(ConfigError, match="a > 0 and b >= 0"):
            staleness_weight("hinge", a=a, b=b)
    with pytest.raises(ConfigError, match="negative, got -1"):
        staleness_weight()(-1)
