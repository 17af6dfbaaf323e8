from __future__ import annotations

import json

import pytest

from flwr_afuic.errors import ConfigError, WireError
from flwr_afuic.unlearning.settings import UnlearningSettings


def test_settings_cross_the_wire_unchanged():
    for settings in (
        UnlearningSettings(),
        UnlearningSettings(objective="ascent", objective_option=1.5, steps=7, anchor_weight=0.0),
    ):
        assert UnlearningSettings.from_json(settings.to_json()) == settings


def test_only_scalars_cross_the_wire():
    for value in json.loads(UnlearningSettings().to_json()).values():
        assert value is None or isinstance(value, str | int | float)


def test_missing_settings_take_their_defaults_and_integers_serve_as_numbers():
    assert UnlearningSettings.from_json('{"lr": 1, "steps": 3}') == UnlearningSettings(
        lr=1.0, steps=3
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"unknown": 1}',
        '{"steps": "5"}',
        '{"steps": 5.5}',
        '{"steps": true}',
        '{"lr": "fast"}',
        '{"lr": [1]}',
        '{"objective": 3}',
        '{"lr": null}',
    ],
)
def test_malformed_settings_are_wire_errors(text):
    with pytest.raises(WireError):
        UnlearningSettings.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"steps": 0}',
        '{"lr": NaN}',
        '{"lr": -1}',
        '{"clip": 0}',
        '{"momentum": 1.0}',
        '{"anchor_weight": Infinity}',
        '{"objective": "amnesia"}',
        '{"objective": "kl-to-reference", "objective_option": 1.0}',
        '{"objective": "amnesia", "objective_option": 1.0}',
    ],
)
def test_values_out_of_range_are_config_errors(text):
    with pytest.raises(ConfigError):
        UnlearningSettings.from_json(text)
