"""Errors of the package: one base class, stable codes, messages that say what to do."""

from __future__ import annotations

from typing import ClassVar


class AfuicError(Exception):
    """Base of every error this package raises.

    Each message says what was wrong, with which value, and what to do. ``code`` is
    stable: it may be matched by programs and is what a site sends outward in place
    of an exception's text.
    """

    code: ClassVar[str] = "AFUIC-000"


class ConfigError(AfuicError, ValueError):
    """A setting is out of its range, unknown, or contradicts another setting."""

    code: ClassVar[str] = "AFUIC-100"


class DataError(AfuicError, ValueError):
    """A data set is missing, damaged, or not what its name promises."""

    code: ClassVar[str] = "AFUIC-200"


class LayoutError(AfuicError, ValueError):
    """Model arrays differ from the federation's in count, shape, dtype or values."""

    code: ClassVar[str] = "AFUIC-300"


class WireError(AfuicError, ValueError):
    """A message between server and site lacks a field or carries a malformed one."""

    code: ClassVar[str] = "AFUIC-400"


class ErasureError(AfuicError):
    """An erasure request cannot be accepted or carried out."""

    code: ClassVar[str] = "AFUIC-500"


class UnknownSiteError(ErasureError, LookupError):
    """An erasure names a site the federation does not know."""

    code: ClassVar[str] = "AFUIC-501"


class UnknownSampleError(ErasureError, LookupError):
    """An erasure names a sample the site does not hold."""

    code: ClassVar[str] = "AFUIC-502"


class DuplicateRequestError(ErasureError):
    """An erasure request was filed before under the same identifier, with other content."""

    code: ClassVar[str] = "AFUIC-503"


class StateTransitionError(ErasureError):
    """An erasure request cannot move from its present state to the one asked for."""

    code: ClassVar[str] = "AFUIC-504"


class FederationError(AfuicError, RuntimeError):
    """A federation cannot go on: nobody is connected, or nobody returns a usable update."""

    code: ClassVar[str] = "AFUIC-600"


class StateError(AfuicError, RuntimeError):
    """The server's state directory is missing, damaged, or made by another program."""

    code: ClassVar[str] = "AFUIC-700"


class StateLockedError(StateError):
    """Another server runs on the same state directory."""

    code: ClassVar[str] = "AFUIC-701"


class LedgerError(StateError):
    """The ledger's chain is broken, or a signed head contradicts it."""

    code: ClassVar[str] = "AFUIC-702"


class SignatureError(AfuicError, ValueError):
    """A signature does not match, or a key is not what it should be."""

    code: ClassVar[str] = "AFUIC-703"


class HistoryError(AfuicError, RuntimeError):
    """The history of updates cannot be written, read, or used for what is asked."""

    code: ClassVar[str] = "AFUIC-800"


class RecordError(HistoryError, ValueError):
    """A stored update is damaged, cut short, or belongs to another history."""

    code: ClassVar[str] = "AFUIC-801"
