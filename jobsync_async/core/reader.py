"""What one consumer of changes was told, and what waits for it. Pure.

* What it has not yet seen is not queued: it is the difference between what it was told and what is
  true now.
* A token that it was told of waits for it until it comes back.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any, NamedTuple

from jobsync_async.types import TokenChange

if TYPE_CHECKING:
    from jobsync_async.core.ownership import Ownership


class Grant(NamedTuple):
    """One stay of tokens that came in one reading under one epoch, their fencing number."""

    number: int
    epoch: int


_NO_GRANT = Grant(0, 0)


class Reader:
    """One consumer's place in the changes: what it was told it owns, and what it was told to let go
    of.

    What it has not yet seen is not queued: it is the difference between what it was told and what
    is true now, computed when it asks. So a slow reader costs nothing, gets one merged change, and
    is not shown a token that came and went.
    """

    def __init__(self, ownership: Ownership[Any]) -> None:
        self._ownership = ownership
        self._told: dict[int, Grant] = {}
        self._letting_go: frozenset[int] = frozenset()
        self.started: bool = False

    def held(self, tokens: Set[int]) -> set[int]:
        """Those of the tokens that must wait for this reader."""
        return in_both(self._told.keys(), tokens) | in_both(self._letting_go, tokens)

    def lets_go_of(self, token: int) -> bool:
        """Whether its last item revoked the token, and it has not come back since."""
        return token in self._letting_go

    def missed(self, tokens: Set[int]) -> None:
        """These did not wait for it. If it was told of them, they are lost to it."""
        self._told.update(dict.fromkeys(in_both(self._told.keys(), tokens), _NO_GRANT))

    def come_back(self) -> bool:
        """The reader asks for its next item: it is done with what the last one revoked. True when
        there was something."""
        had = bool(self._letting_go)
        self._letting_go = frozenset()
        return had

    def next_change(self) -> TokenChange | None:
        """The next item, None when there is nothing new. The first one is a snapshot, whatever is
        in it."""
        ownership = self._ownership
        now, told = ownership.grants, self._told
        assigned = frozenset(token for token, _ in now.items() - told.items())
        revoked, lost = set[int](), set[int]()
        for token, grant in told.items() - now.items():
            revocation = ownership.revoking.get(token)
            still_here = revocation is not None and revocation.grant == grant
            (revoked if still_here else lost).add(token)
        if self.started and not (assigned or revoked or lost):
            return None
        self._told = dict(now)
        self._letting_go = frozenset(revoked)
        initial, self.started = not self.started, True
        return TokenChange(
            assigned,
            frozenset(revoked),
            frozenset(lost),
            ownership.owned,
            ownership.version,
            is_initial=initial,
        )


def in_both(some: Set[int], others: Set[int]) -> set[int]:
    """What is in both, in time that goes with the smaller of them."""
    few, many = sorted((some, others), key=len)
    return {token for token in few if token in many}
