"""Models that several studies start from: trained once, kept as files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import limit_threads
from flwr_afuic.app.local import LocalGrid
from flwr_afuic.app.server_app import engine_settings, initial_arrays
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.latency_sites import Memory, make_app
from flwr_afuic.clients.torch_client import SiteData
from flwr_afuic.errors import DataError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.bounds import NoUnlearning
from flwr_afuic.strategies.codec import to_record

Models = dict[int, Arrays]
"""The last model of each round, by round; round 0 is the start."""


def train_models(
    settings: AppSettings,
    rounds: int,
    *,
    without: Collection[str] = (),
    start: Arrays | None = None,
    purpose: str = "run",
    make: Callable[..., AsyncStrategy] = NoUnlearning,
    holdings: Sequence[SiteData] | None = None,
) -> Models:
    """Train a federation under the virtual clock and return its model of each round.

    Parameters
    ----------
    settings : AppSettings
    rounds : int
    without : collection of str
        Sites that do not train.
    start : list of ndarray, optional
        The first model; else the settings' initial one (another with purpose ``floor``).
    purpose : str
        Of the seed of all draws.
    make : callable
        The strategy, of the engine's settings, ``without`` and ``on_version``.
    holdings : sequence of SiteData, optional
        What each site holds, instead of the settings' federation.
    """
    limit_threads()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    models: Models = {}

    def on_version(entry: VersionEntry, arrays: Arrays) -> None:
        models[entry.round] = [np.array(array) for array in arrays]

    seed = derive_seed(settings.seed, purpose)
    strategy = make(
        without=tuple(without), on_version=on_version, **engine_settings(settings, seed)
    )
    with TemporaryDirectory(prefix="flwr-afuic-trained-") as folder:
        app = make_app(settings, Path(folder), Memory(), holdings)
        grid = LocalGrid(app, settings.sites)
        try:
            strategy.start(grid, _record(settings, start, purpose), num_rounds=rounds)
        finally:
            grid.close()
    return models


def _record(settings: AppSettings, start: Arrays | None, purpose: str) -> ArrayRecord:
    if start is not None:
        return to_record(list(network(settings).state_dict()), start)
    other = derive_seed(settings.seed, "floor-model") if purpose == "floor" else None
    return initial_arrays(settings, other)


def kept(folder: Path, name: str, asked: dict[str, Any], make: Callable[[], Models]) -> Models:
    """Return models from a file of ``folder``, or make them and write it.

    Parameters
    ----------
    folder : Path
    name : str
        Of the file; a digest of ``asked`` is added.
    asked : dict
        What the models depend on, as plain values.
    make : callable

    Raises
    ------
    DataError
        If the file is damaged.
    """
    text = json.dumps(asked, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    path = folder / f"{name}-{digest}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return _unpacked(dict(file))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"cannot read {path} ({error}); delete it to repeat") from error
    models = make()
    packed = {f"{r}/{i}": a for r, arrays in models.items() for i, a in enumerate(arrays)}
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part.npz")
    np.savez(beside, **packed)  # type: ignore[arg-type]
    beside.replace(path)
    return models


def training(settings: AppSettings) -> dict[str, Any]:
    """Return what trained models depend on, for :func:`kept`."""
    return {**asdict(settings), "data_dir": ""}


def _unpacked(packed: dict[str, Any]) -> Models:
    models: dict[int, dict[int, Any]] = {}
    for key, array in packed.items():
        number, _, index = key.partition("/")
        models.setdefault(int(number), {})[int(index)] = array
    return {r: [of[i] for i in sorted(of)] for r, of in sorted(models.items())}
