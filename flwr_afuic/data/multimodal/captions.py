"""Which text goes with an image: the radiologist's notes where they can be used, else metadata."""

from __future__ import annotations

import re
from typing import Literal

CaptionSource = Literal["clinical_notes", "metadata_caption"]

LEAST_WORDS = 3
"""Notes of fewer words say nothing of an image."""

_NAMES_SOMEBODY = re.compile(
    r"\b(?:patient|case|subject|mrn|record|accession|id)\s*(?:no\.?|number|id|nr\.?)?\s*[#:]?\s*"
    r"(?=[\w-]*\d)[\w-]++(?!\s*-?\s*(?:years?|yrs?|y/?o)\b)",
    re.IGNORECASE,
)


def names_somebody(text: str) -> bool:
    """Whether a text names a patient, a case or a record by a number.

    Such a text points at one person, and a model trained on it may say so.

    Examples
    --------
    >>> names_somebody("Chest radiograph of patient 2, illness day 4")
    True
    >>> names_somebody("A 61-year-old patient with dyspnoea since 3 days")
    False
    """
    return _NAMES_SOMEBODY.search(text) is not None


def choose_caption(clinical_notes: str, metadata_caption: str) -> tuple[str, CaptionSource]:
    """Choose the caption of an image.

    Parameters
    ----------
    clinical_notes : str
        Free text of whoever read the image; may be empty.
    metadata_caption : str
        A sentence composed from view, age, sex and finding.

    Returns
    -------
    str
        The notes, if they have at least three words and name nobody by a number; else the
        other. White space is made single; empty if there is neither.
    str
        Which of the two it is.
    """
    notes = " ".join(clinical_notes.split())
    if len(notes.split()) >= LEAST_WORDS and not names_somebody(notes):
        return notes, "clinical_notes"
    return " ".join(metadata_caption.split()), "metadata_caption"
