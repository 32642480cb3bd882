"""Who runs what, and which ids nobody serves. Pure.

* Ids are unserved only on tokens of a worker that says what it runs, and does not run what they are
  for.
* They are told when that has been so for `GRACE_SEC`: once, and once more when it is over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from jobsync_async.types import NodeInfo, Runner

GRACE_SEC = 3.0
"""For so long ids may be without somebody who serves them before it is told: workers start one
after the other."""


class Idler(NamedTuple):
    """A worker that says what it runs, and does not run all that is asked about."""

    name: str
    incarnation: UUID
    runs: frozenset[Runner]


class Unserved(NamedTuple):
    """Ids that nobody serves: so many of a runner are on tokens of a worker that does not run it,
    but what is `instead`."""

    node: str
    runner: Runner
    ids: int
    instead: frozenset[Runner] = frozenset()


def unserved(
    wanted: Mapping[Runner, Mapping[int, int]],
    idlers: Iterable[Idler],
    tokens: Mapping[UUID, Collection[int]],
) -> list[Unserved]:
    """Where ids are that nobody serves.

    Args:
        wanted: for each runner, on which tokens it has ids, and how many.
        tokens: those of each of the idlers.
    """
    found = []
    for idler in idlers:
        theirs = tokens.get(idler.incarnation, ())
        for runner, ids_on in wanted.items():
            ids = 0 if runner in idler.runs else sum(ids_on.get(token, 0) for token in theirs)
            if ids:
                found.append(Unserved(idler.name, runner, ids, idler.runs))
    return found


class Noticed:
    """What has been so for longer than `GRACE_SEC`, and what was told of it."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, Runner], float] = {}
        self._told: dict[tuple[str, Runner], Unserved] = {}

    @property
    def told(self) -> tuple[Unserved, ...]:
        """What has been told and is still so."""
        return tuple(self._told.values())

    @property
    def due_at(self) -> float:
        """When the next of what is not told yet is to be; infinity for never."""
        waiting = (since for key, since in self._since.items() if key not in self._told)
        return min(waiting, default=float("inf")) + GRACE_SEC

    def compare(
        self, found: Iterable[Unserved], now: float
    ) -> tuple[list[Unserved], list[Unserved]]:
        """What is to be told now, and what is not so any more of what was told."""
        present = {(one.node, one.runner): one for one in found}
        self._since = {key: self._since.get(key, now) for key in present}
        over = [one for key, one in self._told.items() if key not in present]
        ripe = {key: one for key, one in present.items() if now - self._since[key] >= GRACE_SEC}
        new = [one for key, one in ripe.items() if key not in self._told]
        self._told = ripe
        return new, over


class Gap(NamedTuple):
    """A runner that a worker with tokens does not run, while others do."""

    runner: Runner
    node: str
    tokens: int
    run_by: tuple[str, ...]


def gaps(nodes: Sequence[NodeInfo]) -> list[Gap]:
    """Where ids may be that nobody serves, by what the workers say of themselves. Who does not say
    is left out."""
    run_by = defaultdict[Runner, list[str]](list)
    for node in nodes:
        for runner in node.runs or ():
            run_by[runner].append(node.name)
    return [
        Gap(runner, node.name, node.tokens, tuple(names))
        for runner, names in run_by.items()
        for node in nodes
        if node.tokens and node.runs is not None and runner not in node.runs
    ]
