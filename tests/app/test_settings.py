"""Settings of the app: each wrong one is one clear line, before anything starts."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.errors import ConfigError

WRONG = [
    (
        {"scenario": "poison"},
        "scenario is 'poison'; use one of backdoor, mislabel, clean, exclusive, patient",
    ),
    ({"scope": "all"}, "scope is 'all'; use one of client, samples"),
    ({"sites": 2}, "sites is 2; it must be at least 3"),
    ({"local_steps": 0}, "local_steps is 0; it must be at least 1"),
    ({"batch_size": -4}, "batch_size is -4; it must be at least 1"),
    ({"buffer_size": 0}, "buffer_size is 0; it must be at least 1"),
    ({"request_round": 0}, "request_round is 0; it must be at least 1"),
    ({"rounds_after": 0}, "rounds_after is 0; it must be at least 1"),
    ({"poison_fraction": 0.0}, "poison_fraction is 0.0; it must be in (0, 1]"),
    ({"forget_fraction": 1.5}, "forget_fraction is 1.5; it must be in (0, 1]"),
    ({"forget_fraction": float("nan")}, "forget_fraction is nan; it must be in (0, 1]"),
    ({"alpha": 0.0}, "alpha is 0.0; it must be positive"),
    ({"lr": -0.1}, "lr is -0.1; it must be positive"),
    ({"server_lr": float("nan")}, "server_lr is nan; it must be in (0, 10]"),
    ({"clip": float("inf")}, "clip is inf; it must be positive"),
    ({"straggler": 0.0}, "straggler is 0.0; it must be positive"),
    ({"momentum": 1.0}, "momentum is 1.0; it must be in [0, 1)"),
    ({"max_rounds": 12}, "max_rounds (12) must exceed request_round (12)"),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG, ids=[str(w) for w, _ in WRONG])
def test_a_wrong_setting_is_one_clear_line(wrong, text):
    with pytest.raises(ConfigError) as caught:
        AppSettings(**wrong)
    assert str(caught.value) == text


def test_a_run_config_is_read_with_dashes_and_whole_numbers():
    chosen = AppSettings.from_mapping({"local-steps": 3, "lr": 1, "dataset": "phantoms"})
    assert chosen == AppSettings(local_steps=3, lr=1.0, dataset="phantoms")
    assert type(chosen.lr) is float
    assert AppSettings.from_mapping({}) == AppSettings()
    assert chosen.target == "site-0"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"learning-rate": 0.1}, "unknown setting 'learning-rate'; known: alpha, batch_size"),
        ({"sites": "6"}, "sites is '6'; it must be of type int"),
        ({"sites": 6.0}, "sites is 6.0; it must be of type int"),
        ({"lock": 1}, "lock is 1; it must be of type bool"),
        ({"lr": True}, "lr is True; it must be of type float"),
        ({"seed": True}, "seed is True; it must be of type int"),
        ({"dataset": None}, "dataset is None; it must be of type str"),
        ({"lr": 10**400}, "lr is inf; it must be positive"),
    ],
)
def test_a_run_config_that_does_not_fit_is_one_clear_line(values, text):
    with pytest.raises(ConfigError) as caught:
        AppSettings.from_mapping(values)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


VALUES = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([f.name for f in dataclasses.fields(AppSettings)]), VALUES)
def test_anything_else_is_settings_or_a_config_error(name, value):
    try:
        chosen = AppSettings.from_mapping({name: value})
    except ConfigError as error:
        assert name in str(error)  # noqa: PT017
    else:
        assert getattr(chosen, name) == value
        assert hash(chosen) == hash(dataclasses.replace(chosen))
