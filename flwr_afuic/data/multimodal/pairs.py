"""Image-text pairs: images with captions, whose they are, from where, and under which licence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flwr_afuic.errors import DataError


@dataclass(frozen=True)
class ImageTextSet:
    """Pairs of an image and a caption.

    Parameters
    ----------
    images : Tensor, shape (n, c, h, w), float32
        Intensities in ``[0, 1]``.
    captions : tuple of str, length n
        Equal captions are one caption: none of them can be told from the others.
    ids, patients, findings, places, licences : tuple of str, length n
        Stable sample id; forget unit; class of class-level erasure; the client it belongs to;
        licence of the row.
    name : str
    synthetic : bool
        Whether the pairs were generated.
    source : str
        Where they come from, in words.
    caption_sources : tuple of str
        Where each caption comes from; empty where there is one source only.

    Raises
    ------
    DataError
        If lengths, dtypes or ids do not fit together.
    """

    images: Tensor
    captions: tuple[str, ...]
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    findings: tuple[str, ...]
    places: tuple[str, ...]
    licences: tuple[str, ...]
    name: str = ""
    synthetic: bool = False
    source: str = ""
    caption_sources: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise DataError(
                "images must be float32 of shape (n, channels, height, width), not "
                f"{self.images.dtype} {tuple(self.images.shape)}; convert them first"
            )
        for what in ("captions", "ids", "patients", "findings", "places", "licences"):
            if len(getattr(self, what)) != len(self.images):
                raise DataError(
                    f"{len(self.images)} images and {len(getattr(self, what))} {what}; each image "
                    "needs one"
                )
        if len(set(self.ids)) != len(self.ids):
            raise DataError("sample ids repeat; an erasure could not tell those samples apart")
        if not all(self.captions):
            raise DataError("a caption is empty; leave out images without a text")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def groups(self) -> Tensor:
        """Number of each caption, equal for equal captions. # shape: (n,), int64."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(text, len(numbers)) for text in self.captions])

    @property
    def licence(self) -> str:
        """All licences with how many pairs each covers, the most frequent first."""
        counts = Counter(self.licences)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{name or 'unknown'} ({number})" for name, number in ordered)

    def take(self, rows: Sequence[int]) -> ImageTextSet:
        """Select pairs by position, in the order given."""
        index = np.asarray(rows, dtype=np.int64).reshape(-1)

        def pick(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[i] for i in index) if values else ()

        return ImageTextSet(
            images=self.images[torch.from_numpy(index)],
            captions=pick(self.captions),
            ids=pick(self.ids),
            patients=pick(self.patients),
            findings=pick(self.findings),
            places=pick(self.places),
            licences=pick(self.licences),
            name=self.name,
            synthetic=self.synthetic,
            source=self.source,
            caption_sources=pick(self.caption_sources),
        )

    def rows(
        self,
        *,
        place: str | None = None,
        patients: Sequence[str] | None = None,
        finding: str | None = None,
    ) -> list[int]:
        """Find the positions of a client, of patients, or of a finding; several must all hold."""
        wanted = None if patients is None else set(patients)
        return [
            i
            for i in range(len(self))
            if (place is None or self.places[i] == place)
            and (wanted is None or self.patients[i] in wanted)
            and (finding is None or self.findings[i] == finding)
        ]


@dataclass(frozen=True)
class Federation:
    """Pairs of a federation's clients, and pairs of places that are no clients.

    Attributes
    ----------
    sites : dict of str to ImageTextSet
        Clients by place, in the order asked for.
    public : ImageTextSet
        Pairs of all other places: for the pretraining of the base model and its tokenizer.
    """

    sites: dict[str, ImageTextSet]
    public: ImageTextSet


def split_places(pairs: ImageTextSet, clients: Sequence[str]) -> Federation:
    """Divide pairs among clients by place; what belongs to no client is for pretraining.

    No patient of a client is among the pretraining pairs, also where one of that patient's
    images comes from another place.

    Raises
    ------
    DataError
        If a client has no pairs, is named twice, or nothing is left for pretraining.
    """
    if len(set(clients)) != len(clients) or not clients:
        raise DataError(f"clients are {list(clients)}; name at least one place, each once")
    sites = {place: pairs.take(pairs.rows(place=place)) for place in clients}
    empty = [place for place, site in sites.items() if len(site) == 0]
    if empty:
        raise DataError(
            f"no pair is from {', '.join(empty)}; places are {', '.join(sorted(set(pairs.places)))}"
        )
    known = {patient for site in sites.values() for patient in site.patients}
    rest = [
        i
        for i in range(len(pairs))
        if pairs.places[i] not in sites and pairs.patients[i] not in known
    ]
    if not rest:
        raise DataError(
            "every place is a client; leave out some, whose pairs the base model is pretrained on"
        )
    return Federation(sites, pairs.take(rest))
