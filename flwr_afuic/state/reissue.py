"""A certificate issued anew, with what was measured after the erasure."""

from __future__ import annotations

import json
from typing import Any

from flwr_afuic.erasure.certificate import reissue, render_certificate, to_bytes
from flwr_afuic.errors import ErasureError
from flwr_afuic.state.store import StateStore


def issue_with(store: StateStore, request_id: str, metrics: dict[str, Any]) -> tuple[bytes, str]:
    """Issue a certificate anew with metrics that were measured later.

    Parameters
    ----------
    store : StateStore
        The state directory, which signs it.
    request_id : str
        A completed request.
    metrics : dict
        ``figures`` (flat, numbers) and ``made_with``.

    Returns
    -------
    (bytes, str)
        The document and its signature.

    Raises
    ------
    ErasureError
        If the request has no certificate.
    """
    found = store.certificate(request_id)
    head = store.head()
    if found is None or head is None:
        raise ErasureError(
            f"request {request_id} has no certificate that could be issued anew; a completed "
            "request gets one"
        )
    issue = store.next_issue(request_id)
    document = reissue(
        json.loads(found[0]),
        issue=issue,
        ledger=(head.seq, head.hash),
        signed_by=store.keys.key_id,
        metrics=metrics,
    )
    data = to_bytes(document)
    signature = store.keys.sign(data)
    store.add_certificate(request_id, data, signature, render_certificate(document), issue=issue)
    return data, signature
