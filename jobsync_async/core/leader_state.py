"""The leader's picture of the cluster, and what must be written to make it right. Pure.

* A plan is made only when its inputs changed: the members, the pins, or a token that is not where
  the last plan wanted it.
* A token is assigned only if no live worker owns it. A live worker's token is revoked.
* A forming cluster gets no tokens before `minimum_nodes` workers are active. It forms until a live
  worker owns something.
* The picture takes each plan for true. Whoever cannot tell whether a plan was written begins with
  a new picture.

The picture is kept from one reading to the next, so that a reading brings only what changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import NamedTuple
from uuid import UUID

from jobsync_async.core.assignment import PlanNode, plan
from jobsync_async.core.distribution import GONE, PINS, Distribution, RebalanceReason
from jobsync_async.core.rows import NOBODY, ClusterRow, Event, Member, TokenGroup

UNKNOWN = -1


class TokenLocation(NamedTuple):
    """Where a token is: its owner's name and incarnation, and who is to have it next."""

    node: str | None
    incarnation: UUID | None
    next_node: str | None


class PinRow(NamedTuple):
    """A pin in force; `expires_in` seconds from when it was read, None for never."""

    task_id: str
    node_patterns: tuple[str, ...]
    expires_in: float | None


class Reading(NamedTuple):
    """What the leader read. `groups` are the tokens changed since the picture's version; `pins` is
    None if unchanged; `events` are what the history tells since the last plan was written, if that
    was asked for."""

    cluster: ClusterRow
    members: Sequence[Member]
    groups: Sequence[TokenGroup]
    pins: Sequence[PinRow] | None
    youngest: int
    events: Sequence[Event] = ()


class LeaderState:
    """The picture.

    Attributes:
        version: the cluster's version that it shows, -1 before the first reading.
        pin_version: the version of the pins that it knows.
        unmatched: pinned tokens that no live worker may have, with their patterns, by the last
            plan.
        next_expiry_in: seconds from the last reading of the pins until one of them expires.
    """

    def __init__(
        self, total_tokens: int, token_of: Callable[[Hashable], int], minimum_nodes: int = 1
    ) -> None:
        self.version = UNKNOWN
        self.pin_version = UNKNOWN
        self.members: dict[UUID, Member] = {}
        self.unmatched: Mapping[int, tuple[str, ...]] = {}
        self.next_expiry_in = float("inf")
        self._receivers: set[str] = set()
        self._token_of = token_of
        self._minimum_nodes = minimum_nodes
        # Tokens refer to their place by an index, so that a pass over all of them is a pass over
        # small numbers.
        self._places: list[TokenLocation | None] = [None]
        self._index: dict[TokenLocation, int] = {}
        self._where = [0] * total_tokens
        self._pins: dict[int, tuple[str, ...]] = {}
        self._planned: list[str | None] | None = None
        self._planned_members: dict[str, tuple[UUID, float, bool]] = {}
        self._pins_changed = False
        self._events: Sequence[Event] = ()
        self._astray = False
        self._youngest = 0
        self._planned_joined = 0

    # -- taking in ---------------------------------------------------------------------------------

    def update(self, reading: Reading) -> None:
        """Bring the picture up to date."""
        self.members = {member.incarnation: member for member in reading.members}
        self._receivers = {member.name for member in reading.members if member.active}
        self._youngest = reading.youngest
        self._planned_joined = reading.cluster.planned_joined
        self._events = reading.events
        if reading.pins is not None:
            self._update_pins(reading.pins)
            self.pin_version = reading.cluster.pin_version
        total = len(self._where)
        for group in reading.groups:
            token_ids = group.token_ids
            # In order; rows of a cluster of more tokens, before on these tables.
            if token_ids and token_ids[-1] >= total:
                token_ids = [token for token in token_ids if token < total]
            place = TokenLocation(group.node, group.incarnation, group.next_node)
            index = self._index.get(place)
            if index is None:
                index = self._index[place] = len(self._places)
                self._places.append(place)
            for token in token_ids:
                self._where[token] = index
            self._astray = self._astray or self._went_astray(place, token_ids)
        self.version = reading.cluster.version

    def _update_pins(self, pins: Iterable[PinRow]) -> None:
        by_token: dict[int, tuple[str, ...]] = {}
        for pin in pins:  # the oldest first: of two tasks on one token, the first pin stays
            by_token.setdefault(self._token_of(pin.task_id), pin.node_patterns)
        self._pins_changed = self._pins_changed or by_token != self._pins
        self._pins = by_token
        expiries = [pin.expires_in for pin in pins if pin.expires_in is not None]
        self.next_expiry_in = min(expiries, default=float("inf"))

    def _went_astray(self, place: TokenLocation, tokens: Iterable[int]) -> bool:
        if self._planned is None:
            return True
        if place.incarnation is not None and place.incarnation not in self.members:
            return True
        destination, planned = self._destination(place), self._planned
        return any(planned[token] != destination for token in tokens)

    def read_anew(self) -> None:
        """Let the next reading show everything, and compare it with the plan."""
        self.version = UNKNOWN

    def stale(self, version: int) -> bool:
        """Whether the cluster has gone on since the last reading, or a part of the picture is to be
        read anew."""
        return version > self.version or self.pin_version == UNKNOWN

    def forget_pins(self) -> None:
        """Read the pins again: one of them has expired."""
        self.pin_version = UNKNOWN

    def plan_again(self) -> None:
        """Some of what the last distribution wanted was not written, because a fence locked it:
        another is due."""
        self._astray = True

    @property
    def planned(self) -> Sequence[str | None]:
        """Each token's worker by the last distribution; empty before the first."""
        return self._planned or ()

    # -- judging -----------------------------------------------------------------------------------

    def rebalance_reason(self) -> RebalanceReason | None:
        """Whether a rebalance is due. None too while a forming cluster waits for more workers."""
        if self._forming():
            return None
        members = self._membership()
        before = self._counted_in()
        joined = sorted(
            name for name, now in members.items() if name not in before or before[name][0] != now[0]
        )
        gone = self._ways_gone({name: before[name][0] for name in before.keys() - members.keys()})
        changed = sorted(
            name for name in members.keys() & before.keys() if members[name][1:] != before[name][1:]
        )
        urgent = [part for way, names in gone.items() for part in _named(way, names)]
        urgent += _named("changed state", changed)
        if self._pins_changed:
            urgent.append("pins changed")
        if self._planned is None:
            urgent.insert(0, "first look")
        elif self._astray and not (urgent or joined):
            urgent.append("tokens astray")
        if not urgent and not joined and self._planned_joined >= self._youngest:
            return None
        if self._planned is None:
            reason = "first"
        else:
            found = (
                *gone.items(),
                ("state", changed),
                ("pins", self._pins_changed),
                ("joined", joined),
                ("astray", urgent),
            )
            reason = next((kind for kind, so in found if so), "joined")
        return RebalanceReason(
            (*urgent, *_named("joined", joined)),
            urgent=bool(urgent),
            reason=reason,
            causes=self._causes({*chain(joined, changed, *gone.values())}),
        )

    def _ways_gone(self, gone: Mapping[str, UUID]) -> dict[str, list[str]]:
        """In which ways they went, and who in each."""
        told = {event.incarnation: event.kind for event in self._events}
        ways: dict[str, list[str]] = {way: [] for way in GONE}
        for name in sorted(gone):
            way = told.get(gone[name], GONE[-1])
            ways[way if way in ways else GONE[-1]].append(name)
        return ways

    def _causes(self, concerned: Set[str]) -> tuple[int, ...]:
        """What happened to these workers, and to the pins if they are others. A new leader looks at
        all that has happened."""

        def counts(event: Event) -> bool:
            if self._planned is None:
                return True
            if event.kind in PINS:
                return self._pins_changed
            return event.kind != "took over" and event.node in concerned

        return tuple(event.id for event in self._events if counts(event))

    def _forming(self) -> bool:
        active = sum(member.active for member in self.members.values())
        return active < self._minimum_nodes and not any(
            place is not None and place.incarnation in self.members for place in self._used_places()
        )

    def _used_places(self) -> list[TokenLocation | None]:
        return [self._places[index] for index in set(self._where)]

    def _membership(self) -> dict[str, tuple[UUID, float, bool]]:
        return {
            member.name: (member.incarnation, member.weight, member.active)
            for member in self.members.values()
        }

    def _counted_in(self) -> dict[str, tuple[UUID, float, bool]]:
        """The workers of the last distribution. Before the first of this leader, the tables tell:
        who had joined by then, and who owned tokens."""
        if self._planned is not None:
            return self._planned_members
        members = self._membership()
        counted_in = {
            m.name: members[m.name] for m in self.members.values() if m.age <= self._planned_joined
        }
        for place in self._used_places():
            if (
                place is not None
                and place.node
                and place.incarnation
                and place.incarnation not in self.members
            ):
                _, weight, active = members.get(place.node, (None, 0.0, False))
                counted_in[place.node] = (place.incarnation, weight, active)
        return counted_in

    def _destination(self, place: TokenLocation | None) -> str | None:
        """The live worker that has the token and keeps it, or that is getting it; None for
        nobody."""
        owner = (
            self.members.get(place.incarnation) if place is not None and place.incarnation else None
        )
        if place is None or owner is None:
            return None
        if place.next_node in self._receivers:
            return place.next_node
        return owner.name if owner.active else None

    # -- deciding ----------------------------------------------------------------------------------

    def distribute(self) -> Distribution | None:
        """Plan anew and say what to write. None when a forming cluster waits. The picture then
        takes the plan for true."""
        need = self.rebalance_reason()
        if need is None:
            return None
        destinations = [self._destination(place) for place in self._places]
        # A restarted worker gets back what its old incarnation could not hand over (a fence held
        # it).
        for index, place in enumerate(self._places):
            if (
                place is not None
                and place.incarnation not in self.members
                and place.node in self._receivers
            ):
                destinations[index] = place.node
        current = [destinations[index] for index in self._where]
        nodes = [
            PlanNode(member.name, member.weight)
            for member in self.members.values()
            if member.active
        ]
        result = plan(nodes, current, self._pins)
        for name, tokens in result.gains:
            for token in tokens:
                current[token] = name
        members = self._membership()
        distribution = Distribution(
            reason="; ".join(need.reasons),
            nodes_before=len(self._counted_in()),
            nodes_after=len(members),
            planned_joined=self._youngest,
            causes=need.causes,
            kind=need.reason,
        )
        self._fill(distribution, destinations, result.gains)
        self._planned, self._planned_members = current, members
        self._astray = self._pins_changed = False
        # Where nobody takes tokens, as when the last worker leaves, no pin is to blame.
        self.unmatched = result.unmatched if nodes else {}
        return distribution

    def _fill(
        self,
        distribution: Distribution,
        destinations: Sequence[str | None],
        gains: Sequence[tuple[str | None, Sequence[int]]],
    ) -> None:
        for index, name, tokens in self._parts(destinations, gains):
            place = self._places[index]
            write = self._write_for(place, name)
            if write is not None:
                kind, receiver = write
                distribution.concerned |= (
                    {receiver} if place is None else {receiver, place.node, place.next_node}
                )
                giver = None if place is None else place.node
                distribution.write(kind, giver, receiver, tokens)
        distribution.first = len(distribution.create) == len(self._where)
        distribution.concerned &= {member.name for member in self.members.values()}

    def _parts(
        self, destinations: Sequence[str | None], gains: Sequence[tuple[str | None, Sequence[int]]]
    ) -> Iterator[tuple[int, str | None, Sequence[int]]]:
        """Tokens that may need a write, in parts that are at one place and wanted by one worker:
        what to write is the same."""
        used = set(self._where)
        for name, tokens in gains:
            # All are at one place before the first distribution, and where one worker has
            # everything.
            parts = {min(used): tokens} if len(used) == 1 else self._by_place(tokens)
            for index, alike in parts.items():
                yield index, name, alike
        # Tokens that stay where they are going need a write only when their place does, which few
        # places do.
        unsettled = {
            index
            for index in used
            if self._write_for(self._places[index], destinations[index]) is not None
        }
        if unsettled and sum(len(tokens) for _, tokens in gains) < len(self._where):
            moving = set(chain.from_iterable(tokens for _, tokens in gains))
            staying = [
                token
                for token, index in enumerate(self._where)
                if index in unsettled and token not in moving
            ]
            for index, alike in self._by_place(staying).items():
                yield index, destinations[index], alike

    def _by_place(self, tokens: Iterable[int]) -> Mapping[int, Sequence[int]]:
        alike: defaultdict[int, list[int]] = defaultdict(list)
        for token in tokens:
            alike[self._where[token]].append(token)
        return alike

    def _write_for(
        self, place: TokenLocation | None, wanted: str | None
    ) -> tuple[str, str | None] | None:
        """Which write brings a token from its place to the wanted worker: kind and receiver; None
        when it is settled."""
        if place is None:
            return "create", wanted
        owner = self.members.get(place.incarnation) if place.incarnation else None
        if owner is None:
            settled = place.incarnation is None and wanted is None
            return None if settled else ("assign", wanted)
        stays = wanted == owner.name and owner.active
        next_node = None if stays else (wanted or NOBODY)
        return None if place.next_node == next_node else ("revoke", next_node)


def _named(what: str, names: Sequence[str], most: int = 3) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:most])
    return [
        f"{shown} {what}" if len(names) <= most else f"{shown} and {len(names) - most} more {what}"
    ]
