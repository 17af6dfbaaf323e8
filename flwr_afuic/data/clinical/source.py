"""A site's clinical data: the rows of its table that load, as tensors, kept warm on its disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flwr_afuic.data.clinical.preparation import Preparation
from flwr_afuic.data.clinical.problems import Problem, Report
from flwr_afuic.data.clinical.table import Row, read_table
from flwr_afuic.data.clinical.warm import Item, WarmStore
from flwr_afuic.errors import ConfigError, DataError

TaskName = Literal["classification", "multi-label", "segmentation"]
LABEL_SEPARATOR = "|"


@dataclass(frozen=True)
class ClinicalSet:
    """Images of a table with targets, ids and patients.

    Parameters
    ----------
    images : Tensor, shape (n, channels, *size), float32
    targets : Tensor
        Classification: int64 (n,). Multi-label: float32 (n, classes), 0 or 1. Segmentation:
        int64 (n, *size).
    ids, patients : tuple of str, length n
        Sample ids, and whose each image is.
    rows : tuple of Row, length n
        Where each comes from; empty if from no table.
    """

    images: Tensor
    targets: Tensor
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    rows: tuple[Row, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, positions: Sequence[int]) -> ClinicalSet:
        """Select images by position, in the order given."""
        return ClinicalSet(
            self.images[list(positions)],
            self.targets[list(positions)],
            tuple(self.ids[i] for i in positions),
            tuple(self.patients[i] for i in positions),
            tuple(self.rows[i] for i in positions) if self.rows else (),
        )


class ClinicalSource:
    """A table of images on a hospital's disk.

    The first :meth:`load` reads every file, checks it, and keeps the prepared tensors in
    ``cache_dir`` (MONAI's ``PersistentDataset``); later ones, in other processes too, read those.
    What was kept of a row goes when the row leaves the table, so that no copy of a deleted image
    stays behind. A file that changes is read anew.

    Parameters
    ----------
    table : path
        See :func:`~flwr_afuic.data.clinical.table.read_table`.
    preparation : Preparation
        The same at every site of a federation.
    task : {"classification", "multi-label", "segmentation"}
    classes : sequence of str
        The same at every site, in the same order. Classification and multi-label: the labels
        (several of an image are separated by ``|``). Segmentation: names of the mask's values
        from 0, the background.
    root : path, optional
        Folder the table's paths are relative to and may not leave; the table's own by default.
    cache_dir : path, optional
        A folder of the site; without it nothing is kept beyond the process (``CacheDataset``).

    Raises
    ------
    ConfigError
        If the task is unknown or there are fewer than two classes (one, for multi-label).
    """

    def __init__(
        self,
        table: str | Path,
        preparation: Preparation,
        *,
        task: TaskName,
        classes: Sequence[str],
        root: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if task not in ("classification", "multi-label", "segmentation"):
            raise ConfigError(
                f"task is {task!r}; use 'classification', 'multi-label' or 'segmentation'"
            )
        least = 1 if task == "multi-label" else 2
        if len(set(classes)) != len(classes) or len(classes) < least:
            raise ConfigError(f"classes are {list(classes)}; give at least {least}, each once")
        self.table = Path(table)
        self.root = Path(root) if root is not None else self.table.parent
        self.preparation = preparation
        self.task: TaskName = task
        self.classes = tuple(classes)
        self._store = WarmStore(None if cache_dir is None else Path(cache_dir), preparation)

    def validate(self) -> Report:
        """Check every row, and name all that is wrong at once; also warms the cache."""
        return self._examine()[1]

    def load(self) -> tuple[ClinicalSet, Report]:
        """Load every usable row; bad rows are left out and named in the report.

        Raises
        ------
        DataError
            If the table cannot be read or no row can be used.
        """
        found, report = self._examine()
        if not found:
            raise DataError(f"no row of {self.table} can be used: {report.text()}")
        rows = tuple(row for row, _, _ in found)
        targets = torch.stack([target for _, _, target in found])
        loaded = ClinicalSet(
            images=torch.stack([image for _, image, _ in found]),
            targets=targets if self.task == "multi-label" else targets.long(),
            ids=tuple(row.sample_id for row in rows),
            patients=tuple(row.patient_id for row in rows),
            rows=rows,
        )
        return loaded, report

    def _examine(self) -> tuple[list[tuple[Row, Tensor, Tensor]], Report]:
        rows, problems = read_table(self.table, self.root)
        readable: list[tuple[Row, Tensor | None]] = []
        for row in rows:
            target, wrong = self._label(row)
            problems += wrong
            if not wrong:
                readable.append((row, target))
        masks = len(self.classes) if self.task == "segmentation" else 0
        items = [Item.of(row, masks) for row, _ in readable]
        found = []
        for (row, target), result in zip(readable, self._store.load(items), strict=True):
            if isinstance(result, str):
                kind, _, text = result.partition(": ")
                problems.append(Problem(row.line, row.sample_id, kind, text))
            else:
                image, mask = result
                chosen = target if target is not None else mask
                if chosen is not None:
                    found.append((row, image, chosen))
        # Rows left out before they became a Row are counted by their lines.
        lines = {row.line for row in rows} | {problem.line for problem in problems}
        return found, Report(len(lines), len(found), tuple(sorted(problems)))

    def _label(self, row: Row) -> tuple[Tensor | None, list[Problem]]:
        """Return the target the table itself holds, or what is wrong with it."""
        if self.task == "segmentation":
            if row.mask_path is None:
                text = "the cell 'mask_path' is empty; name the image's mask"
                return None, [Problem(row.line, row.sample_id, "empty", text)]
            return None, []
        named = [name.strip() for name in row.label.split(LABEL_SEPARATOR)]
        named = [name for name in named if name] if self.task == "multi-label" else [row.label]
        strange = [name for name in named if name not in self.classes]
        if strange:
            shown = ", ".join(repr(name) for name in strange)
            text = f"unknown label {shown}; classes are {', '.join(self.classes)}"
            return None, [Problem(row.line, row.sample_id, "label", text)]
        places = [self.classes.index(name) for name in named]
        if self.task == "classification":
            return torch.tensor(places[0]), []
        target = torch.zeros(len(self.classes))
        target[places] = 1.0
        return target, []
