"""Who takes part: identity, availability, failures and backoff of every site."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr_afuic.federation.clock import Clock


@dataclass
class Member:
    """What the server knows of one connected node.

    Attributes
    ----------
    node_id : int
        Flower's address of the node; not an identity, it changes when a node restarts.
    site : str
        Identity of the site: the registered name with node authentication, else what the
        client says of itself (its partition id), else ``node-<id>`` until it says so.
    authenticated : bool
        Whether ``site`` is a registered name; then nothing the client says changes it.
    protocol : int or None
        Version of the erasure protocol its client speaks; None for a plain client, or
        while unknown.
    due_evaluation : int
        Round whose evaluation it is still to be asked for, or 0.
    trains_next : bool
        Whether its last task was an evaluation, so that training has its turn.
    holds_lock : bool
        Whether its client takes a forget lock along with a training task.
    """

    node_id: int
    site: str
    authenticated: bool = False
    connected: bool = True
    protocol: int | None = None
    returns_delta: bool = False
    busy: bool = False
    tasks_sent: int = 0
    failures: int = 0
    last_failure: str = ""
    not_before: float = 0.0
    due_evaluation: int = 0
    trains_next: bool = False
    holds_lock: bool = False
    last_version: int = field(default=-1)


class Roster:
    """The members of a federation.

    Parameters
    ----------
    clock : Clock
        For backoff.
    backoff, max_backoff : float
        Seconds a member is left alone after its first failure, doubled with each further
        one, up to the maximum.
    max_failures : int
        After this many failures in a row a member counts as failing: it is tried again
        at the longest backoff, but rounds no longer wait for it.
    """

    def __init__(
        self, clock: Clock, *, backoff: float, max_backoff: float, max_failures: int
    ) -> None:
        self._clock = clock
        self._backoff = backoff
        self._max_backoff = max_backoff
        self._max_failures = max_failures
        self._members: dict[int, Member] = {}

    def refresh(self, nodes: Iterable[tuple[int, str]]) -> list[Member]:
        """Take in who is connected now, as (node id, registered name or ""); return newcomers."""
        present = dict(nodes)
        for member in self._members.values():
            member.connected = member.node_id in present
        newcomers = []
        for node_id, name in present.items():
            if node_id not in self._members:
                member = Member(node_id, name or f"node-{node_id}", authenticated=bool(name))
                self._members[node_id] = member
                newcomers.append(member)
        return newcomers

    @property
    def members(self) -> list[Member]:
        """Every node ever seen, in order of appearance."""
        return list(self._members.values())

    def of_node(self, node_id: int) -> Member:
        """Return the member at a node id."""
        return self._members[node_id]

    def of_site(self, site: str) -> Member | None:
        """Return the member of a site, the connected and newest one where there are several."""
        newest_first = reversed(self.members)  # a copy: other threads ask, too
        found = [member for member in newest_first if member.site == site]
        return max(found, key=lambda member: member.connected, default=None)

    def identify(self, member: Member, claimed: str) -> bool:
        """Take a client's word for its site's name, unless the node is authenticated.

        Returns
        -------
        bool
            False if the name is another node's, authenticated one: then it is not taken.
        """
        if not claimed or member.authenticated:
            return True
        if any(other.authenticated and other.site == claimed for other in self.members):
            return False
        member.site = claimed
        return True

    def free(self) -> list[Member]:
        """Members that may be sent a message now, in order of site name."""
        now = self._clock.now()
        ready = [m for m in self._members.values() if m.connected and m.not_before <= now]
        idle = [member for member in ready if not member.busy]
        return sorted(idle, key=lambda member: (member.site, member.node_id))

    def next_event(self) -> float | None:
        """When the next backoff ends, or None."""
        now = self._clock.now()
        ends = [m.not_before for m in self._members.values() if m.connected and m.not_before > now]
        return min(ends, default=None)

    def healthy(self, member: Member) -> bool:
        """Whether the member is connected and not failing."""
        return member.connected and member.failures < self._max_failures

    def succeeded(self, member: Member) -> None:
        """Note a usable reply."""
        member.failures = 0
        member.not_before = 0.0

    def failed(self, member: Member, reason: str) -> float:
        """Note a failed task; return the seconds until the member is tried again."""
        member.failures += 1
        member.last_failure = reason
        # The exponent is bounded: a site that fails for weeks must not overflow a float.
        delay = min(self._max_backoff, self._backoff * 2.0 ** min(member.failures - 1, 30))
        member.not_before = self._clock.now() + delay
        return delay
