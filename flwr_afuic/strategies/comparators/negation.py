"""NoT: unlearning by weight negation."""

from __future__ import annotations

from typing import Any

import numpy as np

from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Arrays, Layout
from flwr_afuic.strategies.comparators.base import Comparator
from flwr_afuic.strategies.procedure import Method, Procedure


def layer_arrays(layout: Layout, layer: str) -> list[str]:
    """Name the trained arrays of a layer: all of one module, such as its weight and bias.

    Parameters
    ----------
    layout : Layout
        The model.
    layer : str
        The module's name; empty for the first with a weight of two or more dimensions.

    Raises
    ------
    ConfigError
        If there is no such layer.
    """
    trained = [spec for spec in layout.specs if spec.kind == "trained"]
    modules = {spec.name: spec.name.rpartition(".")[0] for spec in trained}
    if not layer:
        weights = [spec.name for spec in trained if len(spec.shape) >= 2]
        if not weights:
            raise ConfigError("the model has no layer with a weight matrix; name one to negate")
        if "." not in weights[0]:
            return [weights[0]]
        layer = modules[weights[0]]
    found = [name for name, module in modules.items() if layer in (module, name)]
    if not found:
        known = ", ".join(sorted({module for module in modules.values() if module}))
        raise ConfigError(f"no layer {layer!r} in the model; it has: {known}")
    return found


def negate(layout: Layout, arrays: Arrays, layer: str) -> Arrays:
    """Return the model with ``w_l <- -w_l`` for a layer ``l``; all else is the same bit for bit."""
    chosen = set(layer_arrays(layout, layer))
    return [
        np.negative(array) if spec.name in chosen else np.array(array)
        for spec, array in zip(layout.specs, arrays, strict=True)
    ]


class NoT(Comparator):
    """Negate a layer's weights, then train on with the retained sites (CVPR 2025).

    Y. H. Khalil et al., "NoT: Federated Unlearning via Weight Negation", CVPR 2025. Negation breaks
    the co-adaptation of layers; training on the retained data repairs it without the erased data
    [P]. It needs nothing of the erasing site, and the negated layer is the first [P]. That a
    layer's bias is negated with its weight, while the norm behind it is not, is our reading [O].

    Nobody is asked anything and nothing is computed, so that the federation does not stop; updates
    trained from the model before are refused [O].

    Parameters
    ----------
    layer : str
        Name of the layer's module; empty for the first with a weight matrix.
    **erasing : Any
        Settings of :class:`Comparator`.
    """

    methods = ("not",)

    def __init__(self, *, layer: str = "", **erasing: Any) -> None:
        super().__init__(**erasing)
        self.layer = layer

    def make_method(self) -> Method:
        """See :class:`Comparator`."""
        return _Negation(self.layer)

    def describe(self) -> tuple[str, dict[str, Any]]:
        """See :class:`ErasureStrategy`."""
        return "NoT", {"layer": self.layer or "first"}


class _Negation(Method):
    stops_training = False

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def erase(self, record: ErasureRecord) -> Procedure:
        yield []
        return negate(self.run.layout, self.run.arrays, self.layer)
