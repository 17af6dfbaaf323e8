"""Erasure of a whole class: each site files for its own samples, whose ids stay with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import ERROR
from typing import Any

from flwr.supercore import log

from flwr_afuic import wire
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import AfuicError, WireError


def file_classes(
    inbox: SiteInbox, config: Mapping[str, Any], held: Sequence[str], classes: Mapping[str, str]
) -> None:
    """File a request for the held samples of every class the server names.

    Samples that are erased already are left alone, so that hearing it again files nothing. What
    is malformed is logged here and holds up no task.

    Parameters
    ----------
    inbox : SiteInbox
        Of the site.
    config : mapping
        Of the task; classes and the reason of each under :data:`flwr_afuic.wire.ERASE_CLASSES`.
    held : sequence of str
        Ids of the samples the site holds.
    classes : mapping of str to str
        The class of each sample.
    """
    try:
        wanted = wire.decode_json(config[wire.ERASE_CLASSES], wire.ERASE_CLASSES)
        if not isinstance(wanted, dict) or len(wanted) > wire.MAX_PENDING:
            raise WireError(f"{wire.ERASE_CLASSES} must map classes to reasons")
        for name, reason in wanted.items():
            erased = inbox.tombstones()
            mine = [i for i in held if classes.get(i) == name and i not in erased]
            if mine:
                inbox.file(scope="samples", sample_ids=mine, held=held, reason=str(reason))
    except AfuicError as error:
        log(ERROR, "a class could not be erased here: %s", error)
