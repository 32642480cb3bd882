"""The tables in plain Python, with what transactions and row locks do to each other in PostgreSQL
at READ COMMITTED.

A transaction sees what is committed when a statement begins, and what it wrote itself. Rows are
locked until its end. Whoever finds a row locked waits, and then looks at the row anew, as
PostgreSQL does; or passes it over, where the statement says so. Committed rows are never changed in
place, so a reader's view stays what it was.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from uuid import UUID

# FOR KEY SHARE, as fences lock; FOR NO KEY UPDATE, as an UPDATE does; FOR UPDATE. The weakest
# first.
Mode = Literal["key share", "update", "exclusive"]
_CONFLICTS: Mapping[Mode, tuple[Mode, ...]] = {
    "key share": ("exclusive",),
    "update": ("update", "exclusive"),
    "exclusive": ("key share", "update", "exclusive"),
}
Key = tuple[str, Any]

CLUSTER: Key = ("cluster", None)


class Cluster(NamedTuple):
    version: int = 0
    announced: int = 0
    term: int = 0
    leader: str | None = None
    leader_incarnation: UUID | None = None
    generation: int = 1
    pin_version: int = 0
    planned_joined: int = 0
    last_joined: int = 0
    tokens_since: int | None = None
    server_identity: str | None = None
    longest_wait: float | None = None
    longest_allowed: float | None = None
    time_zone: str | None = "UTC"
    paused_at: dt.datetime | None = None
    paused_by: str | None = None
    pause_reason: str | None = None


class Node(NamedTuple):
    name: str
    incarnation: UUID
    joined: int
    beat: int = 0
    weight: float = 1.0
    state: str = "active"
    address: str | None = None
    host: str | None = None
    pid: int | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None
    process_started: int | None = None
    session_tag: str | None = None
    last_heartbeat: float = 0.0
    runs: list[dict[str, str | None]] | None = None
    timeout_sec: float | None = None
    interval_sec: float | None = None
    said_by: UUID | None = None


class Evicted(NamedTuple):
    by: str
    reason: str | None
    incarnation: UUID | None
    at: dt.datetime


class Claim(NamedTuple):
    task_id: str
    token_id: int
    node: str
    epoch: int
    error: str | None
    claimed_at: float
    batch: str | None = None
    incarnation: UUID | None = None
    open: bool | None = None
    owners_lost: int = 0
    set_aside_at: float | None = None
    failures: int = 0
    last_error: str | None = None


class Batch(NamedTuple):
    name: str | None
    total: int | None
    started_at: dt.datetime
    started_by: str
    finished: bool = False
    ids_key: bytes | None = None
    clean: bool | None = None
    before_key: bytes | None = None
    mixed: bool = False


class Part(NamedTuple):
    node: str
    completed: int = 0
    otherwise: int = 0
    ids_key: bytes | None = None
    taken: int | None = None


class Token(NamedTuple):
    token_id: int
    node: str | None
    incarnation: UUID | None
    epoch: int
    next_node: str | None
    version: int


class Event(NamedTuple):
    version: int
    kind: str
    node: str | None = None
    incarnation: UUID | None = None
    by: str | None = None
    term: int | None = None
    reason: str | None = None
    silent: bool = False
    details: Mapping[str, Any] | None = None
    at: float = 0.0


TABLES = (
    "node",
    "evicted",
    "token",
    "lock",
    "claim",
    "set_aside",
    "audit",
    "batch",
    "batch_part",
    "rebalance",
    "history",
)
Rows = Mapping[Any, Any]


@dataclass(frozen=True)
class View:
    """What one statement sees."""

    cluster: Cluster
    node: Rows
    evicted: Rows
    token: Rows
    lock: Rows
    claim: Rows
    set_aside: Rows
    audit: Rows
    batch: Rows
    batch_part: Rows
    rebalance: Rows
    history: Rows

    def alive(self, incarnation: UUID | None) -> bool:
        """Whether there is a node row with this incarnation."""
        return any(node.incarnation == incarnation for node in self.node.values())

    def receiver(self, name: str | None) -> Node | None:
        """The worker of this name, if it takes tokens."""
        node = self.node.get(name)
        return node if node is not None and node.state == "active" else None


class _Lock:
    """Who holds a row, and who waits for it, in order."""

    __slots__ = ("holders", "waiting")

    def __init__(self) -> None:
        self.holders: dict[Transaction, Mode] = {}
        self.waiting: deque[tuple[Transaction, Mode, Callable[[], None]]] = deque()

    def grant(self, transaction: Transaction, mode: Mode) -> bool:
        others = (held for holder, held in self.holders.items() if holder is not transaction)
        if any(held in _CONFLICTS[mode] for held in others):
            return False
        before = self.holders.get(transaction, mode)
        self.holders[transaction] = max(before, mode, key=list(_CONFLICTS).index)
        return True


class Tables:
    """What is committed, and the locks. `on_commit` is called with each transaction as it commits,
    before its locks go."""

    def __init__(self, server_identity: str) -> None:
        empty: dict[str, Rows] = {name: {} for name in TABLES}
        self.committed = View(Cluster(server_identity=server_identity), **empty)
        self.locks: dict[Key, _Lock] = {}
        self.on_commit: Callable[[Transaction, View, View], None] = (
            lambda transaction, before, after: None
        )

    def begin(self) -> Transaction:
        return Transaction(self)


@dataclass(eq=False)
class Transaction:
    """Attributes:
    notices: payloads to announce with the commit.
    fenced: tokens that a user's fence holds, as (token, incarnation, epoch).
    untold: sent by a library of before, which writes no history.
    snapshot: set, every statement sees this same moment.
    """

    tables: Tables
    cluster: Cluster | None = None
    written: dict[str, dict[Any, Any]] = field(default_factory=dict)
    held: dict[Key, None] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    fenced: list[tuple[int, UUID, int]] = field(default_factory=list)
    snapshot: View | None = None
    untold: bool = False
    over: bool = False
    _savepoints: list[tuple[Any, ...]] = field(default_factory=list)

    def view(self) -> View:
        """What a statement that begins now sees."""
        seen = self.snapshot or self.tables.committed
        if self.cluster is None and not self.written:
            return seen
        rows = {name: self._merged(getattr(seen, name), name) for name in TABLES}
        return View(self.cluster or seen.cluster, **rows)

    def _merged(self, rows: Rows, table: str) -> Rows:
        mine = self.written.get(table)
        if not mine:
            return rows
        return {key: row for key, row in {**rows, **mine}.items() if row is not None}

    def row(self, table: str, key: Any) -> Any:
        """The latest version of a row that this transaction holds the lock of; None for none."""
        mine = self.written.get(table, {})
        return mine[key] if key in mine else getattr(self.tables.committed, table).get(key)

    def write(self, table: str, key: Any, row: Any) -> None:
        """Insert, update, or with None delete."""
        self.written.setdefault(table, {})[key] = row

    def update(self, **values: Any) -> Cluster:
        """Change the cluster's row, whose lock is held."""
        assert CLUSTER in self.held, "the cluster's row is changed under its lock"
        self.cluster = (self.cluster or self.tables.committed.cluster)._replace(**values)
        return self.cluster

    # -- locks -------------------------------------------------------------------------------------

    def try_lock(self, key: Key, mode: Mode) -> bool:
        """Lock a row unless somebody else has it."""
        lock = self.tables.locks.setdefault(key, _Lock())
        granted = lock.grant(self, mode)
        if granted:
            self.held[key] = None
        return granted

    def wait_for(self, key: Key, mode: Mode, resume: Callable[[], None]) -> None:
        self.tables.locks[key].waiting.append((self, mode, resume))

    def stop_waiting(self) -> None:
        for lock in self.tables.locks.values():
            if any(waiter is self for waiter, _, _ in lock.waiting):
                lock.waiting = deque(entry for entry in lock.waiting if entry[0] is not self)

    def _release(self, kept: Iterable[Key] = ()) -> None:
        resumed: list[Callable[[], None]] = []
        for key in [key for key in self.held if key not in kept]:
            del self.held[key]
            lock = self.tables.locks[key]
            lock.holders.pop(self, None)
            while lock.waiting and lock.grant(*lock.waiting[0][:2]):
                waiter, _, resume = lock.waiting.popleft()
                waiter.held[key] = None
                resumed.append(resume)
            if not lock.holders and not lock.waiting:
                del self.tables.locks[key]
        for resume in resumed:
            resume()

    # -- savepoints --------------------------------------------------------------------------------

    def savepoint(self) -> None:
        """Remember how things are."""
        written = {table: dict(rows) for table, rows in self.written.items()}
        self._savepoints.append(
            (self.cluster, written, set(self.held), len(self.notices), len(self.fenced))
        )

    def release(self) -> None:
        """Forget the last savepoint; what was done since stays."""
        self._savepoints.pop()

    def roll_back_to(self) -> None:
        """Undo what was done since the last savepoint, its locks included."""
        self.cluster, self.written, held, notices, fenced = self._savepoints.pop()
        del self.notices[notices:], self.fenced[fenced:]
        self._release(held)

    # -- the end -----------------------------------------------------------------------------------

    def commit(self) -> None:
        """Everybody sees it from now on."""
        self.over = True
        tables = self.tables
        before = tables.committed
        if self.cluster is not None or self.written:
            rows = {name: self._merged(getattr(before, name), name) for name in TABLES}
            tables.committed = View(self.cluster or before.cluster, **rows)
        tables.on_commit(self, before, tables.committed)
        self._release()

    def rollback(self) -> None:
        self.over = True
        self.stop_waiting()
        self._release()


def in_order(nodes: Iterable[Node]) -> list[Node]:
    """Workers, the oldest first."""
    return sorted(nodes, key=lambda node: node.joined)
