"""Membership of small sites: who holds what, the attack, and a tiny study from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flwr_afuic.app.federation import build_federation
from flwr_afuic.bench.membership import PRESETS, Membership, MembershipSettings, attack, divide
from flwr_afuic.bench.membership_table import flat_figures, markdown
from flwr_afuic.cli.bench import app as bench
from flwr_afuic.errors import ConfigError
from tests.app import tiny


def settings(**changes: Any) -> MembershipSettings:
    app = tiny.settings(scenario="clean", request_round=2)
    short = {"images": 16, "epochs": 2, "references": 4, "rounds_after": 1}
    return MembershipSettings(app=app, **{**short, **changes})


def test_nobody_shares_images_and_wrong_labels_fall_on_both_halves() -> None:
    chosen = settings(mislabelled=0.5, images=32)
    train = build_federation(chosen.federation).dataset.train
    others, pool = divide(train, chosen)
    assert [len(s) for s in others] == [32, 32]
    assert len(pool) == 64
    ids = [name for s in (*others, pool) for name in s.ids]
    assert len(ids) == len(set(ids))
    right = dict(zip(train.ids, train.labels.tolist(), strict=True))
    wrong = np.array([right[n] != y for n, y in zip(pool.ids, pool.labels.tolist(), strict=True)])
    assert wrong.sum() == 32
    assert 4 < wrong[:32].sum() < 28
    with pytest.raises(ConfigError, match="lower images"):
        divide(train, settings(images=400))


def test_the_target_holds_copies_and_references_hold_complements(tmp_path: Path) -> None:
    study = Membership(settings(copies=3, references=4), tmp_path)
    target = study.holdings(study.members)[0]
    assert len(target.images) == 48
    assert len(set(target.ids)) == 48
    assert (target.images[0] == target.images[16]).all()
    assert target.labels[0] == target.labels[32]
    assert [half.sum() for half in study.halves] == [16] * 4
    assert (study.halves[0] == ~study.halves[1]).all()
    assert settings().federation.local_steps == 2


def test_the_attack_sees_what_was_memorised_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    halves = np.stack([rng.permutation(np.repeat([True, False], 50)) for _ in range(4)])
    halves = np.concatenate([halves, ~halves])
    hardness = rng.uniform(0.2, 2.0, 100)
    references = hardness * np.where(halves, 0.5, 1.0) + rng.normal(0, 0.01, halves.shape) ** 2
    members = rng.permutation(np.repeat([True, False], 50))
    seen = attack(hardness * np.where(members, 0.5, 1.0), members, references, halves)
    assert seen["lira_auc"] > 0.95
    assert seen["loss_auc"] < seen["lira_auc"]
    assert attack(hardness, members, references, halves)["lira_auc"] == pytest.approx(0.5, abs=0.15)


def test_a_tiny_study_attacks_every_model(tmp_path: Path) -> None:
    run = Membership(settings(), tmp_path).run()
    assert list(run["models"]) == [
        "original", "retrain_at_merge", "afuic_at_merge", "retrain", "retrain_floor",
        "no_unlearning", "afuic",
    ]  # fmt: skip
    assert all(0 <= of["lira_auc"] <= 1 for of in run["models"].values())
    flat = flat_figures([{**run, "preset": "plain"}])
    assert f"membership/{run['dataset']}/plain/seed-0/afuic/lira_auc" in flat
    assert "| afuic at merge |" in markdown([{**run, "preset": "plain"}])


def test_wrong_settings_are_refused() -> None:
    for changes in ({"references": 3}, {"images": 0}, {"mislabelled": 1.5}):
        with pytest.raises(ConfigError):
            settings(**changes)
    assert set(PRESETS) == {"plain", "duplicates", "mislabelled", "both"}
    wrong = CliRunner().invoke(bench, ["membership", "--presets", "huge"])
    assert isinstance(wrong.exception, ConfigError)
