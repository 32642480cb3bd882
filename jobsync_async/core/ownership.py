"""What this worker holds, who here uses it, and what may be handed on.

Pure: no clock, no I/O, no event loop.

* A token is *owned* here from the moment its row was read. It is *revoking* once the row says that
  it is to go.
* Nothing new starts on a revoking token, except by a reader that was just told of it.
* A token is acknowledged, and so handed on, only when nobody here uses it: no user (an open claim)
  is entered, and no reader that was told of it has yet to come back.
* Each stay of a token here has a *grant*, with a number that is never used twice.
* A reading is taken in only if it continues what is known here.
* A worker that leads hands on by its plan what nobody here uses. Nothing starts on that from before
  the plan is written, and no reading from before that plan's version is taken in any more.
* One thread changes this; others may ask at any time what is owned. So a token that stays owned
  through a change never leaves `Ownership.grants` meanwhile, and each step of a change is one
  operation on a dictionary.

A token that was lost and came back has another grant, so what belonged to the first stay is not
taken for the second. Tokens that came together share one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID
from weakref import WeakSet

from jobsync_async.core.reader import Grant, Reader, in_both
from jobsync_async.core.rows import Alike, Snapshot, alike

U = TypeVar("U")

UNKNOWN = -1
"""The version before the first read, and after everything was lost: the next read must show all."""


class Revocation(NamedTuple):
    """A token that is to go. `version` is that of the revocation, None for one that this worker
    decided by itself."""

    grant: Grant
    version: int | None
    since: float


class Change(NamedTuple):
    """What one step did. `lost` tokens that came back in the same step are in `assigned` too."""

    assigned: frozenset[int] = frozenset()
    revoked: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.assigned or self.revoked or self.lost)


@dataclass(slots=True)
class _News:
    """What a reading has brought so far, and the grants of its new tokens, by epoch."""

    assigned: list[int] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    grants: dict[int, Grant] = field(default_factory=dict)


class Ownership(Generic[U]):
    """The state. `version` is that of the last snapshot applied, and none from before `not_before`
    is; `grants` has the tokens that work may start on, provided that the lease is valid (which is
    not known here)."""

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
        self._anew = False
        self.not_before: int = UNKNOWN

    # -- what the tables say -----------------------------------------------------------------------

    def apply(self, snapshot: Snapshot, now: float) -> Change | None:
        """Take in a snapshot. None, and nothing changed, when it is not a continuation of what is
        known here: it was read by another incarnation, or before everything was lost, or before a
        plan that hands tokens on was committed."""
        if (
            snapshot.incarnation != self.incarnation
            or snapshot.since != self.since
            or snapshot.version < self.not_before
        ):
            return None
        news = _News()
        for part in alike(snapshot.mine):
            self._hold(part, now, news)
        if self._anew:  # it shows all that are ours, and no others
            held = {*self.grants, *self.revoking}
            gone = held.difference(*(part.token_ids for part in alike(snapshot.mine)))
        else:  # of many, few are here
            gone = (self.grants.keys() & snapshot.others) | (self.revoking.keys() & snapshot.others)
        for token in gone:
            self._drop(token)
            news.lost.append(token)
        self.version, self._anew = snapshot.version, False
        return self._changed(news.assigned, news.revoked, news.lost)

    def _hold(self, part: Alike, now: float, news: _News) -> None:
        """Tokens that are alike are mostly in one state here, too. Then they are taken in at once,
        which is several times faster than one by one."""
        tokens = part.token_ids
        going = part.revoking or self._leaving
        if (
            not going
            and self.grants.keys().isdisjoint(tokens)
            and self.revoking.keys().isdisjoint(tokens)
        ):
            self.grants.update(dict.fromkeys(tokens, self._grant_of(part.epoch, news)))
            news.assigned += tokens
        elif going and (grant := self._one_grant(tokens)) is not None and grant.epoch == part.epoch:
            answers = part.version if part.revoking else None
            self._revoke(tokens, Revocation(grant, answers, now))
            news.revoked += tokens
        else:
            for token in tokens:
                self._hold_one(token, part, now, news)

    def _one_grant(self, tokens: Sequence[int]) -> Grant | None:
        """The grant of tokens that are all owned under the same one."""
        different = set(map(id, map(self.grants.get, tokens)))
        return self.grants.get(tokens[0]) if len(different) == 1 else None

    def _revoke(self, tokens: Iterable[int], revocation: Revocation) -> None:
        """These, which are owned, are to go."""
        self.revoking.update(dict.fromkeys(tokens, revocation))
        deque(map(self.grants.pop, tokens), maxlen=0)

    def _hold_one(self, token: int, part: Alike, now: float, news: _News) -> None:
        there = before = self.revoking.get(token)
        grant = before.grant if before else self.grants.get(token)
        # It went and came back between two reads.
        if grant is not None and grant.epoch != part.epoch:
            news.lost.append(token)
            grant = before = None
        was_owned = grant is not None and before is None
        if grant is None:
            grant = self._grant_of(part.epoch, news)
        if part.revoking or self._leaving:
            answers = part.version if part.revoking else None
            self.revoking[token] = Revocation(grant, answers, before.since if before else now)
            if there is None:
                self.grants.pop(token, None)
            if was_owned:
                news.revoked.append(token)
        else:  # new, or withdrawn before we let go: then it is simply ours again
            self.grants[token] = grant
            if there is not None:
                del self.revoking[token]
            if not was_owned:
                news.assigned.append(token)

    def _grant_of(self, epoch: int, news: _News) -> Grant:
        if epoch not in news.grants:
            self._last_grant += 1
            news.grants[epoch] = Grant(self._last_grant, epoch)
        return news.grants[epoch]

    def released(self, tokens: Iterable[int]) -> None:
        """These acknowledgements are committed: the tokens are others' now."""
        for token in tokens:
            if token in self.revoking:
                self._drop(token)

    def hand_on(self, tokens: Sequence[int], version: int, now: float) -> Change:
        """This worker leads, and is about to give tokens away by the plan of this version: those of
        the given ones that nobody here uses, which the change has as revoked. Nothing starts on
        them any more. Say `released` once all of that is committed, and `read_anew` when it is not
        known what was; else the next reading tells."""
        idle = set[int]() if self._leaving else self.grants.keys() & tokens
        idle -= self._in_use(idle)
        if idle:
            self.not_before = version
        by_grant: defaultdict[Grant, list[int]] = defaultdict(list)
        for token in idle:
            by_grant[self.grants[token]].append(token)
        for grant, some in by_grant.items():
            self._revoke(some, Revocation(grant, None, now))
        return self._changed((), idle, ())

    def read_anew(self) -> None:
        """What of the tokens is still here is not known: the next reading is to show all."""
        self._anew = True

    @property
    def since(self) -> int:
        """After which version the next reading is to show what changed."""
        return UNKNOWN if self._anew else self.version

    def begin(self, incarnation: UUID) -> None:
        """Continue under another incarnation. Everything must have been forgotten before."""
        assert not self.holds_anything(), "tokens of another incarnation are still held"
        self.incarnation = incarnation
        self.not_before = UNKNOWN

    def forget(self) -> Change:
        """Lose everything at once: the lease is over, or the worker was expired. The next snapshot
        must show all."""
        lost = [*self.grants, *self.revoking]
        self.grants.clear()
        self.revoking.clear()
        self.version, self._anew = UNKNOWN, False
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
        for token in self._users.keys() & tokens:
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
        """The reader is there, perhaps again: it holds what it is told of. What was to go while it
        was not there, and waits for nobody, may be others' by now."""
        if reader not in self._readers:
            going = self.revoking.keys()
            reader.missed(going - self._in_use(going))
            self._readers.add(reader)

    # -- what may go -------------------------------------------------------------------------------

    def releasable(self) -> list[tuple[int, int]]:
        """Tokens to acknowledge now, each with the version of the revocation that is answered."""
        in_use = self._in_use(self.revoking.keys())
        return [
            (token, revocation.version)
            for token, revocation in self.revoking.items()
            if revocation.version is not None and token not in in_use
        ]

    def busy(self) -> list[int]:
        """Revoked tokens that somebody here still uses, in order."""
        return sorted(self._in_use(self.revoking.keys()))

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

    def _in_use(self, tokens: Set[int]) -> set[int]:
        """Those of the tokens that somebody here has yet to let go of."""
        return in_both(self._users.keys(), tokens).union(
            *(reader.held(tokens) for reader in tuple(self._readers))
        )

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
