"""MONAI's LoadImage, made once and quietly."""

from __future__ import annotations

import logging
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flwr_afuic.monai_import import import_monai

if TYPE_CHECKING:
    from monai.data.image_reader import ImageReader, PILReader
    from monai.transforms.io.array import LoadImage

_LOCK = threading.Lock()


def load_image(path: Path, reader: ImageReader) -> Any:
    """Read a file with one reader, and no other where that fails.

    Parameters
    ----------
    path : pathlib.Path
    reader : monai.data.image_reader.ImageReader

    Returns
    -------
    monai.data.MetaTensor
        float32, with the file's affine.
    """
    return _loader()(str(path), reader=reader)


def picture_reader() -> PILReader:
    """Make MONAI's reader of 8-bit pictures, grey or RGB, rows first."""
    import_monai()
    from monai.data.image_reader import PILReader

    # The converter decides between grey and RGB: palettes and alpha would otherwise come through
    # as index maps and extra channels. MONAI's default would swap rows and columns.
    return PILReader(converter=_grey_or_rgb, reverse_indexing=False)


def _grey_or_rgb(image: Any) -> Any:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        raise ValueError(f"pixel mode {image.mode!r} is not 8 bit")
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


@lru_cache(maxsize=1)
def _loader() -> LoadImage:
    """Make the transform; it looks for every reader's packages, and warns of those not there."""
    import_monai()
    from monai.transforms.io.array import LoadImage

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            return LoadImage(image_only=True, dtype=np.float32)
        finally:
            logging.disable(before)
