"""Figures exist, have their size, show something, and survive odd records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from flwr_afuic.errors import ConfigError
from flwr_afuic.report.figures import figure_backdoor, figure_test_score, write_figures
from flwr_afuic.report.look import spread
from flwr_afuic.report.record import RunRecord, Span
from flwr_afuic.report.timeline import busy_share, erasure_window, figure_timeline
from tests.report.sample import sample_record
from tests.report.test_record import MINIMAL


def _colours(path: Path) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(path).convert("RGB"))[::2, ::2].reshape(-1, 3)
    return {tuple(int(c) for c in colour) for colour in np.unique(pixels, axis=0)}


def _words(figure: Figure) -> list[str]:
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [text.get_text() for text in axes.texts]
    return found


def test_pngs_have_their_size_and_are_not_blank(tmp_path: Path) -> None:
    paths = write_figures(RunRecord.from_json(sample_record()), tmp_path / "new" / "folder")
    assert set(paths) == {"backdoor", "test_score", "timeline"}
    for name, path in paths.items():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width == 1800
            assert 600 <= image.height <= 1100
        seen = _colours(path)
        wanted = {"timeline": (213, 94, 0)}.get(name, (0, 114, 178))
        assert wanted in seen, f"{name} lacks the colour that carries its message"


def test_lines_are_named_and_events_marked() -> None:
    record = RunRecord.from_json(sample_record())
    for figure in (figure_backdoor(record), figure_test_score(record)):
        words = " | ".join(_words(figure))
        for name in ("Original", "No unlearning", "Retrained ", "Retrained again", "AFU-IC"):
            assert name in words
        assert "request" in words
        assert "merge" in words
        drawn = [np.asarray(line.get_xdata()) for line in figure.axes[0].lines]
        marked = {float(x[0]) for x in drawn if len(x) == 2}
        assert {18.0, 20.0} <= marked


def test_timeline_zooms_on_the_erasure_and_counts_busy_seconds() -> None:
    record = RunRecord.from_json(sample_record())
    window = erasure_window(record)
    assert window is not None
    assert window.start < 36.4 < 40.7 < 51.2 < window.end < 60
    words = _words(figure_timeline(record))
    assert {"request", "merge", "completed", "server", "site-0", "site-5"} <= set(words)


def test_a_long_verification_does_not_squeeze_the_erasure() -> None:
    raw = sample_record()
    raw["events"][-1]["time"] = 99.0
    record = RunRecord.from_json(raw)
    window = erasure_window(record)
    assert window is not None
    assert window.end < 70
    assert "completed at 99 s →" in _words(figure_timeline(record))


def test_an_open_request_is_judged_only_while_the_run_lasted() -> None:
    record = RunRecord.from_json(sample_record(state="dispatched"))
    shares = [word for word in _words(figure_timeline(record)) if word.endswith(" %")]
    assert len(shares) == 10
    assert all(int(word[:-2]) >= 95 for word in shares)


def test_busy_share_counts_overlaps_once() -> None:
    spans = [Span("a", "train", 0, 4), Span("a", "evaluate", 3, 5), Span("a", "train", 8, 20)]
    assert busy_share(spans, 0, 10) == pytest.approx(0.7)
    assert busy_share(spans, 4, 8) == pytest.approx(0.25)
    assert busy_share([], 0, 1) == 0
    assert busy_share(spans, 3, 3) is None


def test_spread_keeps_order_gap_and_limits() -> None:
    placed = spread([0.5, 0.51, 0.0, 0.49], 0.1, 0.0, 1.0)
    assert placed[2] == pytest.approx(0.0)
    assert [placed[3], placed[0], placed[1]] == pytest.approx([0.4, 0.5, 0.6])
    crowded = sorted(spread([0.0] * 5, 0.1, 0.02, 0.98))
    assert crowded[0] >= 0.02 - 1e-9
    assert np.diff(crowded) == pytest.approx([0.1] * 4)


def _without_a_metric(raw: dict[str, Any]) -> None:
    for curve in raw["curves"].values():
        del curve["backdoor_success"]


def _with_holes(raw: dict[str, Any]) -> None:
    raw["curves"]["retrain"]["backdoor_success"] = [None] * 50
    raw["curves"]["no_unlearning"] = None
    raw["curves"]["afuic"]["test_accuracy"][10:20] = [None] * 10


def _with_one_point(raw: dict[str, Any]) -> None:
    raw["curves"] = {"afuic": {"round": [1], "test_accuracy": [0.5], "backdoor_success": [1.0]}}


def _with_formula_names(raw: dict[str, Any]) -> None:
    names = [r"$\frac{", "<script>", "a\nb\x1b[31m", "ü" * 60, "$x$"]
    raw["sites"] = names
    raw["target"] = names[0]
    raw["dataset"] = r"$\sum"
    raw["spans"] = [
        {"site": name, "kind": "?", "start": i, "end": i + 9} for i, name in enumerate(names)
    ]


def _with_many_sites(raw: dict[str, Any]) -> None:
    raw["sites"] = [*raw["sites"], *(f"extra-{i}" for i in range(70))]


def _with_other_models_and_attempts(raw: dict[str, Any]) -> None:
    raw["curves"]["overwrite"] = dict(raw["curves"]["afuic"])
    again = {"time": 44.0, "round": 22, "kind": "merge", "site": "site-0", "text": "again"}
    raw["events"] += [again, {**again, "time": None, "round": None}]


@pytest.mark.parametrize(
    "change",
    [
        _without_a_metric, _with_holes, _with_one_point, _with_formula_names, _with_many_sites,
        _with_other_models_and_attempts,
    ],
)  # fmt: skip
def test_odd_records_are_drawn(change: Any, tmp_path: Path) -> None:
    raw = sample_record()
    change(raw)
    for path in write_figures(RunRecord.from_json(raw), tmp_path).values():
        assert path.stat().st_size > 10_000


def test_empty_record_says_so_in_each_figure() -> None:
    record = RunRecord.from_json(MINIMAL)
    assert "Not measured over rounds in this run." in _words(figure_backdoor(record))
    assert "The times of the tasks were not recorded in this run." in _words(
        figure_timeline(record)
    )


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the report to"):
        write_figures(RunRecord.from_json(MINIMAL), tmp_path / "file" / "below")
