"""Errors at a site: logged here, and told to the server as a stable code only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR

from flwr.supercore import log

from flwr_afuic.errors import AfuicError


@contextmanager
def sealed(what: str) -> Iterator[None]:
    """Log what fails here, and let only a stable code out: texts may name samples.

    Flower sends the text of an exception to the server.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again, without its text
        log(ERROR, "%s failed", what, exc_info=error)
        raise AfuicError(outward(error)) from None


def outward(error: Exception) -> str:
    """Return what the server may learn of an error."""
    code = error.code if isinstance(error, AfuicError) else AfuicError.code
    return f"{code} ({type(error).__name__}); see the site's log"
