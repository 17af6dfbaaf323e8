"""The study of the reference: where proxies come from, and what it says of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flwr_afuic.app.federation import build_federation
from flwr_afuic.bench import reference as study
from flwr_afuic.bench.reference import (
    HOLDOUT,
    ReferenceSettings,
    like,
    measure,
    proxy_sets,
    variants,
)
from flwr_afuic.bench.reference_table import flat_figures, markdown
from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.errors import ConfigError
from tests.app import tiny


@pytest.fixture(autouse=True)
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another modality that needs no data folder."""
    monkeypatch.setattr(
        study,
        "load_dataset",
        lambda name, folder, seed: make_phantoms(7, n_train=8, n_val=40, n_test=8, size=28),
    )


def test_foreign_images_get_the_size_and_the_channels() -> None:
    grey, own = torch.rand(5, 1, 28, 28), torch.zeros(2, 3, 14, 14)
    made = like(grey, own)
    assert made.shape == (5, 3, 14, 14)
    assert torch.equal(made[:, 0], made[:, 2])
    assert torch.allclose(made.mean(), grey.mean(), atol=1e-5)
    back = like(torch.rand(4, 3, 14, 14), torch.zeros(1, 1, 14, 14))
    assert back.shape == (4, 1, 14, 14)
    assert like(grey, torch.zeros(1, 1, 28, 28)) is grey


def test_proxies_are_nested_and_no_more_than_there_are() -> None:
    app = tiny.settings()
    data = build_federation(app)
    sets = proxy_sets(app, data, ReferenceSettings((8, 16, 1000)))
    assert list(sets) == ["8", "16", str(len(data.proxies)), "other:pneumoniamnist", "phantoms"]
    assert torch.equal(sets["16"][:8], sets["8"])
    assert all(s.shape[1:] == data.proxies.images.shape[1:] for s in sets.values())
    with pytest.raises(ConfigError, match="counts"):
        ReferenceSettings((0,))


def test_references_are_compared_with_retraining(tmp_path: Path) -> None:
    app = tiny.settings(request_round=2, local_steps=4)
    told: list[str] = []
    run = measure(app, ReferenceSettings((16,), others=False), tmp_path, told.append)
    assert set(run["references"]) == {"16", HOLDOUT}
    of, retrained = run["references"]["16"], run["models"]["retrain"]
    assert of["forget_gap"] == pytest.approx(of["forget"] - retrained["forget"])
    assert of["loss_ratio"] == pytest.approx(of["forget_loss"] / retrained["forget_loss"])
    before = len(told)
    assert measure(app, ReferenceSettings((16,), others=False), tmp_path, told.append) == run
    assert len(told) > before


def test_only_whole_sites() -> None:
    with pytest.raises(ConfigError, match="scope=client"):
        measure(tiny.settings(scope="samples"), ReferenceSettings(), Path("unused"))


def test_variants_and_the_table() -> None:
    found = variants(tiny.settings(), (0, 2), (3, 5))
    assert [(app.seed, app.sites) for app in found] == [(0, 3), (2, 3), (0, 5)]

    def level(strict: bool, lax: bool) -> dict[str, Any]:
        return {
            "forget": 0.5, "forget_loss": 1.0, "test": 0.8, "forget_gap": 0.1, "loss_ratio": 1.2,
            "retraining_passes": not strict, "original_passes": lax, "proxies": 32,
        }  # fmt: skip

    models = {name: {"forget": 0.4, "forget_loss": 2.0, "test": 0.8} for name in
              ("original", "retrain", "retrain_floor")}  # fmt: skip
    run = {
        "dataset": "d", "scenario": "clean", "seed": 0, "sites": 3, "erased": 9, "models": models,
        "references": {"32": level(False, False), "phantoms": level(True, True)},
    }  # fmt: skip
    text = markdown([run])
    assert "| 0.50 / 1.00 | 0.50 / 1.00 (strict) **(lax)** |" in text
    assert flat_figures([run])["reference/d/clean/sites-3/seed-0/32/loss_ratio"] == 1.2
