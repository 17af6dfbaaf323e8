"""A federation small enough for tests: 600 small phantoms, three sites, short computations."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from flwr_afuic.app.demo import DemoResult, run_demo
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.unlearning.reference import DistillationSettings
from flwr_afuic.unlearning.settings import UnlearningSettings

SHORT = {
    "sites": 3,
    "local_steps": 5,
    "batch_size": 16,
    "buffer_size": 2,
    "request_round": 3,
    "rounds_after": 3,
    "max_rounds": 24,
}


def write_npz(path: Path, **changes: np.ndarray) -> Path:
    """Write phantoms as a data set of one's own; ``changes`` replace its arrays."""
    dataset = make_phantoms(0, n_train=600, n_val=120, n_test=150, size=16)
    arrays = {}
    for name in ("train", "val", "test"):
        split = getattr(dataset, name)
        arrays[f"{name}_images"] = (split.images[:, 0].numpy() * 255).astype(np.uint8)
        arrays[f"{name}_labels"] = split.labels.numpy().astype(np.uint8)[:, None]
    np.savez(path, **{**arrays, **changes})
    return path


def settings(**changes: object) -> AppSettings:
    """Return settings of a short run on the file of :func:`data_file`."""
    return AppSettings.from_mapping({"dataset": str(data_file()), **SHORT, **changes})


@functools.cache
def data_file() -> Path:
    """Return a data set of one's own, made once per process."""
    folder = Path(tempfile.mkdtemp(prefix="flwr-afuic-test-"))
    return write_npz(folder / "ours.npz")


def run(**changes: object) -> DemoResult:
    """Run the demo's pipeline on the ``local`` engine."""
    with shortened():
        return run_demo(settings(**changes), engine="local")


@functools.cache
def once() -> DemoResult:
    """Return one run's result; made once per process. Do not change it."""
    return run()


def shortened() -> mock._patch:
    """Shorten what app settings do not name: making the reference, and unlearning."""
    return mock.patch.multiple(
        "flwr_afuic.app.server_app",
        UnlearningSettings=functools.partial(UnlearningSettings, steps=40),
        AFUIC=functools.partial(
            _afuic(), distillation=DistillationSettings(steps=120), virtual_reference_seconds=1.0
        ),
    )


def _afuic() -> type:
    from flwr_afuic.strategies import AFUIC

    return AFUIC
