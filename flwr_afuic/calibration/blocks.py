"""Blocks of a model's trained entries (layer x tower), and bases that live in them.

A subspace method works block by block: a basis of a whole model is block-diagonal, and only the
blocks' parts are ever held, sent or applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import LayoutError

FloatArray = NDArray[np.float64]

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|resblocks|blocks|h)\.(\d+)(?:\.|$)")
_TOWERS = (("vision", ("vision", "visual", "image")), ("text", ("text",)))


def block_of(name: str) -> str:
    """Name the block an array belongs to: its tower and its layer, read off the array's name.

    Parameters
    ----------
    name : str
        As in a ``state_dict``; the names of ``transformers``' CLIP and of ``peft`` adapters on it
        are understood.

    Returns
    -------
    str
        ``"vision/3"``, ``"text/0"``; ``"vision"`` or ``"text"`` for what is in a tower but in no
        layer, ``"shared/2"`` or ``"shared"`` for what is in no tower.

    Examples
    --------
    >>> block_of("vision_model.encoder.layers.3.self_attn.q_proj.lora_A.default.weight")
    'vision/3'
    >>> block_of("logit_scale")
    'shared'
    """
    parts = [part for piece in name.split(".") for part in piece.split("_")]
    tower = next((t for t, words in _TOWERS if any(w in parts for w in words)), "shared")
    layer = _LAYER.search(name)
    return tower if layer is None else f"{tower}/{int(layer.group(1))}"


class Blocks:
    """Which entries of the flat vector of trained arrays belong to which block.

    Parameters
    ----------
    names : sequence of str
        Of the trained arrays, in order.
    sizes : sequence of int
        Their numbers of entries.

    Raises
    ------
    LayoutError
        If names and sizes differ in number, or there are none.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int]) -> None:
        if len(names) != len(sizes) or not names:
            raise LayoutError(f"{len(names)} names for {len(sizes)} trained arrays; give one each")
        segments: dict[str, list[slice]] = {}
        start = 0
        for name, size in zip(names, sizes, strict=True):
            found = segments.setdefault(block_of(name), [])
            if found and found[-1].stop == start:
                found[-1] = slice(found[-1].start, start + int(size))
            else:
                found.append(slice(start, start + int(size)))
            start += int(size)
        self._segments = dict(sorted(segments.items(), key=lambda item: _order(item[0])))
        self.size = start

    @classmethod
    def of_segments(cls, segments: Mapping[str, Sequence[Sequence[int]]], size: int) -> Blocks:
        """Make blocks from the (start, stop) of their parts in a vector of ``size`` entries.

        Raises
        ------
        LayoutError
            If parts lie outside the vector or overlap.
        """
        blocks = cls.__new__(cls)
        blocks._segments = {
            str(block): [slice(int(start), int(stop)) for start, stop in parts]
            for block, parts in segments.items()
        }
        blocks.size = int(size)
        end = 0
        for part in sorted((p for parts in blocks._segments.values() for p in parts), key=_start):
            if not end <= part.start < part.stop <= size:
                raise LayoutError(
                    f"blocks overlap or leave the {size} entries at {part.start}:{part.stop}"
                )
            end = part.stop
        return blocks

    def segments(self, block: str) -> list[list[int]]:
        """Return the (start, stop) of a block's parts in the flat vector."""
        return [[part.start, part.stop] for part in self._parts(block)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    def __contains__(self, block: object) -> bool:
        return block in self._segments

    def size_of(self, block: str) -> int:
        """Return the number of entries of a block."""
        return sum(part.stop - part.start for part in self._parts(block))

    def take(self, vector: NDArray[np.floating], block: str) -> NDArray[np.floating]:
        """Return a block's entries of a vector of shape (p,), or of rows of shape (n, p)."""
        parts = self._parts(block)
        if len(parts) == 1:
            return vector[..., parts[0]]
        return np.concatenate([vector[..., part] for part in parts], axis=-1)

    def add(self, vector: FloatArray, block: str, step: FloatArray) -> None:
        """Add a step, of a block's size, to a vector of shape (p,), in place."""
        start = 0
        for part in self._parts(block):
            size = part.stop - part.start
            vector[part] += step[start : start + size]
            start += size

    def _parts(self, block: str) -> list[slice]:
        if block not in self._segments:
            raise LayoutError(f"no block {block!r}; the model has {', '.join(self._segments)}")
        return self._segments[block]


@dataclass(frozen=True)
class BlockBasis:
    """An orthonormal basis that is block-diagonal: ``B``, of a model's forget directions.

    Attributes
    ----------
    blocks : Blocks
        Where each block's entries are.
    rows : mapping of str to ndarray, shape (r_b, d_b)
        Orthonormal rows of each block that has any; ``B_b^T``.
    """

    blocks: Blocks
    rows: Mapping[str, FloatArray] = field(repr=False)

    def __post_init__(self) -> None:
        for block, rows in self.rows.items():
            if rows.ndim != 2 or rows.shape[1] != self.blocks.size_of(block):
                raise LayoutError(
                    f"the basis of block {block!r} has shape {rows.shape}; it must be "
                    f"(r, {self.blocks.size_of(block)})"
                )

    @property
    def rank(self) -> int:
        """Number of directions, of all blocks."""
        return sum(len(rows) for rows in self.rows.values())

    @property
    def ranks(self) -> dict[str, int]:
        """Number of directions of each block that has any."""
        return {block: len(rows) for block, rows in self.rows.items() if len(rows)}

    def coordinates(self, vector: NDArray[np.floating]) -> FloatArray:
        """Return ``B^T x`` for ``x`` of shape (p,), as one vector of shape (rank,)."""
        parts = [rows @ self.blocks.take(vector, block) for block, rows in self.rows.items()]
        return np.concatenate([*parts, np.zeros(0)])

    def subtract(self, vector: FloatArray, coordinates: FloatArray) -> None:
        """Subtract ``B c`` from a vector of shape (p,), block by block, in place."""
        start = 0
        for block, rows in self.rows.items():
            part = coordinates[start : start + len(rows)]
            self.blocks.add(vector, block, -(part @ rows))
            start += len(rows)

    def project_out(self, vector: FloatArray) -> None:
        """Replace a vector of shape (p,) by ``(I - B B^T) x``, in place."""
        self.subtract(vector, self.coordinates(vector))


def _start(part: slice) -> int:
    return int(part.start)


def _order(block: str) -> tuple[str, int]:
    tower, _, layer = block.partition("/")
    return tower, int(layer) if layer else -1
