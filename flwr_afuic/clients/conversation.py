"""What a site and its server tell each other beside every task, whatever the task is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from logging import ERROR
from typing import Any

from flwr.supercore import log

from flwr_afuic import wire
from flwr_afuic.erasure.delivery import CertificateNotice, LedgerNotice
from flwr_afuic.erasure.inbox import CANCELLED, CLOSED, KNOWN, REFUSED, SiteInbox
from flwr_afuic.errors import WireError

Scalars = dict[str, wire.Scalar]

_NEWS = (
    (wire.KNOWN, KNOWN),
    (wire.CLOSED, CLOSED),
    (wire.CANCELLED, CANCELLED),
    (wire.REFUSED, REFUSED),
)

_NAMING = (wire.KNOWN, wire.CLOSED, wire.CANCELLED, wire.REFUSED)


class Conversation:
    """The site's side of it.

    Parameters
    ----------
    inbox : SiteInbox
        Where everything said is kept.
    site : str
        Name of the site where nodes are not authenticated.
    holds_lock : bool
        Whether the client holds a forget lock while it trains.
    """

    def __init__(self, inbox: SiteInbox, site: str, *, holds_lock: bool = False) -> None:
        self._inbox = inbox
        self._site = site
        self._holds_lock = holds_lock

    def hear(self, config: Mapping[str, Any]) -> None:
        """Take in where requests stand, the ledger's head, and a certificate.

        What is malformed or forged changes nothing, is logged here, and holds up no task.
        """
        for key, status in _NEWS:
            self._inbox.mark(ids(config, key), status)
        self._inbox.keep(ids(config, wire.KEPT))
        if config.get(wire.FAILED):
            self._hear_failures(config[wire.FAILED])
        if config.get(wire.LEDGER_HEAD):
            self._hear_head(config[wire.LEDGER_HEAD])
        if config.get(wire.CERTIFICATE):
            self._hear_certificate(config[wire.CERTIFICATE])

    def _hear_failures(self, text: object) -> None:
        try:
            failures = wire.decode_json(text, wire.FAILED)
            if not isinstance(failures, dict):
                raise WireError(f"{wire.FAILED} must be a JSON object")
        except WireError as error:
            log(ERROR, "the server's word on failed requests is malformed: %s", error)
            return
        known = {i: why for i, why in failures.items() if why in wire.FAILURE_CODES}
        self._inbox.fail(known)

    def _hear_head(self, text: object) -> None:
        try:
            notice = LedgerNotice.from_json(text)
        except WireError as error:
            log(ERROR, "the server's ledger head is malformed: %s", error)
            return
        for alarm in self._inbox.server.take_head(notice):
            log(ERROR, "%s; ask the operator", alarm.text)

    def _hear_certificate(self, text: object) -> None:
        try:
            why = self._inbox.certificates.take(CertificateNotice.from_json(text))
        except WireError as error:
            why = f"a certificate is malformed: {error}"
        if why is not None:
            log(ERROR, "%s; it was not kept", why)

    def say(self, config: Mapping[str, Any]) -> Scalars:
        """Say who this is, what the server has to know, and what it need not send again.

        Parameters
        ----------
        config : mapping
            Of the task: requests it names as known are not reported once more.
        """
        said: Scalars = {wire.CLIENT: wire.PROTOCOL, wire.SITE: self._site, wire.SCORES: True}
        if self._holds_lock:
            said[wire.HOLDS_LOCK] = True
        known = ids(config, wire.KNOWN)
        news = [n for n in self._inbox.unfinished() if n.request_id not in known]
        news += self._forgotten(config)
        if news:
            said[wire.PENDING] = wire.encode_notices(news[: wire.MAX_PENDING])
        taken_back = self._inbox.taken_back(known)
        if taken_back:
            said[wire.CANCEL] = ",".join(taken_back[: wire.MAX_PENDING])
        head = self._inbox.server.newest_head()
        if head is not None:
            said[wire.SEEN_HEAD] = json.dumps(head)
        certificates = self._inbox.certificates.names()
        if certificates:
            said[wire.HAVE_CERTIFICATES] = ",".join(certificates)
        return said

    def _forgotten(self, config: Mapping[str, Any]) -> list[wire.ErasureNotice]:
        """Return closed requests that a server of the same federation names no more.

        It went back to a backup from before them, and its model holds the erased data again.
        """
        if wire.LEDGER_HEAD not in config or wire.CLOSED not in config:
            return []
        try:
            notice = LedgerNotice.from_json(config[wire.LEDGER_HEAD])
        except WireError:
            return []
        seen = self._inbox.server.newest_head()
        same = seen is not None and seen["federation"] == notice.head.federation
        if not same or notice.head.key not in self._inbox.server.known_keys():
            return []
        named = set().union(*(ids(config, key) for key in _NAMING))
        return [n for n in self._inbox.closed() if n.request_id not in named]

    def has_news(self, config: Mapping[str, Any]) -> bool:
        """Whether the server has yet to hear of a request."""
        return wire.PENDING in self.say(config)


def ids(config: Mapping[str, Any], key: str) -> set[str]:
    """Read ids separated by commas."""
    return {part for part in str(config.get(key, "")).split(",") if part}
