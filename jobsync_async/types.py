"""The values that users see: tasks, changes of ownership, nodes, pins, results. Plain and
frozen."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import AsyncIterable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import GenericAlias
from typing import Any, Generic

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:  # as psycopg does, so nothing more is loaded
    from typing_extensions import TypeVar

_MOST_SHOWN = 8

FIRST_VERSION = "0.1.0"
"""Of the library: its rows do not say which version they are of."""

Id = TypeVar("Id", bound=Hashable, default=Any)
"""The type of a call's ids. Where nothing is said of it, as by a bare `Claim`, it is `Any`."""

Id_co = TypeVar("Id_co", bound=Hashable, covariant=True, default=Any)
"""The same, of what is read and never written: who takes a ``Claim[object]`` takes all claims."""


@dataclass(frozen=True, slots=True, order=True)
class Task(Generic[Id_co]):
    """A unit of work. Compared, ordered and hashed by `id` alone.

    Attributes:
        id: any hashable value with a stable ``str()``, which is what is hashed and stored: ``1``
            and ``"1"`` are one task.
        name: a label for people.
    """

    id: Id_co
    name: str | None = field(default=None, compare=False)

    def __class_getitem__(cls, ids: Any) -> GenericAlias:
        # Not as `Generic` does it: then ``Task[int](7)`` fails before Python 3.13, for the alias
        # sets an attribute, which frozen slots refuse.
        return GenericAlias(cls, ids)

    def __repr__(self) -> str:
        return (
            f"Task({self.id!r})" if self.name is None else f"Task({self.id!r}, name={self.name!r})"
        )


TaskOrId = Task[Any] | Hashable
"""What tasks are named by: a `Task`, or its id alone."""

TasksOrIds = Iterable[Task[Id]] | Iterable[Id]
"""Several of them, where it matters what type the ids have."""

StreamOfIds = AsyncIterable[Task[Id]] | AsyncIterable[Id]
"""The same, as a stream: they come one after the other, and may be too many to keep."""


def task_id_of(task: Task[Id] | Id) -> Id:
    """The id of a `Task`, or the value itself."""
    return task.id if isinstance(task, Task) else task


def _in_short(event: TokenChange | RebalanceEvent) -> str:
    """A repr whose sets of tokens are not thousands of numbers long."""
    parts = []
    for one in fields(event):
        value = getattr(event, one.name)
        long = isinstance(value, frozenset) and len(value) > _MOST_SHOWN
        shown = (
            f"<{len(value)} tokens>"
            if long
            else f"{sorted(value)}"
            if isinstance(value, frozenset)
            else repr(value)
        )
        parts.append(f"{one.name}={shown}")
    return f"{type(event).__name__}({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class TokenChange:
    """What changed for this worker since the reader last asked.

    Attributes:
        assigned: tokens that are this worker's from now on.
        revoked: tokens to let go of; nobody else has them until the reader asks for its next
            change.
        lost: tokens that are gone already, because the lease ended or the worker was expired.
        owned: every token of this worker after the change.
        version: the cluster's version that this reflects.
        is_initial: True for a reader's first item, which is a snapshot.
    """

    assigned: frozenset[int]
    revoked: frozenset[int]
    lost: frozenset[int]
    owned: frozenset[int]
    version: int
    is_initial: bool = False

    def __repr__(self) -> str:
        return _in_short(self)


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """What changed in the whole cluster since a reader of `Observer.changes` last asked.

    Attributes:
        version: the cluster's version that this reflects; rises with every change of membership,
            tokens or pins.
        term: rises whenever the leader changes. leader: its name, None while nobody leads.
        workers: every worker's name, with the address that it announced (or None), oldest first.
            Read-only.
        joined, left: names of workers that came and went; one that was started anew under its name
            is in both.
        moved: tokens whose owner changed, each with the name of its live owner now, None for
            nobody. The first item shows all tokens; so ``table.update(change.moved)`` keeps a
            routing table right. Read-only.
        is_initial: True for a reader's first item.
    """

    version: int
    term: int
    leader: str | None
    workers: Mapping[str, str | None]
    joined: frozenset[str]
    left: frozenset[str]
    moved: Mapping[int, str | None]
    is_initial: bool = False


@dataclass(frozen=True, slots=True)
class RebalanceEvent:
    """What `on_rebalance` is called with.

    Attributes:
        is_initial: True for the first call.
        token_version: the cluster's version that this reflects.
        tokens_added: how many tokens came.
        tokens_removed: how many went, revoked or lost.
        assigned, revoked, lost: which, as in `TokenChange`.
    """

    is_initial: bool
    token_version: int
    tokens_added: int
    tokens_removed: int
    assigned: frozenset[int]
    revoked: frozenset[int]
    lost: frozenset[int]

    def __repr__(self) -> str:
        return _in_short(self)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a task: the worker's name, the address it announced, and the token's fencing
    number."""

    node: str
    address: str | None
    epoch: int


class _Record:
    """Fields by attribute, or by name in brackets as in jobsync, which returned dictionaries."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(self, name):
            return getattr(self, name)
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Runner:
    """What a worker runs.

    Attributes:
        kind: ``"owned"`` for `run_owned`, ``"batch"`` for `run_batch`.
        name: its name; None for a batch without one.
        date: of a batch, as ISO 8601; None where there is none.
    """

    kind: str
    name: str | None = None
    date: str | None = None

    def __str__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        return f"run_{self.kind}{name}{'' if self.date is None else f' of {self.date}'}"


@dataclass(frozen=True, slots=True)
class NodeInfo(_Record):
    """A worker as the cluster knows it.

    Attributes:
        name: its name.
        state: ``"active"``, ``"draining"``, or ``"evicted"`` while its lease may not be over.
        weight: its share relative to the others.
        tokens: how many tokens it owns.
        is_leader: whether it leads.
        address: what it announced for routing.
        host, pid: where it runs.
        joined: its place by age; the lowest is the oldest.
        created_on, last_heartbeat: the server's wall clock, for people.
        age_sec: seconds since it joined. heartbeat_age_sec: seconds since its last heartbeat, both
            by the server's clock.
        beat: how many heartbeats it has sent.
        library: its version of jobsync_async. layout: the newest layout of the tables that it
            knows.
        runs: what it runs; None where it does not say, as 0.1.0.
        timeout_sec: its ``heartbeat_timeout_sec``, by which it is judged; for a worker of 0.1.0,
            whose row does not say it, the cluster's bound. interval_sec: its
            ``heartbeat_interval_sec``; None for one of 0.1.0.
    """

    name: str
    state: str
    weight: float
    tokens: int
    is_leader: bool
    address: str | None
    host: str | None
    pid: int | None
    joined: int
    created_on: dt.datetime
    age_sec: float
    last_heartbeat: dt.datetime
    heartbeat_age_sec: float
    beat: int
    library: str = FIRST_VERSION
    layout: int = 1
    runs: tuple[Runner, ...] | None = None
    timeout_sec: float | None = None
    interval_sec: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing new is started in the whole cluster.

    Attributes:
        reason: why, for people; None where that was not said.
        by: who asked for it.
        since: the server's wall clock, for people.
    """

    reason: str | None
    by: str
    since: dt.datetime

    def __str__(self) -> str:
        why = "" if self.reason is None else f": {self.reason}"
        return f"paused by {self.by} since {self.since:%Y-%m-%d %H:%M:%S%z}{why}"


@dataclass(frozen=True, slots=True)
class LockInfo(_Record):
    """A pin: `task_id` is to run on a worker whose name matches the first of `node_patterns` that
    any live one matches.

    Attributes:
        task_id: the pinned task, as text.
        token_id: the token it hashes to.
        node_patterns: SQL LIKE patterns, in order of preference.
        reason, created_by: free text and the worker that made the pin.
        created_at, expires_at: the server's wall clock; None never expires.
    """

    task_id: str
    token_id: int
    node_patterns: tuple[str, ...]
    reason: str | None
    created_at: dt.datetime
    created_by: str | None
    expires_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[Id_co]):
    """How a batch ended, seen from one worker. The three parts are disjoint and together are all
    its ids, each as it was given; of a `Task`, its id.

    Attributes:
        completed_here: ids that this worker completed.
        completed_elsewhere: ids that others completed, or that were complete before.
        failed: ids whose handler raised at every attempt, with the last error's text; and ids that
            are set aside, with why.
        date: the date under which it ran.
        name: the batch's name, None for one without.
    """

    completed_here: frozenset[Id_co]
    completed_elsewhere: frozenset[Id_co]
    failed: Mapping[Id_co, str]
    date: dt.date | None = None
    name: str | None = None

    def __class_getitem__(cls, ids: Any) -> GenericAlias:
        return GenericAlias(cls, ids)  # as `Task`


@dataclass(frozen=True, slots=True)
class BatchCounts(Generic[Id_co]):
    """How a batch ended whose ids were a stream, seen from one worker. It tells how many they were,
    for the ids themselves may be too many to keep.

    An id that comes again much later counts again, as complete.

    Attributes:
        completed_here: how many ids this worker completed.
        completed_elsewhere: how many others completed, or were complete before.
        failed: how many failed, as in `BatchResult`.
        errors: the first 10,000 of these, each with its last error's text.
        date: the date under which it ran.
        name: the batch's name.
    """

    completed_here: int
    completed_elsewhere: int
    failed: int
    errors: Mapping[Id_co, str]
    date: dt.date
    name: str

    def __class_getitem__(cls, ids: Any) -> GenericAlias:
        return GenericAlias(cls, ids)  # as `Task`
