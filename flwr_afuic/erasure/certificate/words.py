"""What a certificate says in words: what it proves, what not, and what is out of reach."""

from __future__ import annotations

OUT_OF_REACH: tuple[tuple[str, str], ...] = (
    (
        "the data themselves at the hospital",
        "this erasure is from the shared model; the hospital's own records are its own to delete",
    ),
    (
        "copies of earlier models at the sites",
        "every site was sent models while the data were still in them, and may have kept them",
    ),
    (
        "models that were released, exported or published before",
        "whoever received one still has it",
    ),
    (
        "what the other sites learned from models that still held the data",
        "their updates since then were made from such models and stay in the shared model",
    ),
    (
        "the SuperLink's database",
        "Flower keeps messages in transit there, models too, and deletes them by rules of its own",
    ),
    (
        "Ray's object store and spill files",
        "in simulations Ray keeps messages there; they go when its session folder is deleted",
    ),
    (
        "backups of the server, of the SuperLink and of the sites",
        "a backup made before the deletion holds what was deleted; restore none of them unerased",
    ),
    (
        "deleted blocks on storage media",
        "files are unlinked and not overwritten; disks and file systems can keep their blocks",
    ),
)
"""What no erasure of ours can delete: what, and why."""

_EMPIRICAL = (
    "Empirical evidence, not a guarantee: another test may still find a trace of the data. "
)
_REFERENCE = (
    "The level to forget down to is the score of a reference model that was distilled on images of "
    "nobody's. Its teacher was the shared model, which had been trained on the data to be erased, "
    "so the reference is a yardstick and bounds nothing."
)
_HOLDOUT = (
    "The level to forget down to is the shared model's own score on data the site had held out "
    "from training. It is a yardstick and bounds nothing."
)
_HISTORY = (
    "The influence was subtracted as the server's history of updates records it; no model that had "
    "never seen the data was there to compare with."
)


def guarantee_words(level: str | None) -> str:
    """Say what kind of evidence an erasure rests on.

    Parameters
    ----------
    level : {"reference", "hold-out"} or None
        Whose score was the forget level; None if there was none.
    """
    return _EMPIRICAL + {"reference": _REFERENCE, "hold-out": _HOLDOUT, None: _HISTORY}[level]


def proxy_words(used: bool) -> str:
    """Say what proxy images were for, or what their absence means."""
    if used:
        return (
            "The server used proxy images, which belong to no site: for the reference model, and "
            "to keep the shared model's predictions at the merge and after it."
        )
    return (
        "The server had no proxy images. So there was no reference model: the site anchored on its "
        "own kept or held-out data, and prediction invariance was off."
    )
