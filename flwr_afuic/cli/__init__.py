"""The command line, ``flwr-afuic``: a thin face of the library.

Flower's and Ray's usage reports and update checks are off in this process and in the ones it
starts, unless the environment says otherwise: a hospital's machine should call nobody. The
variables are read when those packages are imported, so they are set here, before.
"""

import os

for _name, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
):
    os.environ.setdefault(_name, _value)

from flwr_afuic.cli.commands import app, main  # noqa: E402 - after the environment

__all__ = ["app", "main"]
