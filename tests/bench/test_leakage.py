"""The leakage bench: its attack works where there is something to find."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from flwr_afuic.bench.leakage import SIZES, Trial, gradient, invert, measure, psnr
from flwr_afuic.bench.leakage_table import flat_figures, markdown
from flwr_afuic.cli import commands
from flwr_afuic.unlearning.privacy import NO_PRIVACY, secret_normal
from tests.app import tiny


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Sigmoid(), nn.Linear(16, 2))


def flat(x, y):
    return torch.cat([g.reshape(-1) for g in gradient(model(), x, y)]).double().numpy()


@pytest.fixture(scope="module")
def image():
    x = torch.zeros(1, 1, 8, 8)
    x[..., 2:6, 1:4] = 1.0
    return x


Y = torch.tensor([1])
GREY = torch.full((1, 1, 8, 8), 0.5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_image_is_made_of_its_own_gradient_whatever_its_sign(image, sign):
    found = invert(model(), Y, sign * flat(image, Y), GREY, steps=150)
    assert psnr(found, image) > psnr(GREY, image) + 8


def test_and_not_of_noise(image):
    found = invert(model(), Y, secret_normal(b"k", len(flat(image, Y))), GREY, steps=50)
    assert psnr(found, image) < psnr(GREY, image) + 1


def test_the_gradient_is_torchs(image):
    net = model()
    functional.cross_entropy(net(image), Y).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in net.parameters()]).numpy()
    np.testing.assert_allclose(flat(image, Y), expected, rtol=1e-5, atol=1e-9)


def test_likeness_in_decibels():
    assert psnr(torch.zeros(4), torch.full((4,), 0.1)) == pytest.approx(20.0, abs=1e-4)
    assert psnr(torch.zeros(4), torch.zeros(4)) == pytest.approx(120.0)


def test_a_table_of_means():
    row = {
        "size": 1, "norm": 0.5, "cosine": 0.25, "met": True, "met_protected": False, "test": 0.9,
        "test_raw": 0.8, "test_protected": 0.7,
    }  # fmt: skip
    attacked = {
        "rank": 0.0, "rank_protected": 0.5, "psnr_mean": 20.0, "psnr_gradient": 17.0,
        "psnr_delta": 11.0, "psnr_protected": 10.0,
    }  # fmt: skip
    trials = [
        Trial(**{**row, "test_protected": 0.5}),
        Trial(**row, **attacked),
        Trial(**{**row, "size": 3}),
    ]
    text = markdown(trials)
    assert "| 1 | 0.50 | 0.25 | 2/2 / 0/2 | 0.900 / 0.800 / 0.600 (worst 0.500) |" in text
    assert "| 3 | 0.50 | 0.25 | 1/1 / 0/1 | 0.900 / 0.800 / 0.700 (worst 0.700) |" in text
    assert "one erased image (1 attacked)" in text
    assert "| 17.0 | 11.0 | 10.0 | 20.0 |" in text
    assert "one erased image" not in markdown(trials[:1])
    flat_ = flat_figures("toy", trials)
    assert flat_["toy/leakage/1/test_protected"] == pytest.approx(0.6)
    assert flat_["toy/leakage/1/rank_protected"] == 0.5
    assert "toy/leakage/3/rank" not in flat_


@pytest.fixture(scope="module")
def small():
    return tiny.settings(scenario="clean", scope="samples", request_round=2)


def test_a_federation_is_measured(small, monkeypatch):
    monkeypatch.setattr("flwr_afuic.bench.leakage.INVERSION_STEPS", 5)
    trials = measure(small, trials=1, inverted=1)
    assert [trial.size for trial in trials] == list(SIZES)
    one, *others = trials
    assert one.rank is not None
    assert all(trial.rank is None for trial in others)
    assert 0 < one.cosine < 0.9
    assert one.norm > 0
    assert None not in (one.psnr_gradient, one.psnr_delta, one.psnr_protected)


def test_without_protection_both_columns_are_the_same(small, monkeypatch):
    monkeypatch.setattr("flwr_afuic.bench.leakage.SIZES", (1,))
    trials = measure(small, trials=1, inverted=0, privacy=NO_PRIVACY)
    for trial in trials:
        assert trial.cosine == pytest.approx(1.0)
        assert trial.met is trial.met_protected
        assert trial.test_raw == trial.test_protected


def test_the_command_prints_and_writes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("flwr_afuic.bench.leakage.SIZES", (7,))
    arguments = ["bench", "leakage", "--datasets", str(tiny.data_file()), "--trials", "1"]
    arguments += ["--inverted", "0", "--set", "sites=3", "--set", "request_round=1"]
    arguments += ["--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["flwr-afuic", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert not ended.value.code
    assert "| 7 |" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert all(isinstance(value, float) for value in figures.values())


@pytest.mark.parametrize("arguments", [["--trials", "0"], ["--inverted", "-1"], ["--seeds", "x"]])
def test_settings_that_make_no_sense_are_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["flwr-afuic", "bench", "leakage", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code
    assert capsys.readouterr().err.count("\n") == 1
