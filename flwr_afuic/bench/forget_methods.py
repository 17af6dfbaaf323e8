"""Every method of ``flwr-afuic bench forget`` as a strategy with the same engine and data."""

from __future__ import annotations

import dataclasses
from typing import Any

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import build_federation
from flwr_afuic.app.server_app import engine_settings, make_strategy
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.forget_protocol import Constants
from flwr_afuic.errors import ConfigError
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.bounds import NoUnlearning, Retrain
from flwr_afuic.strategies.comparators import FCU, PGA, FedEraser, FedOSD, NoT, ProxyDistill
from flwr_afuic.strategies.erasing import ErasureStrategy
from flwr_afuic.strategies.medu import MEDU
from flwr_afuic.unlearning.ascent import PgaSettings
from flwr_afuic.unlearning.contrast import FcuSettings

_COMPARATORS: dict[str, type[ErasureStrategy]] = {
    "federaser": FedEraser,
    "fedosd": FedOSD,
    "not": NoT,
    "proxy_distill": ProxyDistill,
}


def make_method(
    settings: AppSettings, method: str, constants: Constants = (), **options: Any
) -> AsyncStrategy:
    """Build a method's strategy, with its own defaults but for ``constants``.

    Parameters
    ----------
    settings : AppSettings
        Of the cell.
    method : str
        A name of :data:`~flwr_afuic.bench.forget_protocol.METHODS` or
        :data:`~flwr_afuic.bench.forget_protocol.BASES`.
    constants : tuple of (str, value)
        Of the method; of AFU-IC those of its unlearning at the site.
    **options : Any
        Settings of :class:`~flwr_afuic.strategies.asynchronous.AsyncStrategy`.

    Raises
    ------
    ConfigError
        If the method has no such constant, or it is out of range.
    """
    left = (settings.target,) if settings.scope == "client" else ()
    purpose = {"no_unlearning": "no-unlearning", "retrain_floor": "floor"}.get(method, "run")
    engine = {**engine_settings(settings, derive_seed(settings.seed, purpose)), **options}
    if method == "original":
        return AsyncStrategy(**engine)
    if method == "no_unlearning":
        return NoUnlearning(without=left, **engine)
    if method in ("retrain", "retrain_floor"):
        return Retrain(without=left, **engine)
    # The clock of the sites alone says how late the erasure comes.
    erasing: dict[str, Any] = {"virtual_reference_seconds": 0.0, **options}
    try:
        return _erasing_strategy(settings, method, dict(constants), engine, erasing)
    except TypeError as error:
        raise ConfigError(f"constants of {method}: {error}; see its settings") from error


def _erasing_strategy(
    settings: AppSettings,
    method: str,
    constants: dict[str, Any],
    engine: dict[str, Any],
    erasing: dict[str, Any],
) -> AsyncStrategy:
    if method == "afuic":
        strategy = make_strategy(settings, **erasing)
        strategy.unlearning = dataclasses.replace(strategy.unlearning, **constants)
        return strategy
    data = build_federation(settings)
    engine |= erasing
    engine["verify_rounds"] = settings.verify_rounds
    engine["model_factory"] = lambda: network(settings)
    engine["proxies"] = data.proxies.images
    engine["proxies_provenance"] = f"{data.dataset.source}; validation split"
    if method == "medu":
        return MEDU(history=MemoryStore(), **constants, **engine)
    if method == "pga":
        return PGA(ascent=PgaSettings(**constants), **engine)
    if method == "fcu":
        return FCU(contrast=FcuSettings(**constants), **engine)
    return _COMPARATORS[method](**constants, **engine)
