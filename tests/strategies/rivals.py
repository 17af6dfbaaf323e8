"""What the tests of the comparators share: four tiny torch sites and one erasure."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord

from flwr_afuic.models.arrays import get_arrays
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.strategies.comparators import (
    FCU,
    PGA,
    FedEraser,
    FedOSD,
    NoT,
    ProxyDistill,
)
from tests.erasure_helpers import (
    Outcome,
    federate,
    toy_app,
    toy_data,
    toy_model,
    toy_sites,
)

DISTILLING = {"model_factory": toy_model, "proxies": toy_data(999, n=32)[0]}

RIVALS: dict[type, dict[str, Any]] = {
    PGA: {},
    FedEraser: {},
    FedOSD: {"unlearning_rounds": 3},
    NoT: {},
    FCU: {},
    ProxyDistill: DISTILLING,
}
STOPPING = [PGA, FedEraser, FedOSD, FCU]


def toy_record() -> ArrayRecord:
    model = toy_model()
    return to_record(list(model.state_dict()), get_arrays(model))


def erase_one(kind: type, *, sites=None, rounds: int = 14, **changes: Any) -> Outcome:
    """Train four sites, the first of them flipped, and erase it after version 8."""
    sites = toy_sites(4) if sites is None else sites
    options = {
        "initial": toy_record(),
        "app": toy_app(sites),
        "at": {8: lambda strategy: sites[0].file((), 1)},
        "recovery_rounds": 1,
        "virtual_reference_seconds": 1.0,
        **RIVALS[kind],
        **changes,
    }
    return federate(sites, rounds=rounds, strategy_type=kind, **options)
