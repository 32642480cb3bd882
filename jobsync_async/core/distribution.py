"""What a rebalance writes, and why it is due. Pure.

* A token is created, assigned or revoked by one distribution, in no two of these ways.
* A receiver is named once; the moves refer to it by its number.
"""

from __future__ import annotations

from dataclasses import dataclass, field

REASONS = ("first", "expired", "left", "state", "pins", "joined", "astray")
"""What a rebalance can be for: a new leader's first look, workers that were expired, left, changed
their state or weight, or joined, changed pins, and tokens that are not where they were planned to
be. Of several, the one that comes first here."""


@dataclass(slots=True)
class Moves:
    """Tokens and their receivers, as two parallel lists; a receiver is a 1-based index into names,
    0 for none."""

    token_ids: list[int] = field(default_factory=list)
    receivers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True)
class Distribution:
    """What one rebalance writes.

    Attributes:
        names: receivers' names, which the moves refer to.
        create: tokens that have no row yet. assign: tokens that no live worker owns. revoke: tokens
            of live workers, with the receiver, `NOBODY`, or none when they stay after all.
        reason: why, for people. kind: the same as one of `REASONS`.
        nodes_before, nodes_after: workers at the last plan and at this one.
        planned_joined: workers up to this age are counted in.
        first: whether no token had a row before.
        concerned: names of workers that are to look at once: from whom a token goes, who is to get
            one, or no longer is.
    """

    reason: str
    nodes_before: int
    nodes_after: int
    planned_joined: int
    kind: str = "joined"
    names: list[str] = field(default_factory=list)
    create: Moves = field(default_factory=Moves)
    assign: Moves = field(default_factory=Moves)
    revoke: Moves = field(default_factory=Moves)
    first: bool = False
    concerned: set[str | None] = field(default_factory=set)

    @property
    def moved(self) -> int:
        """Tokens that this writes."""
        return len(self.create) + len(self.assign) + len(self.revoke)


@dataclass(frozen=True, slots=True)
class RebalanceReason:
    """Why a rebalance is due: for people, and as one of `REASONS`. `urgent` is False when nothing
    but joins asks for it, which may wait for more of them."""

    reasons: tuple[str, ...]
    urgent: bool
    reason: str = "joined"
