"""The bench of warm data: two real processes, and figures of what they took."""

from __future__ import annotations

from pathlib import Path

import pytest

from flwr_afuic.bench.warm import Load, WarmResult, measure_warm
from flwr_afuic.errors import ConfigError


def test_the_speedup_is_the_median_of_the_pairs() -> None:
    first = tuple(Load(seconds, 9.0, 4) for seconds in (8.0, 10.0, 60.0))
    second = tuple(Load(seconds, 3.0, 4) for seconds in (1.0, 2.0, 3.0))
    result = WarmResult(first, second, synthetic=False)
    assert result.figures() == {
        "wall/warm_speedup": 8.0,
        "wall/first_load_seconds": 10.0,
        "wall/second_load_seconds": 2.0,
        "wall/first_process_seconds": 9.0,
        "wall/second_process_seconds": 3.0,
    }
    assert "8.0 times faster" in result.markdown()
    assert "SYNTHETIC" not in result.markdown()


def test_numbers_out_of_range() -> None:
    with pytest.raises(ConfigError, match="runs is 0"):
        measure_warm(runs=0)


@pytest.mark.slow
def test_a_second_process_finds_its_data(tmp_path: Path) -> None:
    result = measure_warm(data_dir=str(tmp_path), runs=1, cases=2)
    assert result.synthetic
    assert "SYNTHETIC" in result.markdown()
    assert result.first[0].cases == result.second[0].cases == 2
    assert result.speedup > 2  # 5 is the bound of the figure; a crowded machine wavers
