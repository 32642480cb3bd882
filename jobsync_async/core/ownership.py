"""What this worker holds, who here uses it, and what may be handed on.

Pure: no clock, no I/O, no event loop.

* A token is *owned* here from the moment its row was read. It is *revoking* once the row says that
  it is to go.
* Nothing new starts on a revoking token, except by a reader that was just told of it.
* A token is acknowledged, and so handed on, only when nobody here uses it: no user (an open claim)
  is entered, and no reader that was told of it has yet to come back.
* Each stay of a token here has a *grant*, with a number that is never used twice.
* A reading is taken in only if it continues what is known here.
* One thread changes this; others may ask at any time what is owned. So a token that stays owned
  through a change never leaves `Ownership.grants` meanwhile, and each step of a change is one
  operation on a dictionary.

A token that was lost and came back has another grant, so what belonged to the first stay is not
taken for the second. Tokens that came together share one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID
from weakref import WeakSet

from jobsync_async.core.rows import Snapshot
from jobsync_async.types import TokenChange

U = TypeVar("U")

UNKNOWN = -1
"""The version before the first read, and after everything was lost: the next read must show all."""


class Grant(NamedTuple):
    """One stay of tokens that came in one reading under one epoch, their fencing number."""

    number: int
    epoch: int


class Revocation(NamedTuple):
    """A token that is to go. `version` is that of the revocation, None for one that this worker
    decided by itself."""

    grant: Grant
    version: int | None
    since: float


@dataclass(frozen=True, slots=True)
class Change:
    """What one step did. `lost` tokens that came back in the same step are in `assigned` too."""

    assigned: frozenset[int] = frozenset()
    revoked: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.assigned or self.revoked or self.lost)


class Ownership(Generic[U]):
    """The state. `version` is that of the last snapshot applied; `grants` has the tokens that work
    may start on, provided that the lease is valid (which is not known here)."""

    def __init__(self, incarnation: UUID) -> None:
        self.incarnation: UUID = incarnation
        self.version: int = UNKNOWN
        self.grants: dict[int, Grant] = {}
        self.revoking: dict[int, Revocation] = {}
        self._changes = 0
        self._owned: tuple[int, frozenset[int]] = (0, frozenset())
        self._users: dict[int, set[U]] = {}
        self._readers: WeakSet[Reader] = WeakSet()
        self._last_grant = 0
        self._leaving = False

    # -- what the tables say -----------------------------------------------------------------------

    def apply(self, snapshot: Snapshot, now: float) -> Change | None:
        """Take in a snapshot. None, and nothing changed, when it is not a continuation of what is
        known here: it was read by another incarnation, or before everything was lost."""
        if snapshot.incarnation != self.incarnation or snapshot.since != self.version:
            return None
        fresh: dict[int, Grant] = {}
        assigned, revoked, lost = list[int](), list[int](), list[int]()
        for token, epoch, version, going in snapshot.mine:
            there = before = self.revoking.get(token)
            grant = before.grant if before else self.grants.get(token)
            # It went and came back between two reads.
            if grant is not None and grant.epoch != epoch:
                lost.append(token)
                grant = before = None
            was_owned = grant is not None and before is None
            if grant is None:
                grant = fresh.get(epoch) or fresh.setdefault(epoch, self._new_grant(epoch))
            if going or self._leaving:
                answers = version if going else None
                self.revoking[token] = Revocation(grant, answers, before.since if before else now)
                if there is None:
                    self.grants.pop(token, None)
                if was_owned:
                    revoked.append(token)
            else:  # new, or withdrawn before we let go: then it is simply ours again
                self.grants[token] = grant
                if there is not None:
                    del self.revoking[token]
                if not was_owned:
                    assigned.append(token)
        # Of many, few are here.
        for token in (self.grants.keys() & snapshot.others) | (
            self.revoking.keys() & snapshot.others
        ):
            self._drop(token)
            lost.append(token)
        self.version = snapshot.version
        return self._changed(assigned, revoked, lost)

    def released(self, tokens: Iterable[int]) -> None:
        """These acknowledgements are committed: the tokens are others' now."""
        for token in tokens:
            if token in self.revoking:
                self._drop(token)

    def begin(self, incarnation: UUID) -> None:
        """Continue under another incarnation. Everything must have been forgotten before."""
        assert not self.holds_anything(), "tokens of another incarnation are still held"
        self.incarnation = incarnation

    def forget(self) -> Change:
        """Lose everything at once: the lease is over, or the worker was expired. The next snapshot
        must show all."""
        lost = [*self.grants, *self.revoking]
        self.grants.clear()
        self.revoking.clear()
        self.version = UNKNOWN
        return self._changed((), (), lost)

    def let_go(self, now: float) -> Change:
        """Stop starting work on anything from now on, as if all were revoked; what the leader
        revokes too is acknowledged. For a worker that leaves."""
        self._leaving = True
        going = list(self.grants)
        for token in going:
            self.revoking[token] = Revocation(self.grants.pop(token), None, now)
        return self._changed((), going, ())

    @property
    def leaving(self) -> bool:
        """Whether the worker leaves: nothing new starts here any more."""
        return self._leaving

    # -- who uses it -------------------------------------------------------------------------------

    def enter(self, token: int, user: U, *, revoked_too: bool = False) -> int | None:
        """`user` begins to use an owned token, or one that is on its way out; its epoch, or None
        when it is not here. There is no await between the check and the registration, so no
        revocation can come between them."""
        grant = self._grant(token) if revoked_too else self.grants.get(token)
        if grant is None:
            return None
        self._users.setdefault(token, set()).add(user)
        return grant.epoch

    def leave(self, token: int, user: U) -> bool:
        """`user` is done with the token. True when that may let it be handed on."""
        users = self._users[token]
        users.remove(user)
        if users:
            return False
        del self._users[token]
        return token in self.revoking

    def users(self) -> Iterator[U]:
        """Everybody who uses a token, in no particular order. Safe to ask from another thread."""
        for users in tuple(self._users.values()):
            yield from tuple(users)

    def users_of(self, tokens: Iterable[int]) -> Iterator[tuple[int, U]]:
        """Pairs of token and user, in no particular order. Safe to leave while iterating."""
        for token in tokens:
            for user in tuple(self._users.get(token, ())):
                yield token, user

    def reader(self) -> Reader:
        """A new consumer of changes; forgotten when nobody refers to it any more."""
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    def forget_reader(self, reader: Reader) -> None:
        """The reader is gone; it holds nothing up any more."""
        self._readers.discard(reader)

    def readmit(self, reader: Reader) -> None:
        """The reader is there, perhaps again: it holds what it is told of."""
        self._readers.add(reader)

    # -- what may go -------------------------------------------------------------------------------

    def releasable(self) -> list[tuple[int, int]]:
        """Tokens to acknowledge now, each with the version of the revocation that is answered."""
        answered = ((token, revocation.version) for token, revocation in self.revoking.items())
        asked = {token: version for token, version in answered if version is not None}
        in_use = self._in_use(asked)
        return [(token, version) for token, version in asked.items() if token not in in_use]

    def busy(self) -> list[int]:
        """Revoked tokens that somebody here still uses, in order."""
        return sorted(self._in_use(self.revoking))

    def holds_anything(self) -> bool:
        """Whether any token is this worker's by what was last read, in use or not."""
        return bool(self.grants or self.revoking)

    @property
    def owned(self) -> frozenset[int]:
        """The tokens that work may start on, as a set of its own: made when somebody asks, once per
        change."""
        # Other threads ask, too. A set that one of them makes is kept for others only under the
        # number of the change after which it was begun: if more has changed meanwhile, nobody asks
        # for that number any more.
        number = self._changes
        made_after, owned = self._owned
        if made_after != number:
            owned = frozenset(self.grants)
            self._owned = (number, owned)
        return owned

    @property
    def known(self) -> bool:
        """False before the first reading, and after everything was lost."""
        return self.version != UNKNOWN

    def epoch(self, token: int) -> int | None:
        """The fencing number under which the token is held, None when it is not."""
        grant = self._grant(token)
        return None if grant is None else grant.epoch

    # -- inside ------------------------------------------------------------------------------------

    def _in_use(self, tokens: Collection[int]) -> set[int]:
        """Those of the tokens that somebody here has yet to let go of."""
        # Walking a set of weak references is slow, and this is for thousands of tokens.
        readers = tuple(self._readers)
        return {
            token
            for token in tokens
            if token in self._users or any(reader.holds(token) for reader in readers)
        }

    def _new_grant(self, epoch: int) -> Grant:
        self._last_grant += 1
        return Grant(self._last_grant, epoch)

    def _grant(self, token: int) -> Grant | None:
        """Under which grant the token is held, in use or on its way out; None when it is not."""
        revocation = self.revoking.get(token)
        return self.grants.get(token) if revocation is None else revocation.grant

    def _drop(self, token: int) -> None:
        self.grants.pop(token, None)
        self.revoking.pop(token, None)

    def _changed(
        self, assigned: Iterable[int], revoked: Iterable[int], lost: Iterable[int]
    ) -> Change:
        change = Change(frozenset(assigned), frozenset(revoked), frozenset(lost))
        if change:
            self._changes += 1
        return change


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

    def holds(self, token: int) -> bool:
        """Whether the token must wait for this reader."""
        return token in self._told or token in self._letting_go

    def lets_go_of(self, token: int) -> bool:
        """Whether its last item revoked the token, and it has not come back since."""
        return token in self._letting_go

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
