"""An erasure's direction cut into its layers, for a lock that holds in each of them."""

from __future__ import annotations

import numpy as np

from flwr_afuic.errors import LayoutError
from flwr_afuic.federation.layout import Layout, Vector


def by_layer(layout: Layout, vector: Vector) -> dict[str, Vector]:
    """Split a vector over trained arrays into one of the same length for each layer.

    A layer is what shares a module's name, such as a weight and its bias; of an array without a
    module, the array itself. The parts are orthogonal and sum to the vector.

    Parameters
    ----------
    layout : Layout
        The model.
    vector : ndarray, shape (p,)
        Over the trained arrays, in order.

    Returns
    -------
    dict of str to ndarray, shape (p,)
        By layer, in the model's order; layers in which the vector is zero are left out.

    Raises
    ------
    LayoutError
        If the vector has another length.

    Notes
    -----
    Ours, for comparison: a lock of all parts forbids a return in any layer, where the lock of the
    whole direction lets one layer return as far as the others go on.
    """
    trained = [spec for spec in layout.specs if spec.kind == "trained"]
    size = sum(spec.size for spec in trained)
    if vector.shape != (size,):
        raise LayoutError(f"a vector of shape {vector.shape} has no layers; it must be ({size},)")
    found: dict[str, Vector] = {}
    begin = 0
    for spec in trained:
        part = found.setdefault(spec.name.rpartition(".")[0] or spec.name, np.zeros(size))
        part[begin : begin + spec.size] = vector[begin : begin + spec.size]
        begin += spec.size
    return {name: part for name, part in found.items() if part.any()}
