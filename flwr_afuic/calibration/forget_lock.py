"""The client's half of the forget lock: a proximal step after each optimiser step.

EASE's Projection with Forget Lock (arXiv 2605.00733) adds a penalty on drift along the
forget-exclusive basis ``B``, with a drift that is bounded by the reciprocal of its strength [P].
That it is a proximal step, stable for any strength and usable with any optimiser, is ours [O].
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.calibration.basis import check_basis
from flwr_afuic.calibration.blocks import BlockBasis, Blocks
from flwr_afuic.errors import ConfigError, LayoutError, WireError

if TYPE_CHECKING:
    from torch import Tensor

MOST_PINS = 64


@dataclass(frozen=True)
class ForgetLock:
    """Holds a training model near ``theta^`` along the bases of erasures.

    ``x <- x - [eta lam / (1 + eta lam)] B B^T (x - theta^)``. With a gradient whose part along
    ``B`` has norm at most ``G`` and ``eta lam <= 1``, the drift after any number of steps is at
    most ``G / lam`` [D].

    Attributes
    ----------
    pins : sequence of (BlockBasis, ndarray of shape (rank,))
        Each basis, and the coordinates ``B^T theta^`` to stay at.
    strength : float
        ``lam``, at least 0, which does nothing.
    """

    pins: Sequence[tuple[BlockBasis, NDArray[np.float64]]]
    strength: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < math.inf:
            raise ConfigError(f"lam is {self.strength!r}; it must be finite and not negative")

    def step_(self, trained: Sequence[Tensor], lr: float) -> None:
        """Take the proximal step, in place.

        Parameters
        ----------
        trained : sequence of Tensor
            The trained arrays, in the order in which they travel.
        lr : float
            The optimiser's step size ``eta``.

        Raises
        ------
        LayoutError
            If they have another number of entries than the lock was made for.
        """
        share = lr * self.strength / (1.0 + lr * self.strength)
        if not self.pins or share == 0.0:
            return
        import torch  # here alone: a site of another framework starts a process a message

        with torch.no_grad():
            parts = [t.detach().double().reshape(-1).cpu().numpy() for t in trained]
            vector = np.concatenate(parts)
            for basis, at in self.pins:
                if vector.size != basis.blocks.size:
                    raise LayoutError(
                        f"the lock is for {basis.blocks.size} trained entries, the model has "
                        f"{vector.size}"
                    )
                basis.subtract(vector, share * (basis.coordinates(vector) - at))
            start = 0
            for tensor in trained:
                part = vector[start : start + tensor.numel()].reshape(tensor.shape)
                tensor.copy_(torch.from_numpy(part))
                start += tensor.numel()

    # ---- on the wire ----------------------------------------------------------------

    def pack(self) -> tuple[list[NDArray[Any]], str]:
        """Write the lock as arrays (float32 rows, then float64 coordinates) and one JSON text."""
        arrays: list[NDArray[Any]] = []
        pins = []
        for basis, at in self.pins:
            arrays += [np.asarray(rows, dtype=np.float32) for rows in basis.rows.values()]
            arrays.append(at)
            pins.append({block: basis.blocks.segments(block) for block in basis.rows})
        size = self.pins[0][0].blocks.size if self.pins else 0
        text = json.dumps({"lam": self.strength, "size": size, "pins": pins})
        return arrays, text

    @classmethod
    def unpack(cls, arrays: Sequence[NDArray[Any]], text: object) -> ForgetLock:
        """Read what :meth:`pack` wrote; nothing is taken on trust.

        Raises
        ------
        WireError
            If text and arrays do not fit each other.
        LayoutError
            If a basis is not orthonormal, or not finite.
        """
        try:
            row = json.loads(text) if isinstance(text, str) else None
            lam, size, pins = float(row["lam"]), int(row["size"]), list(row["pins"])  # type: ignore[index]
            if len(pins) > MOST_PINS:
                raise WireError(f"a lock of {len(pins)} erasures; at most {MOST_PINS} are taken")
            left = list(arrays)
            found = [_pin(blocks, size, left) for blocks in pins]
        except WireError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise WireError(f"the server's lock is malformed: {error!r}") from error
        if left:
            raise WireError(f"{len(left)} arrays more than the server's lock names")
        return cls(found, lam)


def _pin(
    blocks: dict[str, list[list[int]]], size: int, left: list[NDArray[Any]]
) -> tuple[BlockBasis, NDArray[np.float64]]:
    layout = Blocks.of_segments(blocks, size)
    rows = {}
    for block in blocks:
        part = left.pop(0)
        check_basis(part, min(part.shape), layout.size_of(block))
        rows[block] = np.asarray(part, dtype=np.float64)
    at = np.asarray(left.pop(0), dtype=np.float64)
    basis = BlockBasis(layout, rows)
    if at.shape != (basis.rank,) or not bool(np.isfinite(at).all()):
        raise WireError(f"the lock's coordinates have shape {at.shape}, not ({basis.rank},)")
    return basis, at
