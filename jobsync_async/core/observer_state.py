"""What somebody who only looks knows of the cluster, and what each of its readers has been told. Pure.

A reader is not queued anything. What it has not seen yet is the difference between what it was told and what is so now,
computed when it asks: a slow reader costs no more than a fast one and gets one merged change.
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


class Seen(NamedTuple):
    """A worker as a look shows it. `number` is its place by age, which no other start of any worker has."""

    number: int
    name: str
    address: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """One atomic read.

    Attributes:
        since: tokens whose version is above this are shown; -1 shows all.
        version, term, generation: the cluster's at that moment.
        leader: name of the live leader.
        total_tokens, hash_function: the cluster's.
        workers: all of them, oldest first.
        tokens, owners: the tokens that changed, and beside each the number of its live owner, None for nobody.
        announced: the version that was announced last.
    """

    since: int
    version: int
    term: int
    generation: int
    leader: str | None
    total_tokens: int
    hash_function: str
    workers: Sequence[Seen]
    tokens: Sequence[int]
    owners: Sequence[int | None]
    announced: int = -1


class View:
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
        self.workers: dict[int, Seen] = {}
        self.owners: list[int] = []
        self._generation = 0
        self._readers: WeakSet[ViewReader] = WeakSet()

    def take(self, look: Look) -> bool:
        """Bring the picture up to date. False when the look does not continue it, because commits were lost in between:
        forget it, and look at everything."""
        anew = look.since == UNKNOWN
        if not anew and (look.version < self.version or look.generation != self._generation or look.since != self.version):
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
            reader.note(changed)
        self.looks += bool(news)
        return True

    def reader(self) -> ViewReader:
        """A new reader of changes, forgotten when nobody refers to it any more."""
        reader = ViewReader(self)
        self._readers.add(reader)
        return reader

    def owner(self, token: int) -> str | None:
        """Name of the token's live owner; None for nobody."""
        worker = self.workers.get(self.owners[token])
        return None if worker is None else worker.name

    def _make_room(self, total_tokens: int) -> None:
        self.owners += [_NOBODY] * (total_tokens - len(self.owners))

    def _place(self, look: Look) -> dict[int, int]:
        """Put the tokens where the look says; those that moved, with the number of who had them before."""
        before: dict[int, int] = {}
        owners = self.owners
        for token, number in zip(look.tokens, look.owners, strict=True):
            now = number or _NOBODY
            if owners[token] != now:
                before[token] = owners[token]
                owners[token] = now
        return before

    def _orphan(self, gone: set[int]) -> dict[int, int]:
        """Tokens of workers whose rows are gone are nobody's, whatever the tokens' own rows still say."""
        before = {token: number for token, number in enumerate(self.owners) if number in gone}
        for token in before:
            self.owners[token] = _NOBODY
        return before


class ViewReader:
    """One reader's place: what it was told, where that differs from what is so now."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._looks = -1
        self._workers: dict[int, Seen] = {}
        self._told: dict[int, int] = {}

    def note(self, changed: dict[int, int]) -> None:
        """These tokens moved; of each, who had it before is what the reader was told, unless it was told something older."""
        if self._looks >= 0:
            for token, before in changed.items():
                self._told.setdefault(token, before)

    def take(self) -> ClusterChange | None:
        """The next change, None when there is nothing new. The first one shows everything."""
        view = self._view
        if view.version == UNKNOWN or self._looks == view.looks:
            return None
        initial = self._looks < 0
        if initial:
            moved = {token: view.owner(token) for token in range(len(view.owners))}
        else:
            moved = {token: view.owner(token) for token, told in self._told.items() if view.owners[token] != told}
        came, went = view.workers.keys() - self._workers.keys(), self._workers.keys() - view.workers.keys()
        change = ClusterChange(
            version=view.version,
            term=view.term,
            leader=view.leader,
            workers=MappingProxyType({worker.name: worker.address for worker in view.workers.values()}),
            joined=frozenset(view.workers[number].name for number in came),
            left=frozenset(self._workers[number].name for number in went),
            moved=MappingProxyType(moved),
            is_initial=initial,
        )
        self._looks, self._workers, self._told = view.looks, view.workers, {}
        return change
