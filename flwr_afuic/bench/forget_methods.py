"""Every method of ``flwr-afuic bench forget`` as a strategy with the same engine and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import build_federation
from flwr_afuic.app.server_app import engine_settings, make_strategy
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.bounds import NoUnlearning, Retrain
from flwr_afuic.strategies.comparators import FCU, PGA, FedEraser, FedOSD, NoT, ProxyDistill
from flwr_afuic.strategies.erasing import ErasureStrategy
from flwr_afuic.strategies.medu import MEDU

_COMPARATORS: dict[str, type[ErasureStrategy]] = {
    "pga": PGA,
    "federaser": FedEraser,
    "fedosd": FedOSD,
    "not": NoT,
    "fcu": FCU,
    "proxy_distill": ProxyDistill,
}
Maker = Callable[..., AsyncStrategy]


def make_method(settings: AppSettings, method: str, **options: Any) -> AsyncStrategy:
    """Build a method's strategy, with its own defaults.

    Parameters
    ----------
    settings : AppSettings
        Of the cell.
    method : str
        A name of :data:`~flwr_afuic.bench.forget_protocol.METHODS` or
        :data:`~flwr_afuic.bench.forget_protocol.BASES`.
    **options : Any
        Settings of :class:`~flwr_afuic.strategies.asynchronous.AsyncStrategy`.
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
    if method == "afuic":
        return make_strategy(settings, **erasing)
    data = build_federation(settings)
    engine |= erasing
    engine["verify_rounds"] = settings.verify_rounds
    engine["model_factory"] = lambda: network(settings)
    engine["proxies"] = data.proxies.images
    engine["proxies_provenance"] = f"{data.dataset.source}; validation split"
    if method == "medu":
        return MEDU(history=MemoryStore(), **engine)
    return _COMPARATORS[method](**engine)
