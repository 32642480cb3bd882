"""PostgreSQL and the simulation's model of the tables: each statement goes to both, and the answers
are compared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row, tuple_row

from jobsync_async.postgres.arrays import int_array
from jobsync_async.postgres.sql import Queries
from tests.copies import copied
from tests.simulation.scheduler import Scheduler
from tests.simulation.server import Server
from tests.simulation.statements import STATEMENTS, Asked, Locked, Result
from tests.simulation.tables import TABLES, Claim, Cluster, Node, Token, Transaction, View

NAMES = ("a", "b", "c", "d")
TOKENS = 9
_UNREAD = frozenset({"announce_plan"})
_NOT_IN_THE_MODEL = {
    "pg_notify",
    "pg_advisory_xact_lock",
    "running_since",
    "holder",
    "claimed_at",
    "completed_at",
    "started_at",
    "at",
    "since",
    "paused_at",
    "evicted_at",
    "queue_usage",
    "total_tokens",
    "hash_function",
    "id",
}
_CLUSTER = (
    "version",
    "announced",
    "term",
    "leader",
    "leader_incarnation",
    "generation",
    "pin_version",
    "planned_joined",
    "last_joined",
    "tokens_since",
    "server_identity",
    "longest_wait",
    "longest_allowed",
    "paused_by",
    "pause_reason",
)
_NODE = tuple(name for name in Node._fields if name != "last_heartbeat")

Steps = Generator[tuple[str, dict[str, Any]], tuple[Sequence[Any], int], bool]


class Model:
    """The simulation's tables, one transaction at a time."""

    def __init__(self, here: str) -> None:
        self.server = Server(Scheduler(Random(0)), Random(0), lambda rule: True)
        self.server.tables.committed = View(
            Cluster(server_identity=here), **{name: {} for name in TABLES}
        )
        client = SimpleNamespace(process=SimpleNamespace(old_library=False))
        self.session: Any = SimpleNamespace(server=self.server, client=client)

    def run(self, tx: Transaction, name: str, values: dict[str, Any]) -> Result:
        """Run a statement; nobody is in its way, but for those that it passes over."""
        running = STATEMENTS[name](Asked(self.session, tx, values))
        try:
            while True:
                request = next(running)
                if isinstance(request, Locked):
                    assert tx.try_lock(request.key, request.mode), (
                        f"{name} would wait for {request.key}"
                    )
        except StopIteration as end:
            return end.value

    def begins(self, generation: int, known: int) -> None:
        """The random jump is to lead to this generation."""
        before = max(known, self.server.tables.committed.cluster.generation)
        self.server.random = SimpleNamespace(random=lambda: (generation - 1 - before + 0.5) / 65536)  # type: ignore[assignment]


@dataclass
class Both:
    """PostgreSQL and the model beside it, and a seed's choices."""

    connection: psycopg.AsyncConnection[Any]
    other: psycopg.AsyncConnection[Any]
    queries: Queries
    model: Model
    random: Random
    here: str
    seen: list[tuple[str, UUID]]
    sent: list[str]

    # -- both at once ------------------------------------------------------------------------------

    async def transaction(self, steps: Steps) -> None:
        """Send the statements of a transaction to both, and compare each answer, and the tables
        afterwards."""
        tx = self.model.server.tables.begin()
        async with self.connection.transaction() as real:
            answer: Any = None
            try:
                while True:
                    name, values = steps.send(answer)
                    answer = await self._both(tx, name, values)
            except StopIteration as end:
                commit = end.value
            await self._fence_what_changed(tx)
            if commit:
                tx.commit()
            else:
                tx.rollback()
                raise psycopg.Rollback(real)
        await self.compare_tables()

    async def _both(
        self, tx: Transaction, name: str, values: dict[str, Any]
    ) -> tuple[Sequence[Any], int]:
        channel = self.random.choice(("changes", "changes", None))
        values = {
            "here": self.here,
            "adopted_server": None,
            "adopted_generation": None,
            "channel": channel,
            "by": self.random.choice(("a", "somebody")),
            **values,
        }
        self.sent.append(f"{name} {values}")
        cursor = self.connection.cursor(binary=True, row_factory=namedtuple_row)
        if name == "copy_tokens":
            async with cursor.copy(self.queries[name]) as copy:
                for piece in values["pieces"]:
                    await copy.write(piece)
            values["rows"] = copied(b"".join(values["pieces"]))
        else:
            await cursor.execute(self.queries[name], values)
        rows = await cursor.fetchall() if cursor.description else []
        if name == "begin_generation" and rows:
            self.model.begins(rows[0].generation, values["known_generation"])
        modelled = self.model.run(tx, name, values)
        # What was begun at which moment is told again when it is finished.
        if name == "begin_batch":
            key = (values["batch_key"], rows[0].date)
            tx.write("batch", key, tx.row("batch", key)._replace(started_at=rows[0].started_at))
        if cursor.description is None:
            assert cursor.rowcount == modelled.count, (
                f"{name}: {cursor.rowcount} rows, not {modelled.count}"
            )
        elif name not in _UNREAD:
            ours, theirs = _plain(modelled.rows, rows), _plain(rows, modelled.rows)
            assert ours == theirs, f"{name}: the model says {ours}, PostgreSQL {theirs}"
            assert (
                not rows
                or set(rows[0]._fields) - set(modelled.rows[0]._fields) <= _NOT_IN_THE_MODEL
            )
        return rows, cursor.rowcount

    async def _fence_what_changed(self, tx: Transaction) -> None:
        """Before the commit: a fence has to wait on a token that gets another owner, and not on one
        that is only revoked."""
        before = self.view.token
        changed = {
            token: row for token, row in tx.written.get("token", {}).items() if token in before
        }
        if not changed:
            return
        query = (
            f"SELECT token_id FROM {self.queries.table('token')} WHERE token_id = ANY(%s) FOR KEY "
            "SHARE SKIP LOCKED"
        )
        async with self.other.transaction(force_rollback=True):
            cursor = await self.other.cursor(row_factory=tuple_row).execute(
                query.encode(), [list(changed)]
            )
            free = {token for (token,) in await cursor.fetchall()}
        stays = {token for token, row in changed.items() if row.epoch == before[token].epoch}
        assert free == stays, f"fences pass on {free}, and the owner stays of {stays}"

    async def compare_tables(self) -> None:
        view = self.model.server.tables.committed
        node, token = (self.queries.table(name) for name in ("node", "token"))
        cluster = await self._rows(
            f"SELECT {', '.join(_CLUSTER)} FROM {self.queries.table('cluster')}"
        )
        assert cluster == [tuple(getattr(view.cluster, name) for name in _CLUSTER)]
        nodes = await self._rows(f"SELECT {', '.join(_NODE)} FROM {node} ORDER BY name")
        assert nodes == [
            tuple(getattr(view.node[name], column) for column in _NODE)
            for name in sorted(view.node)
        ]
        tokens = await self._rows(
            f"SELECT {', '.join(Token._fields)} FROM {token} ORDER BY token_id"
        )
        assert tokens == [tuple(view.token[number]) for number in sorted(view.token)]
        evicted = await self._rows(
            f"SELECT name, by, reason, incarnation FROM {self.queries.table('evicted')} ORDER BY 1"
        )
        assert evicted == [(name, *view.evicted[name][:3]) for name in sorted(view.evicted)]
        await self._compare_records(view)
        history = await self._rows(
            "SELECT version, kind, node, incarnation, by, term, reason, silent_sec IS NOT NULL, "
            f"details FROM {self.queries.table('history')}"
        )
        modelled = [tuple(event)[:-1] for event in view.history.values()]
        assert sorted(history, key=repr) == sorted(modelled, key=repr)

    async def _compare_records(self, view: View) -> None:
        """Moments are compared by whether they are there."""
        names = [name for name in Claim._fields if name not in ("claimed_at", "set_aside_at")]
        chosen = f"date, task_key, {', '.join(names)}, set_aside_at IS NOT NULL"
        claims = await self._rows(
            f"SELECT {chosen} FROM {self.queries.table('claim')} ORDER BY 1, 2"
        )
        assert claims == [
            (*key, *(getattr(row, name) for name in names), row.set_aside_at is not None)
            for key, row in sorted(view.claim.items())
        ]
        chosen = "task_key, task_id, batch, date, owners_lost, reason"
        aside = await self._rows(
            f"SELECT {chosen} FROM {self.queries.table('set_aside')} ORDER BY 1"
        )
        assert aside == [(key, *row) for key, row in sorted(view.set_aside.items())]
        chosen = "date, task_key, task_id, token_id, node, epoch, batch"
        audit = await self._rows(
            f"SELECT {chosen} FROM {self.queries.table('audit')} ORDER BY 1, 2"
        )
        assert audit == [(*key, *row[:4], row[5]) for key, row in sorted(view.audit.items())]
        chosen = (
            "batch_key, date, name, total, started_at, started_by, finished_at IS NOT NULL, "
            "ids_key, clean, before_key, mixed"
        )
        batches = await self._rows(
            f"SELECT {chosen} FROM {self.queries.table('batch')} ORDER BY 1, 2"
        )
        assert batches == [(*key, *row) for key, row in sorted(view.batch.items())]
        chosen = "batch_key, date, incarnation, node, completed, otherwise, ids_key, taken"
        parts = await self._rows(
            f"SELECT {chosen} FROM {self.queries.table('batch_part')} ORDER BY 1, 2, 3"
        )
        assert parts == [(*key, *row) for key, row in sorted(view.batch_part.items())]

    async def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return await (
            await self.connection.cursor(row_factory=tuple_row).execute(query.encode())
        ).fetchall()

    # -- what is chosen ----------------------------------------------------------------------------

    @property
    def view(self) -> View:
        return self.model.server.tables.committed

    def somebody(self) -> tuple[str, UUID]:
        """A worker that is there, or that was."""
        if self.view.node and self.random.random() < 0.8:
            node = self.random.choice([self.view.node[name] for name in sorted(self.view.node)])
            return node.name, node.incarnation
        return self.random.choice(self.seen) if self.seen else ("a", self.incarnation())

    def incarnation(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def some(self) -> list[int]:
        return sorted(self.random.sample(range(TOKENS), self.random.randint(1, TOKENS)))

    def near(self, number: int) -> int:
        """The number itself, or one beside it."""
        return number + self.random.choice((0, 0, 0, -1, 1))

    def moves(self) -> dict[str, Any]:
        tokens, names = sorted(self.some()), self.random.sample([*NAMES, ""], 3)
        return {
            "incarnation": self.somebody()[1],
            "names": names,
            "token_ids": int_array(tokens),
            "receivers": int_array([self.random.randint(0, 3) for _ in tokens]),
            "version": self.view.cluster.version + 1,
            "planned_version": self.view.cluster.version - self.random.choice((0, 0, 1, 2, 5)),
            "generation": self.view.cluster.generation,
        }


def _plain(rows: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """What both have, without an order."""
    names = (
        sorted(set(rows[0]._fields) & set(others[0]._fields) - _NOT_IN_THE_MODEL)
        if rows and others
        else []
    )
    return sorted(
        ([(name, _value(name, getattr(row, name))) for name in names] for row in rows), key=repr
    )


def _value(name: str, value: Any) -> Any:
    """Lists of tokens, and groups of them, come in any order; how long ago something was depends on
    when it is asked."""
    if name == "leader_age":
        return value is not None
    if name == "mine" and value is not None:
        return sorted([*alike, sorted(tokens)] for *alike, tokens in value)
    return sorted(value) if name in ("others", "token_ids") and value is not None else value


@asynccontextmanager
async def some_tokens_locked(both: Both) -> AsyncIterator[None]:
    """Somebody holds the locks of a few tokens, as a fence does."""
    tokens = both.random.sample(range(TOKENS), 3)
    tx = both.model.server.tables.begin()
    async with both.other.transaction():
        query = f"SELECT FROM {both.queries.table('token')} WHERE token_id = ANY(%s) FOR KEY SHARE"
        await both.other.execute(query.encode(), [tokens])
        for token in tokens:
            if token in both.view.token:
                assert tx.try_lock(("token", token), "key share")
        yield
    tx.rollback()


async def empty(connection: psycopg.AsyncConnection[Any], queries: Queries, identity: str) -> None:
    for name in (
        "node",
        "evicted",
        "token",
        "claim",
        "set_aside",
        "audit",
        "batch",
        "batch_part",
        "rebalance",
        "history",
    ):
        await connection.execute(f"DELETE FROM {queries.table(name)}".encode())
    fresh = {
        name: getattr(Cluster(server_identity=identity), name) for name in (*_CLUSTER, "paused_at")
    }
    assigned = ", ".join(f"{name} = %({name})s" for name in fresh)
    await connection.execute(f"UPDATE {queries.table('cluster')} SET {assigned}".encode(), fresh)
