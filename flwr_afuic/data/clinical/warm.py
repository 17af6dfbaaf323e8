"""Prepared images on the site's disk: read once, warm for every later process.

MONAI makes and writes what is kept (``PersistentDataset``); what is there already is read
without importing MONAI, which takes longer than the reading itself. A Flower client's process
is started anew for each message.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flwr_afuic.data.clinical.preparation import Preparation
from flwr_afuic.data.clinical.table import Row
from flwr_afuic.errors import DataError
from flwr_afuic.monai_import import import_monai

_FORMAT = 1
_SUFFIX = ".pt"
_FEW = 256
_KINDS = ("shape", "affine", "label")

Result = tuple[Tensor, Tensor | None] | str
"""Image and mask (an integer type), or ``"kind: what is wrong"``."""


@dataclass(frozen=True)
class Item:
    """One image to prepare.

    Parameters
    ----------
    path : pathlib.Path
    mask : pathlib.Path or None
    classes : int
        Number of mask values; 0 where there is no mask.
    files : tuple
        Name, size and time of change of each file, so that a changed file is read anew.
    """

    path: Path
    mask: Path | None
    classes: int
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, row: Row, classes: int) -> Item:
        """Look at the files of a row; ``classes`` is 0 where masks are not used."""
        mask = row.mask_path if classes else None
        files = [*files_of(row.path), *(files_of(mask) if mask is not None else [])]
        return cls(row.path, mask, classes, tuple(files))

    def key(self, preparation: Preparation) -> str:
        """Name under which the prepared image is kept."""
        text = json.dumps([_FORMAT, preparation.to_json(), self.classes, self.files])
        return hashlib.sha256(text.encode()).hexdigest()


class WarmStore:
    """Prepared images in a folder.

    Parameters
    ----------
    folder : pathlib.Path or None
        Readable by its owner only; None keeps nothing.
    preparation : Preparation
    """

    def __init__(self, folder: Path | None, preparation: Preparation) -> None:
        self._folder = folder
        self._preparation = preparation

    def load(self, items: Sequence[Item]) -> list[Result]:
        """Return each item's tensors or its problem, in order; keep these and no others."""
        if self._folder is None:
            return _read_all(items, self._preparation, None)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = [item.key(self._preparation) for item in items]
        kept = [_warm(self._folder / f"{key}{_SUFFIX}") for key in keys]
        cold = [i for i, result in enumerate(kept) if result is None]
        if cold:
            read = _read_all([items[i] for i in cold], self._preparation, self._folder)
            for i, result in zip(cold, read, strict=True):
                kept[i] = result
        self._drop_others(set(keys))
        return [result for result in kept if result is not None]

    def _drop_others(self, keys: set[str]) -> None:
        """Delete what was kept of rows that left the table, or of files as they were before."""
        if self._folder is None:
            return
        for file in self._folder.glob(f"*{_SUFFIX}"):
            if file.stem not in keys:
                file.unlink(missing_ok=True)


def files_of(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of a file, or of each file of a folder."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    found = []
    for file in inside:
        status = os.stat(file)
        found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _warm(file: Path) -> Result | None:
    """Read what was kept; None if there is nothing, or it is damaged: it is made anew then."""
    if not file.is_file():
        return None
    try:
        return _result(torch.load(file, weights_only=True))
    except Exception:  # noqa: BLE001 - torch raises anything at a damaged file
        file.unlink(missing_ok=True)
        return None


def _result(kept: dict[str, Any]) -> Result:
    if "problem" in kept:
        return str(kept["problem"])
    return kept["image"], kept.get("mask")


def _read_all(items: Sequence[Item], preparation: Preparation, folder: Path | None) -> list[Result]:
    # Imported here: MONAI takes seconds, and a process that finds its data warm needs none of it.
    import_monai()
    from monai.data.dataset import CacheDataset, PersistentDataset
    from monai.transforms.transform import Transform

    class Prepare(Transform):
        """One item to its tensors, or to what is wrong: a bad row must not end the others."""

        def __call__(self, item: Item) -> dict[str, Any]:
            return _prepare(item, preparation)

    def name(item: Item) -> bytes:
        return item.key(preparation).encode()

    dataset: Any
    if folder is None:
        dataset = CacheDataset(list(items), Prepare(), progress=False, num_workers=None)
    else:
        dataset = PersistentDataset(list(items), Prepare(), folder, hash_func=name)
    return [_result(dataset[i]) for i in range(len(items))]


def _prepare(item: Item, preparation: Preparation) -> dict[str, Any]:
    try:
        image, volume = preparation.image(item.path)
        if item.mask is None:
            return {"image": image}
        mask = preparation.mask(item.mask, volume, item.classes)
        # An eighth of the size on disk; few anatomies have more classes.
        small = mask.to(torch.uint8) if item.classes <= _FEW else mask
        return {"image": image, "mask": small}
    except DataError as error:
        text = str(error)
        kind = text.partition(": ")[0]
        return {"problem": text if kind in _KINDS else f"unreadable: {text}"}
