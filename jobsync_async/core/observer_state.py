"""What somebody who only looks knows of the cluster, and what its readers were told. Pure.

* What a reader was told, added up, is what was so when it got its last item.
* Nothing is queued: a slow reader costs no more than a fast one, and gets one merged change.
* A look that does not continue the picture is not taken in. The next one must show everything.
* A worker whose row is gone owns nothing, whatever the tokens' rows still say.

What a reader has not seen yet is the difference between what it was told and what is so now. It is
computed when the reader asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple
from weakref import WeakSet

from jobsync_async.types import ClusterChange

UNKNOWN = -1
"""The version before the first look: the next one must show everything."""
_NOBODY = 0


class SeenWorker(NamedTuple):
    """A worker as a look shows it. `number` is its place by age, which no other start of any worker
    has."""

    number: int
    name: str
    address: str | None


@dataclass(frozen=True, slots=True)
class ClusterReading:
    """One atomic read.

    Attributes:
        since: tokens whose version is above this are shown; -1 shows all.
        version, term, generation: the cluster's at that moment.
        leader: name of the live leader.
        total_tokens, hash_function: the cluster's.
        workers: all of them, oldest first.
        tokens, owners: the tokens that changed, and beside each the number of its live owner, None
            for nobody.
        announced: the version that was announced last.
    """

    since: int
    version: int
    term: int
    generation: int
    leader: str | None
    total_tokens: int
    hash_function: str
    workers: Sequence[SeenWorker]
    tokens: Sequence[int]
    owners: Sequence[int | None]
    announced: int = -1


class ObserverState:
    """The picture, kept from look to look.

    Attributes:
        version: the cluster's version that it shows, -1 before the first look.
        looks: how many looks brought something new.
    """

    def __init__(self) -> None:
        self.version: int = UNKNOWN
        self.looks: int = 0
        self.term: int = 0
        self.leader: str | None = None
        self.workers: dict[int, SeenWorker] = {}
        self.owners: list[int] = []
        self._generation = 0
        self._readers: WeakSet[ObserverReader] = WeakSet()

    def update(self, look: ClusterReading) -> bool:
        """Bring the picture up to date. False when the look does not continue it, because commits
        were lost in between: forget it, and look at everything."""
        anew = look.since == UNKNOWN
        if not anew and (
            look.version < self.version
            or look.generation != self._generation
            or look.since != self.version
        ):
            self.version = UNKNOWN
            return False
        if anew:
            self._make_room(look.total_tokens)
        changed = self._place(look)
        workers = {worker.number: worker for worker in look.workers}
        gone = self.workers.keys() - workers.keys()
        if gone:
            changed.update(self._orphan(gone))
        news = anew or changed or workers != self.workers or look.version != self.version
        self.workers, self.version, self._generation = workers, look.version, look.generation
        self.term, self.leader = look.term, look.leader
        for reader in tuple(self._readers):
            reader.tokens_moved(changed)
        self.looks += bool(news)
        return True

    def reader(self) -> ObserverReader:
        """A new reader of changes, forgotten when nobody refers to it any more."""
        reader = ObserverReader(self)
        self._readers.add(reader)
        return reader

    def owner(self, token: int) -> str | None:
        """Name of the token's live owner; None for nobody."""
        worker = self.workers.get(self.owners[token])
        return None if worker is None else worker.name

    def _make_room(self, total_tokens: int) -> None:
        self.owners += [_NOBODY] * (total_tokens - len(self.owners))

    def _place(self, look: ClusterReading) -> dict[int, int]:
        """Put the tokens where the look says; those that moved, with the number of who had them
        before."""
        before: dict[int, int] = {}
        owners = self.owners
        for token, number in zip(look.tokens, look.owners, strict=True):
            now = number or _NOBODY
            if owners[token] != now:
                before[token] = owners[token]
                owners[token] = now
        return before

    def _orphan(self, gone: set[int]) -> dict[int, int]:
        """Tokens of workers whose rows are gone have no owner, whatever the tokens' own rows still
        say."""
        before = {token: number for token, number in enumerate(self.owners) if number in gone}
        for token in before:
            self.owners[token] = _NOBODY
        return before


class ObserverReader:
    """One reader's place: what it was told, where that differs from what is so now."""

    def __init__(self, state: ObserverState) -> None:
        self._state = state
        self._looks = -1
        self._workers: dict[int, SeenWorker] = {}
        self._told: dict[int, int] = {}

    def tokens_moved(self, changed: dict[int, int]) -> None:
        """These tokens moved; of each, who had it before is what the reader was told, unless it was
        told something older."""
        if self._looks >= 0:
            for token, before in changed.items():
                self._told.setdefault(token, before)

    def next_change(self) -> ClusterChange | None:
        """The next change, None when there is nothing new. The first one shows everything."""
        state = self._state
        if state.version == UNKNOWN or self._looks == state.looks:
            return None
        initial = self._looks < 0
        if initial:
            moved = {token: state.owner(token) for token in range(len(state.owners))}
        else:
            moved = {
                token: state.owner(token)
                for token, told in self._told.items()
                if state.owners[token] != told
            }
        came, went = (
            state.workers.keys() - self._workers.keys(),
            self._workers.keys() - state.workers.keys(),
        )
        change = ClusterChange(
            version=state.version,
            term=state.term,
            leader=state.leader,
            workers=MappingProxyType(
                {worker.name: worker.address for worker in state.workers.values()}
            ),
            joined=frozenset(state.workers[number].name for number in came),
            left=frozenset(self._workers[number].name for number in went),
            moved=MappingProxyType(moved),
            is_initial=initial,
        )
        self._looks, self._workers, self._told = state.looks, state.workers, {}
        return change
