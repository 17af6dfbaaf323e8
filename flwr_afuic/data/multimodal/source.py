"""Loading image-text pairs: a table of one's own, or the covid_cxr_text set."""

from __future__ import annotations

from pathlib import Path

import torch

from flwr_afuic.data.clinical.preparation import Preparation
from flwr_afuic.data.clinical.problems import Problem, Report
from flwr_afuic.data.clinical.warm import Item, WarmStore, files_of
from flwr_afuic.data.multimodal.pairs import ImageTextSet
from flwr_afuic.data.multimodal.table import read_pairs
from flwr_afuic.data.sources import DATA_DIR_VARIABLE, resolve_data_dir
from flwr_afuic.errors import DataError

COVID_CXR_TEXT = "covid_cxr_text"
CLIENTS = ("Spain", "Australia", "United Kingdom", "Italy", "USA")
"""Places with ten pairs or more, notes with almost every image, in the order of their size."""

_SOURCE = (
    'J. P. Cohen et al., "COVID-19 Image Data Collection", 2020, and the publication named in each '
    "row; licence per row"
)


def load_pairs(
    table: str | Path,
    *,
    size: int = 64,
    name: str = "",
    source: str = "",
    cache_dir: str | Path | None = None,
) -> tuple[ImageTextSet, Report]:
    """Load every usable row of a table of pairs; bad rows are left out, and all named at once.

    Images are read, brought to ``size`` by ``size`` pixels and scaled from their first to their
    99th percentile to ``[0, 1]`` by MONAI's transforms.

    Parameters
    ----------
    table : path
        See :func:`~flwr_afuic.data.multimodal.table.read_pairs`.
    size : int
        Height and width of the images, pixels.
    name, source : str
        What the set is called, and where it is from.
    cache_dir : path, optional
        Where prepared images are kept, readable by their owner only, see
        :mod:`flwr_afuic.data.clinical.warm`; later calls need no MONAI.

    Returns
    -------
    ImageTextSet
    Report

    Raises
    ------
    DataError
        If the table cannot be read or no row can be used.
    """
    rows, problems = read_pairs(table)
    preparation = Preparation(size=(size, size), channels=1)
    store = WarmStore(None if cache_dir is None else Path(cache_dir), preparation)
    items = [Item(row.path, None, 0, files_of(row.path)) for row in rows]
    images, usable = [], []
    for row, result in zip(rows, store.load(items), strict=True):
        if isinstance(result, str):
            kind, _, text = result.partition(": ")
            problems.append(Problem(row.line, row.sample_id, kind, text))
        else:
            images.append(result[0])
            usable.append(row)
    lines = {row.line for row in rows} | {problem.line for problem in problems}
    report = Report(len(lines), len(usable), tuple(sorted(problems)))
    if not usable:
        raise DataError(f"no row of {table} can be used: {report.text()}")
    pairs = ImageTextSet(
        images=torch.stack(images),
        captions=tuple(row.caption for row in usable),
        ids=tuple(row.sample_id for row in usable),
        patients=tuple(row.patient_id for row in usable),
        findings=tuple(row.finding for row in usable),
        places=tuple(row.place for row in usable),
        licences=tuple(row.licence for row in usable),
        name=name or Path(table).parent.name,
        source=source,
        caption_sources=tuple(row.caption_source for row in usable),
    )
    return pairs, report


def load_covid_cxr_text(
    data_dir: str | Path | None = None,
    *,
    size: int = 64,
    cache_dir: str | Path | None = None,
) -> tuple[ImageTextSet, Report]:
    """Load the 352 chest X-rays with texts of ``covid_cxr_text``.

    Parameters
    ----------
    data_dir : path, optional
        Folder that holds ``covid_cxr_text/pairs.csv``; see
        :func:`~flwr_afuic.data.sources.resolve_data_dir`.
    size : int
        Height and width, pixels.
    cache_dir : path, optional
        See :func:`load_pairs`.

    Raises
    ------
    DataError
        If it is not there: it is never downloaded.
    """
    folder = resolve_data_dir(data_dir)
    table = folder / COVID_CXR_TEXT / "pairs.csv"
    if not table.is_file():
        raise DataError(
            f"data set {COVID_CXR_TEXT!r} is not in {folder} and has no official download; put its "
            f"folder there, name its parent with --data-dir or ${DATA_DIR_VARIABLE}, or use the "
            "generated pairs of make_pair_phantoms"
        )
    return load_pairs(table, size=size, name=COVID_CXR_TEXT, source=_SOURCE, cache_dir=cache_dir)
