"""MONAI's import, without that of the transformers library, which takes as long again."""

from __future__ import annotations

import importlib
import sys
from threading import Lock

_lock = Lock()


def import_monai() -> None:
    """Import MONAI; call it before the first ``from monai...`` of a process.

    A deployed site starts a process for every message. MONAI imports all its networks at once, and
    for one of them, TransChex, the transformers library where that is installed. This leaves it
    out: TransChex then says that the library is missing. A process that needs it imports
    ``transformers`` or ``monai`` itself, first.
    """
    with _lock:
        if "monai" in sys.modules or "transformers" in sys.modules:
            return
        sys.modules["transformers"] = None  # type: ignore[assignment]  # Python's word for absent
        try:
            importlib.import_module("monai")
        finally:
            del sys.modules["transformers"]
