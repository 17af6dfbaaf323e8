"""One door to every data set: a name, a ``.npz`` file, a folder of images, or ``phantoms``."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from flwr_afuic.data.download import fetch
from flwr_afuic.data.folder import load_folder
from flwr_afuic.data.images import Dataset
from flwr_afuic.data.medmnist import NAMED_SETS, NamedSet
from flwr_afuic.data.npzfile import file_md5, load_npz
from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.errors import DataError

DATA_DIR_VARIABLE = "AFUIC_DATA_DIR"
PHANTOMS = "phantoms"


def known_names() -> tuple[str, ...]:
    """Names that ``load_dataset`` accepts besides paths, in alphabetical order."""
    return tuple(sorted([*NAMED_SETS, PHANTOMS]))


def resolve_data_dir(data_dir: str | Path | None = None) -> Path:
    """Say where data sets are looked for.

    Parameters
    ----------
    data_dir : str or pathlib.Path, optional
        Taken where given; else ``$AFUIC_DATA_DIR``; else the user cache,
        ``$XDG_CACHE_HOME/flwr-afuic`` or ``~/.cache/flwr-afuic``.

    Returns
    -------
    pathlib.Path
        It need not exist.
    """
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if named := os.environ.get(DATA_DIR_VARIABLE):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "flwr-afuic"


def load_dataset(
    name_or_path: str,
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    image_size: int | None = 28,
    download: bool = True,
) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    name_or_path : str
        A known name (``known_names()``), a path to a ``.npz`` file in MedMNIST layout, or a
        path to a folder with one subfolder of images a class. Something with a path
        separator or the suffix ``.npz`` is a path; a known name wins over a folder of that
        name in the working directory.
    data_dir : str or pathlib.Path, optional
        Where named sets lie, as ``<name>.npz`` or ``<name>/<name>.npz``; see
        ``resolve_data_dir`` for the default.
    seed : int
        Root seed of phantoms and of the split of an image folder; unused otherwise.
    image_size : int or None
        Larger images are area-pooled to this many pixels; None keeps the size of a file,
        and means 28 for phantoms. Images of a folder are brought to it either way.
    download : bool
        Whether a missing MedMNIST set may be fetched from its official address.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If the name is unknown, or the data are missing or damaged.
    ConfigError
        If ``image_size`` is too small.
    """
    if name_or_path == PHANTOMS:
        return make_phantoms(seed, size=image_size or 28)
    if name_or_path in NAMED_SETS:
        entry = NAMED_SETS[name_or_path]
        return load_npz(_locate(entry, data_dir, download), known=entry, image_size=image_size)
    path = Path(name_or_path).expanduser()
    if name_or_path and path.is_dir():
        # Imported here: MONAI's transforms take seconds to import, and few runs need them.
        return load_folder(path, seed=seed, image_size=image_size)
    if path.is_file() or path.suffix == ".npz":
        return load_npz(path, known=_recognise(path), image_size=image_size)
    raise _unknown(name_or_path)


def locate(name: str, data_dir: str | Path | None = None, *, download: bool = True) -> Path:
    """Return the file of a named set, fetched where it is missing; its content is not checked.

    Parameters
    ----------
    name : str
        A name of ``known_names()`` other than ``phantoms``.
    data_dir : str or pathlib.Path, optional
        See ``resolve_data_dir``.
    download : bool
        Whether a missing set may be fetched from its official address.

    Raises
    ------
    DataError
        If the name is unknown, or the set is missing and cannot be fetched.
    """
    if name not in NAMED_SETS:
        raise _unknown(name)
    return _locate(NAMED_SETS[name], data_dir, download)


def _recognise(path: Path) -> NamedSet | None:
    """Know an official file by its MD5, whatever its name: class names and licence follow."""
    found = file_md5(path)
    return next((entry for entry in NAMED_SETS.values() if entry.md5 == found), None)


def _locate(entry: NamedSet, data_dir: str | Path | None, download: bool) -> Path:
    if entry.multi_label:
        raise DataError(
            f"data set {entry.name!r} is multi-label (several findings an image), which is not "
            "supported; choose a single-label set such as pneumoniamnist"
        )
    folder = resolve_data_dir(data_dir)
    for candidate in (folder / entry.filename, folder / entry.name / entry.filename):
        if os.path.isfile(candidate):  # False, not an error, without permission
            return candidate
    advice = (
        f"put {entry.filename} (MD5 {entry.md5}) into {folder} or {folder / entry.name}, or name "
        f"its folder with --data-dir or ${DATA_DIR_VARIABLE}; `--dataset {PHANTOMS}` always works"
    )
    if entry.url is None:
        raise DataError(
            f"data set {entry.name!r} is not in {folder} and has no official download; {advice}"
        )
    if not download:
        raise DataError(f"data set {entry.name!r} is not in {folder}; {advice}")
    try:
        return fetch(entry, folder)
    except DataError as error:
        raise DataError(
            f"data set {entry.name!r} is not in {folder} and could not be downloaded: {error}; "
            f"fetch {entry.url} by hand: {advice}"
        ) from error


def _unknown(name: str) -> DataError:
    known = known_names()
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return DataError(
        f"unknown data set {name!r}{hint}; known: {', '.join(known)}; or give a path to a .npz "
        "file in MedMNIST layout or to a folder with one subfolder of images a class"
    )
