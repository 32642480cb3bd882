"""What a rebalance writes, and why it is due. Pure.

* A token is created, assigned, given away or revoked by one distribution, in no two of these ways.
* A receiver is named once; the moves refer to it by its number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

from jobsync_async.core.rows import NOBODY, PART

GONE = ("expired", "died", "evicted", "left", "gone")
"""How a worker can have gone; the last one stands for what no row of the history tells."""
REASONS = ("first", *GONE, "state", "pins", "joined", "astray")
"""What a rebalance can be for: a new leader's first look, workers that are gone in one of these
ways, that changed their state or weight, or joined, changed pins, and tokens that are not where
they were planned to be. Of several, the one that comes first here."""
PINS = ("pinned", "unpinned")
CAUSES = (*GONE, "joined", "drained", "undrained", *PINS, "took over", "generation")
"""What in the history can be the cause of a rebalance."""


@dataclass(slots=True)
class Moves:
    """Tokens and their receivers, as two parallel lists; a receiver is a 1-based index into names,
    0 for none."""

    token_ids: list[int] = field(default_factory=list)
    receivers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token_ids)

    def add(self, receiver: int, token_ids: Sequence[int]) -> None:
        """These go to one receiver."""
        self.token_ids.extend(token_ids)
        self.receivers.extend(repeat(receiver, len(token_ids)))

    def parts(self) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """The same two lists in parts for one statement each, in order of tokens there."""
        for first in range(0, len(self), PART):
            part = slice(first, first + PART)
            moves = sorted(zip(self.token_ids[part], self.receivers[part], strict=True))
            yield [token for token, _ in moves], [receiver for _, receiver in moves]


@dataclass(slots=True)
class Distribution:
    """What one rebalance writes.

    Attributes:
        numbers: receivers by name; the moves refer to them by these numbers.
        create: tokens that have no row yet. assign: tokens that no live worker owns. given: tokens
            of this leader that it has let go of. revoke: tokens of live workers, with the receiver,
            `NOBODY`, or none when they stay after all.
        reason: why, for people. kind: the same as one of `REASONS`.
        nodes_before, nodes_after: workers at the last plan and at this one.
        planned_joined: workers up to this age are counted in.
        flows: how many tokens go from whom to whom, None for nobody. Whoever is gone is named too.
        first: whether no token had a row before.
        awaited: its version is taken even if nothing is to be written: somebody waits for it.
        concerned: names of workers that are to look at once: from whom a token goes, who is to get
            one, or no longer is.
    """

    reason: str
    nodes_before: int
    nodes_after: int
    planned_joined: int
    causes: Sequence[int] = ()
    kind: str = "joined"
    numbers: dict[str, int] = field(default_factory=dict)
    create: Moves = field(default_factory=Moves)
    assign: Moves = field(default_factory=Moves)
    given: Moves = field(default_factory=Moves)
    revoke: Moves = field(default_factory=Moves)
    flows: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    first: bool = False
    awaited: bool = False
    concerned: set[str | None] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        """The receivers, in the order of their numbers."""
        return list(self.numbers)

    def write(
        self, kind: str, giver: str | None, receiver: str | None, tokens: Sequence[int]
    ) -> None:
        """These are to be written in one way, which is named as the attribute for it."""
        number = 0
        if receiver is not None:
            number = self.numbers.setdefault(receiver, len(self.numbers) + 1)
        moves: Moves = getattr(self, kind)
        moves.add(number, tokens)
        if kind != "revoke" or receiver is not None:  # else they stay after all
            self.flows[giver, receiver or None] += len(tokens)

    def for_somebody(self) -> list[int]:
        """Tokens that are to be revoked for another worker."""
        nobody = {0, self.numbers.get(NOBODY, 0)}
        moves = zip(self.revoke.token_ids, self.revoke.receivers, strict=True)
        return [token for token, receiver in moves if receiver not in nobody]

    def hand_on(self, given: Set[int]) -> None:
        """Give these away at once, which were to be revoked: their owner has let go of them."""
        planned, self.revoke = self.revoke, Moves()
        for token, receiver in zip(planned.token_ids, planned.receivers, strict=True):
            moves = self.given if token in given else self.revoke
            moves.token_ids.append(token)
            moves.receivers.append(receiver)

    @property
    def moved(self) -> int:
        """Tokens that this writes."""
        return len(self.create) + len(self.assign) + len(self.given) + len(self.revoke)


def flows_told(
    flows: Counter[tuple[str | None, str | None]], most: int | None = None
) -> list[dict[str, Any]]:
    """From whom to whom tokens go, the largest flows first, as people and programs read it."""
    return [
        {"from": giver, "to": receiver, "tokens": tokens}
        for (giver, receiver), tokens in flows.most_common(most)
    ]


class RebalanceReason(NamedTuple):
    """Why a rebalance is due: for people, and as one of `REASONS`. `urgent` is False when nothing
    but joins asks for it, which may wait for more of them. `causes` are numbers of rows of the
    history."""

    reasons: tuple[str, ...]
    urgent: bool
    reason: str = "joined"
    causes: tuple[int, ...] = ()
