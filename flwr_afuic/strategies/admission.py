"""Who may ask for what: requests and cancellations on their way into the book.

A site speaks for itself only: with node authentication its registered name is its identity,
whatever its messages say. What is refused is recorded, with the reason, and told to the site.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from flwr_afuic import wire
from flwr_afuic.erasure.record import ErasureRecord, State
from flwr_afuic.errors import (
    ConfigError,
    DuplicateRequestError,
    ErasureError,
    StateTransitionError,
    UnknownSiteError,
)
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.erasure_desk import ErasureDesk

_DAY = 86400.0
_RECORDED_REFUSALS = 100


@dataclass(frozen=True)
class AdmissionSettings:
    """What a request must satisfy.

    Attributes
    ----------
    require_authentication : bool
        Refuse requests of nodes without a registered name.
    lifetime : float
        Seconds after its filing in which a request must reach the server for the first time; an
        older one is refused as expired, and the steward files it anew.
    clock_skew : float
        Seconds by which a site's clock may be ahead of the server's.
    max_open : int
        Requests of one site that may be open at once.
    """

    require_authentication: bool = False
    lifetime: float = 90 * _DAY
    clock_skew: float = _DAY
    max_open: int = 256

    def __post_init__(self) -> None:
        if not self.lifetime > 0 or not self.clock_skew >= 0:
            raise ConfigError(
                f"lifetime ({self.lifetime}) must be positive and clock_skew "
                f"({self.clock_skew}) not negative (seconds)"
            )
        if self.max_open < 1:
            raise ConfigError(f"max_open is {self.max_open}; it must be at least 1")


class Admission:
    """The door of the request book.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    settings : AdmissionSettings
        What a request must satisfy.
    now : callable
        Seconds since the epoch, for expiry.
    """

    def __init__(
        self, desk: ErasureDesk, settings: AdmissionSettings, now: Callable[[], float] = time.time
    ) -> None:
        self._desk = desk
        self._settings = settings
        self._now = now
        self._refusals: Counter[str] = Counter()

    # ---- from a site ----------------------------------------------------------------

    def receive(self, notice: wire.ErasureNotice, member: Member) -> ErasureRecord | None:
        """Take in a request a site reports; return its record if it is new and accepted."""
        desk, site = self._desk, member.site
        known = desk.book.find(notice.request_id)
        if known is not None and known.site == site and known.filed_by == "operator":
            return None  # the site's own entry of what the operator filed for it
        try:
            if known is None:
                self._check(notice, member)
            record, new = desk.book.file(notice, site, **desk.now())
        except DuplicateRequestError as error:
            self.refuse(site, notice.request_id, str(error))
            return None
        except _Refused as error:
            self._refuse_new(notice, site, str(error))
            return None
        return record if new else None

    def _check(self, notice: wire.ErasureNotice, member: Member) -> None:
        limits, now = self._settings, self._now()
        if limits.require_authentication and not member.authenticated:
            raise _Refused("the node is not authenticated; register it and file the request anew")
        if notice.filed_at > now + limits.clock_skew:
            raise _Refused(
                f"it is dated {notice.filed_at - now:.0f} s in the future; set the site's clock"
            )
        if now - notice.filed_at > limits.lifetime:
            days = (now - notice.filed_at) / _DAY
            raise _Refused(f"it expired: it was filed {days:.0f} days ago; file it anew")
        opened = sum(record.open for record in self._desk.book.of_site(member.site))
        if opened >= limits.max_open:
            raise _Refused(f"the site has {opened} open requests already; file it anew later")

    def _refuse_new(self, notice: wire.ErasureNotice, site: str, why: str) -> None:
        if self.refuse(site, notice.request_id, why):
            record, _ = self._desk.book.file(notice, site, **self._desk.now())
            self._desk.move(record, State.REFUSED, why)

    def refuse(self, site: str, request_id: str, why: str) -> bool:
        """Record a refusal once, so many of a site; False for a repeated or excess one."""
        desk = self._desk
        told = desk.refused.setdefault(site, set())
        if request_id in told or len(told) >= _RECORDED_REFUSALS:
            return False
        told.add(request_id)
        desk.run.note("refused-request", site, f"{request_id}: {why}", level=WARNING)
        desk.book.say("refused", {"site": site, "request": request_id, "why": why})
        return True

    def withdraw(self, request_id: str, site: str) -> None:
        """Carry out a cancellation by the site's steward, as far as it is still possible."""
        desk = self._desk
        record = desk.book.find(request_id)
        if record is None:
            desk.unheard.setdefault(site, set()).add(request_id)
            return
        if record.site != site or record.state is State.CANCELLED:
            return
        try:
            desk.cancel(record, "cancelled by the site")
        except StateTransitionError as error:
            if request_id not in desk.kept:
                desk.kept.add(request_id)
                desk.run.note("not-cancelled", site, str(error))

    # ---- from the operator ----------------------------------------------------------

    def file_for(
        self,
        site: str,
        reason: str,
        *,
        request_id: str = "",
        method: str = "",
        known: frozenset[str] = frozenset(),
    ) -> ErasureRecord:
        """File a client-scope erasure for a site.

        Raises
        ------
        UnknownSiteError
            If the federation has no such site and ``known`` does not name it either.
        ErasureError
            If the reason is no code.
        """
        if reason not in wire.REASON_CODES:
            raise ErasureError(f"reason is {reason!r}; use one of {', '.join(wire.REASON_CODES)}")
        desk = self._desk
        if desk.run.roster.of_site(site) is None and site not in known:
            names = ", ".join(sorted({m.site for m in desk.run.roster.members}))
            raise UnknownSiteError(
                f"no site {site!r} in this federation; it has: {names or 'none yet'}"
            )
        notice = wire.ErasureNotice(
            request_id or str(uuid.uuid4()), "client", 1, "", reason, self._now()
        )
        record, _ = desk.book.file(notice, site, filed_by="operator", **desk.now())
        record.method = method
        # The loop takes the snapshot when it comes by; the site trains no more already.
        desk.refuse(site)
        return record

    def cancel_for(self, request_id: str) -> None:
        """Cancel a request the operator filed.

        Raises
        ------
        StateTransitionError
            If it is merged or closed, or a site filed it: only its steward takes it back.
        ErasureError
            If there is no such request.
        """
        record = self._desk.book.get(request_id)
        if record.filed_by == "site":
            raise StateTransitionError(
                f"request {request_id} was filed by {record.site}; only its steward can cancel it "
                "(flwr-afuic cancel, with the site's inbox)"
            )
        self._desk.cancel(record, "cancelled by the operator")

    def hear_cancellations(self, member: Member, info: dict[str, Any]) -> None:
        """Take in what the site's steward takes back, before anything else of the reply."""
        if wire.CANCEL in info:
            for request_id in wire.decode_ids(info[wire.CANCEL], wire.CANCEL):
                self.withdraw(request_id, member.site)

    def hear(self, member: Member, info: dict[str, Any]) -> list[ErasureRecord]:
        """Take in what a reply says of requests; return the records that are new."""
        self.hear_cancellations(member, info)
        if wire.PENDING not in info:
            return []
        notices = wire.decode_notices(info[wire.PENDING])
        return [r for r in (self.receive(n, member) for n in notices) if r is not None]


class _Refused(Exception):
    """Why a request is refused."""
