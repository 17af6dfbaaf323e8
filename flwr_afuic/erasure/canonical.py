"""One text for one value: the JSON that is hashed and signed."""

from __future__ import annotations

import json

from flwr_afuic.errors import LedgerError


def canonical(value: object) -> bytes:
    r"""Return the one JSON text of a value: keys sorted, no spaces, ASCII, no NaN.

    Raises
    ------
    LedgerError
        If the value is no JSON.

    Examples
    --------
    >>> canonical({"b": 1.5, "a": ["é", None]})
    b'{"a":["\\u00e9",null],"b":1.5}'
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as cause:
        kind = type(value).__name__
        raise LedgerError(f"a {kind} cannot be written as JSON: {cause}") from cause
    return text.encode("ascii")
