"""Seeds: every random stream of a run is derived from one root and a purpose."""

from __future__ import annotations

import hashlib


def derive_seed(root: int, *purpose: str | int) -> int:
    """Derive an independent seed for one purpose from the run's root seed.

    Parameters
    ----------
    root : int
        Seed of the whole run.
    *purpose : str or int
        What the stream is for, from general to particular, for example
        ``derive_seed(0, "train", "hospital-3", 17)``.

    Returns
    -------
    int
        In ``[0, 2**31)``, the range every generator used here accepts.

    Examples
    --------
    >>> derive_seed(0, "train") == derive_seed(0, "train")
    True
    >>> derive_seed(0, "train") == derive_seed(1, "train")
    False
    """
    text = "\x1f".join([str(root), *(str(part) for part in purpose)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF
