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
    scores : bool
        Whether its client scores the model on erased data along with a training task.
    place : int
        How many members the roster knew before it.
    """

    node_id: int
    site: str
    authenticated: bool = False
    connected: bool = True
    protocol: int | None = None
    returns_delta: bool = False
    tasks_sent: int = 0
    failures: int = 0
    last_failure: str = ""
    not_before: float = 0.0
    due_evaluation: int = 0
    trains_next: bool = False
    holds_lock: bool = False
    scores: bool = False
    last_version: int = field(default=-1)
    place: int = 0
    idle: dict[int, Member] = field(default_factory=dict, repr=False, compare=False)
    """Of its roster: members with no message in flight, by node id."""

    @property
    def busy(self) -> bool:
        """Whether it has a message in flight."""
        return self.node_id not in self.idle

    @busy.setter
    def busy(self, busy: bool) -> None:
        if busy:
            self.idle.pop(self.node_id, None)
        else:
            self.idle[self.node_id] = self

    def __post_init__(self) -> None:
        self.busy = False


class Roster:
    """The members of a federation.

    What the loop asks after every event (who is free, who has which name) is looked up, not
    searched for: it costs the same with ten members and with ten thousand.

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
        self._idle: dict[int, Member] = {}
        self._sites: dict[str, dict[int, Member]] = {}
        self._left_alone: dict[int, Member] = {}
        self._registered: set[str] = set()
        self._connected = 0
        self.changes = 0

    def refresh(self, nodes: Iterable[tuple[int, str]]) -> list[Member]:
        """Take in who is connected now, as (node id, registered name or ""); return newcomers."""
        present = dict(nodes)
        for member in self._members.values():
            connected = member.node_id in present
            self.changes += connected != member.connected
            member.connected = connected
        newcomers = []
        for node_id, name in present.items():
            if node_id not in self._members:
                member = Member(
                    node_id, name or f"node-{node_id}", authenticated=bool(name),
                    place=len(self._members), idle=self._idle,
                )  # fmt: skip
                self._members[node_id] = member
                self._sites.setdefault(member.site, {})[node_id] = member
                if member.authenticated:
                    self._registered.add(member.site)
                newcomers.append(member)
        self.changes += len(newcomers)
        self._connected = sum(member.connected for member in self._members.values())
        return newcomers

    @property
    def connected(self) -> int:
        """How many members' nodes are connected."""
        return self._connected

    @property
    def members(self) -> list[Member]:
        """Every node ever seen, in order of appearance."""
        return list(self._members.values())

    def of_node(self, node_id: int) -> Member:
        """Return the member at a node id."""
        return self._members[node_id]

    def of_site(self, site: str) -> Member | None:
        """Return the member of a site, the connected and newest one where there are several."""
        newest_first = reversed(self.all_of_site(site))
        return max(newest_first, key=lambda member: member.connected, default=None)

    def all_of_site(self, site: str) -> list[Member]:
        """Return every node that goes by a site's name, in order of appearance."""
        # A copy: other threads ask, too. By place, for a node may have come to its name late.
        found = list(self._sites.get(site, {}).values())
        return found if len(found) < 2 else sorted(found, key=lambda member: member.place)

    def identify(self, member: Member, claimed: str) -> bool:
        """Take a client's word for its site's name, unless the node is authenticated.

        Returns
        -------
        bool
            False if the name is another node's, authenticated one: then it is not taken.
        """
        if not claimed or member.authenticated:
            return True
        if claimed in self._registered:
            return False
        if claimed != member.site:
            self._sites[member.site].pop(member.node_id)
            self._sites.setdefault(claimed, {})[member.node_id] = member
            member.site = claimed
            self.changes += 1
        return True

    def free(self) -> list[Member]:
        """Members that may be sent a message now, in order of site name."""
        now = self._clock.now()
        idle = [m for m in self._idle.values() if m.connected and m.not_before <= now]
        return sorted(idle, key=lambda member: (member.site, member.node_id))

    def all_free_of_site(self, site: str) -> list[Member]:
        """Members of a site that may be sent a message now, in order of node id."""
        found = [member for member in self.all_of_site(site) if self.is_free(member)]
        return sorted(found, key=lambda member: member.node_id)

    def free_of_site(self, site: str) -> Member | None:
        """Return a member of a site that may be sent a message now, or None."""
        return next(iter(self.all_free_of_site(site)), None)

    def is_free(self, member: Member) -> bool:
        """Whether a member may be sent a message now."""
        return member.connected and not member.busy and member.not_before <= self._clock.now()

    def next_event(self) -> float | None:
        """When the next backoff ends, or None."""
        now = self._clock.now()
        for node_id, member in list(self._left_alone.items()):
            if member.not_before <= now:
                del self._left_alone[node_id]
        ends = [m.not_before for m in self._left_alone.values() if m.connected]
        return min(ends, default=None)

    def healthy(self, member: Member) -> bool:
        """Whether the member is connected and not failing."""
        return member.connected and member.failures < self._max_failures

    def succeeded(self, member: Member) -> None:
        """Note a usable reply."""
        self.changes += member.failures >= self._max_failures
        member.failures = 0
        member.not_before = 0.0

    def failed(self, member: Member, reason: str) -> float:
        """Note a failed task; return the seconds until the member is tried again."""
        member.failures += 1
        member.last_failure = reason
        # The exponent is bounded: a site that fails for weeks must not overflow a float.
        delay = min(self._max_backoff, self._backoff * 2.0 ** min(member.failures - 1, 30))
        member.not_before = self._clock.now() + delay
        self._left_alone[member.node_id] = member
        self.changes += member.failures == self._max_failures
        return delay
