"""No statement does more work than it is asked for, whatever the statistics say.

The library's own calls are made on tables with many tokens, and many rows of yesterday and of
today. What each statement touched is counted (`tests/touched.py`), in four states of the
statistics. Few rows that are asked for must not touch all that there are. What by its nature reads
all of them may do so a few times, and is named here with the reason.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from itertools import count
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest

from jobsync_async.core.distribution import Distribution, Moves
from jobsync_async.core.hashing import name_key
from jobsync_async.core.leader_state import Reading
from jobsync_async.core.lease import Beat, Times
from jobsync_async.core.pins import Pin
from jobsync_async.core.rows import Announcement, Identity, Neighbour, Process, Stuck, Work
from jobsync_async.core.runs import Asked, Opened, Place, Run
from jobsync_async.postgres.batch_runs import BatchRuns, RunRow
from jobsync_async.postgres.bounds import Bounds
from jobsync_async.postgres.connection import PLAN_EACH_TIME, PLAN_ONCE, Connector
from jobsync_async.postgres.deaths import Deaths
from jobsync_async.postgres.failover import Failover
from jobsync_async.postgres.history import HistoryStatements
from jobsync_async.postgres.inspection import Inspection
from jobsync_async.postgres.leader import Leading
from jobsync_async.postgres.membership import Membership
from jobsync_async.postgres.observer import ObserverFeed
from jobsync_async.postgres.pins import PinStatements
from jobsync_async.postgres.pruning import Pruning
from jobsync_async.postgres.sessions import Sessions
from jobsync_async.postgres.sql import GROWING, TABLES
from jobsync_async.postgres.status import Status
from jobsync_async.postgres.steering import Steering
from jobsync_async.postgres.tokens import PolledFeed
from jobsync_async.postgres.work import WorkStore
from jobsync_async.testing.databases import database
from jobsync_async.types import Runner
from tests.touched import NamedQueries, Touched, Watched

WORKERS, KEYS, PINS, BATCHES = 300, 500, 2_000, 500
YESTERDAY, TODAY = dt.date(2024, 2, 29), dt.date(2024, 3, 1)
VERSION = 1_000
# For each row that is asked for or comes back, some steps of a plan pass it on.
STEPS = 30

# What reads all tokens, or all rows of a date, because that is what it is asked for.
ALL = {
    "restore_cluster": "the highest epoch of all, once when a cluster's row is made",
    "free_all_tokens": "frees all, at a failover of the server",
    "free_tokens_of": "there is no index by owner: every move would have to maintain it",
    "inherit_tokens": "the same",
    "tokens_of": "the same; only where somebody runs ids that others do not",
    "list_nodes": "counts everybody's tokens, for people",
    "read_status": "counts all, for people",
    "read_audit": "all of a date",
    "count_old": "counts all that is old, for people",
}

# What is not called here.
ELSE = {
    **dict.fromkeys(
        ("pinned", "left_over", "failed_ids", "runs_it", "tell_who_leads",
         "tell_gone", "long_ago", "asked_since"), "a part of others"
    ),
    **dict.fromkeys(
        ("read_committed", "one_snapshot", "copy_tokens", "refuse_older", "hold_runs"), "no plan"
    ),
    **dict.fromkeys(
        (
            "prepare_session", "bound_transaction", "read_identity", "say_something",
            "restore_search_path", "hold_session", "inspect_server", "find_table", "table_exists",
            "may_create", "role_exists", "who_locks", "doctor_clock", "doctor_may_use",
            "doctor_rights", "doctor_server", "doctor_sizes", "doctor_transactions",
            "size_of_table", "ask_system", "ask_position", "ask_file", "ask_started", "ask_aurora",
        ),
        "of the server, and no table of the cluster's",
    ),
    **dict.fromkeys(
        ("lock_schema", "await_schema", "hold_schema", "raise_schema_version", "set_time_zone",
         "read_recorded"),
        "a lock, or the cluster's one row",
    ),
    "insert_cluster": "as restore_cluster",
    "list_older": "all workers",
}  # fmt: skip


def _statements() -> set[str]:
    folder = resources.files("jobsync_async.postgres")
    texts = [folder.joinpath(name).read_text("utf-8") for name in ("queries.sql", "operators.sql")]
    return {name for text in texts for name in re.findall(r"^-- name: (\w+)$", text, re.MULTILINE)}


# == the tables ====================================================================================


def uuid_of(worker: int) -> UUID:
    return UUID(int=worker)


_UUID = "('00000000-0000-0000-0000-' || lpad(to_hex({}), 12, '0'))::uuid"
_TASKS = """
    INSERT INTO sync_{table} (date, task_key, task_id, token_id, node, epoch)
    SELECT '{date}', sha256(('id-' || i)::bytea), 'id-' || i, i, 'w0', 1
    FROM generate_series(0, {many} - 1) i
"""
_REST = f"""
    INSERT INTO sync_node (name, incarnation, joined, boot_id, pid_namespace, host, pid,
                           process_started, session_tag, timeout_sec, interval_sec, library, layout,
                           runs, said_by)
    SELECT 'w' || i, {_UUID.format("i")}, i + 1, 'boot', 'ns', 'here', i + 100, i,
           'tag of ' || i, 15, 5, '1', 2,
           CASE WHEN i % 2 = 0 THEN '[]'::jsonb ELSE '[{{{{"kind": "owned", "name": null}}}}]' END,
           {_UUID.format("i")}
    FROM generate_series(1, {WORKERS} - 1) i;
    INSERT INTO sync_token (token_id, node, incarnation, epoch, version)
    SELECT i, 'w' || w, {_UUID.format("w")}, 1,
           CASE WHEN i % 100 = 0 THEN {VERSION} - i % 400 ELSE 0 END
    FROM generate_series(0, {{many}} - 1) i,
         LATERAL (SELECT CASE WHEN i < {{many}} / 5 THEN 0 ELSE i % {WORKERS} END AS w) o;
    INSERT INTO sync_lock (task_key, task_id, token_id, node_patterns, created_by)
    SELECT sha256(('pin-' || i)::bytea), 'pin-' || i, i, '["w1"]', 'me'
    FROM generate_series(1, {PINS}) i;
    INSERT INTO sync_rebalance (version, reason, leader, term, nodes_before, nodes_after,
                                tokens_moved, duration_ms)
    SELECT i, 'joined', 'w0', 1, 1, 2, 3, 4 FROM generate_series(1, {VERSION}) i;
    INSERT INTO sync_batch (batch_key, date, name, started_by, finished_at, ids_key)
    SELECT sha256(('batch-' || i)::bytea), date, 'batch-' || i, 'w0', now(), 'ids'
    FROM generate_series(1, {BATCHES}) i, (VALUES ('{YESTERDAY}'::date), ('{TODAY}')) d (date);
    INSERT INTO sync_batch_part (batch_key, date, incarnation, node, completed)
    SELECT b.batch_key, b.date, n.incarnation, n.name, 1
    FROM sync_batch b JOIN sync_node n ON n.joined <= 20;
    INSERT INTO sync_history (at, version, kind, node, incarnation, term)
    SELECT now() - ({{many}} - i) * interval '30 days' / {{many}}, i::bigint * {VERSION} / {{many}},
           CASE WHEN i % 1000 = 0 THEN 'took over'
                ELSE (ARRAY['joined', 'left', 'died'])[1 + i % 3] END,
           'w' || i % {WORKERS}, {_UUID.format(f"i + {WORKERS}")},
           CASE WHEN i % 1000 = 0 THEN i / 1000 END
    FROM generate_series(1, {{many}}) i;
    INSERT INTO sync_set_aside (task_key, task_id, date, owners_lost, reason)
    SELECT sha256(('id-' || i)::bytea), 'id-' || i, '{YESTERDAY}', 3, 'lost'
    FROM generate_series(1, {PINS}) i;
"""
_REPEATED = """
    UPDATE sync_token SET next_node = 'w2', revoked_at = now() WHERE token_id % 2 = 0;
    ANALYZE sync_token;
    UPDATE sync_token SET next_node = NULL, revoked_at = NULL WHERE token_id % 2 = 0
"""
# PostgreSQL keeps no statistics of it any more, as of a table that was never analyzed.
_FORGET = """
    DELETE FROM pg_statistic WHERE starelid IN
        (SELECT oid FROM pg_class WHERE relname LIKE 'sync\\_%');
    UPDATE pg_class SET reltuples = -1, relpages = 0, relallvisible = 0
    WHERE relname LIKE 'sync\\_%'
"""


class Tables:
    """The tables of one cluster, which is as big as `many` says; the statistics grow older.

    Attributes:
        dsn: a superuser's. queries: the statements for them.
    """

    def __init__(self, dsn: str, many: int) -> None:
        self.dsn = dsn
        self.many = many
        self.queries = NamedQueries("public", "sync_")
        self._connection = psycopg.connect(dsn, autocommit=True)
        self.states = self._states()

    def close(self) -> None:
        self._connection.close()

    def _states(self) -> Iterator[str]:
        """Each state of the statistics that there can be, in the order in which they come cheapest.
        Nothing analyzes by itself."""
        for name in TABLES:
            self._connection.execute(f"ALTER TABLE sync_{name} SET (autovacuum_enabled = off)")
            self._connection.execute(f"ALTER TABLE sync_{name} SET UNLOGGED")
        self._connection.execute(
            f"""INSERT INTO sync_cluster (schema_version, layout, total_tokens, hash_function,
                    channel, version, term, leader, leader_incarnation, tokens_since, last_joined,
                    planned_joined, longest_wait, longest_allowed, time_zone)
                VALUES (1, 2, {self.many}, 'double_sha256', 'sync_changes', {VERSION}, 1, 'w0',
                        '{uuid_of(0)}', 2, {WORKERS}, {WORKERS}, 15, 15, 'UTC');
                INSERT INTO sync_node (name, incarnation, joined, boot_id, pid_namespace, host, pid,
                    process_started, session_tag, timeout_sec, interval_sec, library, layout, runs,
                    said_by)
                VALUES ('w0', '{uuid_of(0)}', 1, 'boot', 'ns', 'here', 100, 0, 'tag of 0', 15, 5,
                        '1', 2, '[]', '{uuid_of(0)}')"""
        )
        row = self._connection.execute(
            self.queries["read_server"], dict.fromkeys(("here", "channel"))
        ).fetchone()
        assert row is not None
        self._connection.execute("UPDATE sync_cluster SET server_identity = %s", [row[1]])
        for table in ("claim", "audit"):
            self._fill(_TASKS, table=table, date=YESTERDAY)
        self._connection.execute("ANALYZE")
        for table in ("claim", "audit"):
            self._fill(_TASKS, table=table, date=TODAY)
        self._connection.execute(
            f"UPDATE sync_claim SET incarnation = '{uuid_of(0)}', open = false WHERE token_id < 10"
        )
        self._fill(_REST)
        yield "yesterday"
        self._connection.execute(_FORGET)
        yield "never"
        for part in _REPEATED.split(";"):
            self._connection.execute(part)
        yield "in a hand-off"
        self._connection.execute("VACUUM ANALYZE")
        yield "fresh"

    def _fill(self, script: str, **names: object) -> None:
        self._connection.execute(script.format(many=self.many, **names))


STATES = ("yesterday", "never", "in a hand-off", "fresh")


def _tables(server: Any, template: str, many: int) -> Iterator[Tables]:
    with database(server.dsn, template, "jobsync_plans") as dsn:
        made = Tables(dsn, many)
        yield made
        made.close()


@pytest.fixture(scope="module")
def tables(server, template) -> Iterator[Tables]:
    yield from _tables(server, template, 100_000)


@pytest.fixture(scope="module", params=STATES)
def state(request, tables) -> str:
    """The tables' statistics are of this kind now."""
    assert next(tables.states) == request.param
    return request.param


# == the calls =====================================================================================

Call = tuple[float, Callable[[], Awaitable[object]]]


class Calls:
    """The library's calls, each with how many rows it asks for.

    Args:
        each, once: sessions whose statements are planned each time, and once for all values.
    """

    def __init__(self, tables: Tables, connector: Connector, each: Watched, once: Watched) -> None:
        queries, context, link = tables.queries, connector.context, cast(Any, each)
        self.many, self.queries = tables.many, queries
        self.each = each
        self.me = Identity("w0", uuid_of(0))
        self.membership = Membership(link, link, queries, context, Times.said(15.0, 5.0))
        self.leading = Leading(link, queries, context)
        self.deaths = Deaths(link, queries, context)
        self.sessions = Sessions(link, link, queries, context, "key ")
        self.pins = PinStatements(link, queries, context)
        self.work = WorkStore(link, queries, context)
        self.status = Status(link, queries)
        self.runs, self.pruning = BatchRuns(link, queries), Pruning(link, queries)
        self.inspection = Inspection(link, queries)
        self.bounds = Bounds(link, queries, context)
        fixed = {
            "schema_version": 1,
            "layout": 2,
            "total_tokens": tables.many,
            "hash_function": "double_sha256",
            "channel": "sync_changes",
            "time_zone": "UTC",
        }
        self.failover = Failover(link, link, queries, context, fixed)
        history = HistoryStatements(link, queries)
        self.steering = Steering(link, queries, context, history)
        self.feed, self.handing_on = PolledFeed(connector), PolledFeed(connector)
        self.feed._link, self.handing_on._link = cast(Any, once), link
        self.observer = ObserverFeed(once.connection, connector)
        self.run = Run(TODAY, None, name_key("batch-7"))
        self.named = Run(TODAY, "batch-7", name_key("batch-7"))

    def all(self) -> Iterator[Call]:
        """Every call, each in a transaction that is rolled back."""
        yield from self.of_members()
        yield from self.of_the_leader()
        yield from self.of_tokens()
        yield from self.of_tasks()
        yield from self.of_batches()
        yield from self.of_runs()
        yield from self.of_people()

    def of_members(self) -> Iterator[Call]:
        new = Identity("new", uuid_of(WORKERS))
        heir = Identity("w7", uuid_of(WORKERS))
        seen = Neighbour("w9", uuid_of(9), "boot", "ns", "here", Process(109, 9), "tag of 9")
        yield 1, lambda: self.membership.join(new, Announcement())
        yield 1, lambda: self.membership.join(heir, Announcement(), replace=beat(7))
        yield 1, lambda: self.membership.heartbeat(self.me, watch_all=True)
        yield 1, lambda: self.membership.heartbeat(self.me, watch_all=False)
        yield 1, self.membership.read_beats
        yield 1, lambda: self.membership.set_state("w7", "draining")
        yield 1, lambda: self.membership.leave(Identity("w7", uuid_of(7)))
        yield 1, lambda: self.deaths.report([seen])
        yield 1, self._watch_sessions
        yield 1, lambda: self.membership._hold_session(self.each.connection, self.me)
        yield 1, self._begin_anew
        yield 1, self._restore

    async def _watch_sessions(self) -> None:
        reading = await self.sessions.read()
        await self.sessions.expire(reading.watcher, reading.sessions[5:50])

    async def _begin_anew(self) -> None:
        seen = await self.failover.read_server()
        assert await self.failover.condemn(seen, None)
        seen = await self.failover.read_server()
        assert await self.failover.begin(seen, None, VERSION, 15.0)

    async def _restore(self) -> None:
        await self.each.send("DELETE FROM public.sync_cluster")
        seen = await self.failover.read_server()
        assert await self.failover.begin(seen, None, VERSION, 15.0)

    def of_the_leader(self) -> Iterator[Call]:
        free = range(self.many - self.many % WORKERS + 5 - WORKERS * 100, self.many, WORKERS)
        going = range(0, self.many, self.many // KEYS)
        yield 20, lambda: self.leading.read(VERSION - 5, -1)
        yield self.many, lambda: self.leading.read(-1, -1)
        yield self.many, lambda: self.leading.read(1, -1)  # before the first distribution
        yield KEYS, lambda: self._rebalance(free[:50], going, [beat(5), beat(6)])
        yield 1, lambda: self._take_over([beat(0)])
        yield self.many / 5, lambda: self._rebalance((), (), (), given=range(self.many // 5))
        yield KEYS, lambda: self._rebalance((), (), (), given=range(KEYS))
        yield self.many / 5, lambda: self._hand_on(range(self.many // 5))
        yield KEYS, lambda: self._hand_on(range(KEYS))

    async def _take_over(self, expire: Sequence[Beat]) -> None:
        assert await self.leading.take_over(Identity("w1", uuid_of(1)), 1, expire) == 2

    async def _rebalance(
        self,
        assign: Sequence[int],
        revoke: Sequence[int],
        expire: Sequence[Beat],
        given: Sequence[int] = (),
    ) -> None:
        def decide(reading: Reading) -> Distribution:
            return Distribution(
                "why", 3, 4, WORKERS, numbers={"w1": 1, "w2": 2},
                assign=Moves(list(assign), [1] * len(assign)),
                given=Moves(list(given), [1] * len(given)),
                revoke=Moves(list(revoke), [2] * len(revoke)),
            )  # fmt: skip

        outcome = await self.leading.rebalance(self.me, 1, expire, VERSION, 0, decide)
        assert outcome is not None
        assert outcome.kept == outcome.skipped == 0

    async def _hand_on(self, tokens: Sequence[int]) -> None:
        """Revoke tokens of the leader's, and let go of all but one of them, and then of that."""
        await self._rebalance((), tokens, ())
        for some in (tokens[1:], tokens[:1]):
            revocations = [(token, VERSION + 1) for token in some]
            assert len(await self.handing_on.acknowledge(self.me, revocations)) == len(some)

    def of_tokens(self) -> Iterator[Call]:
        runs = [Runner("owned", "such")]
        yield 1, self.feed._poll_if_due
        yield 20, lambda: self.feed.read_changes(self.me, VERSION - 5)
        yield 0, lambda: self.feed.read_changes(self.me, VERSION)
        yield self.many, lambda: self.feed.read_changes(self.me, -1)
        yield self.many, lambda: self.feed.read_changes(self.me, 1)
        yield 1, lambda: self.feed.show_stuck(self.me, [Stuck(1, "id")])
        yield 1, lambda: self.feed.announce_runs(self.me, runs)
        yield 1, lambda: self.feed.read_idlers(self.me, runs)
        yield 1, lambda: self.feed.tokens_of([uuid_of(1), uuid_of(2)])
        yield 20, lambda: self.observer.read(VERSION - 5)
        yield self.many, lambda: self.observer.read(-1)
        yield 1, lambda: self.status.owner_of(7)
        pins = [Pin(f"pin {number}", number, ("w1",)) for number in range(KEYS)]
        yield KEYS + PINS, lambda: self.pins.register(pins, [None] * KEYS, "me", 1)
        yield PINS, lambda: self.pins.clear(None)
        yield PINS, lambda: self.pins.clear("me")
        yield 10, lambda: self.pins.clear_tasks([f"pin-{number}" for number in range(10)])
        yield PINS, self.pins.list

    def of_tasks(self) -> Iterator[Call]:
        work, run, me = self.work, self.run, self.me
        old = [Work(f"id-{number}", number, 1) for number in range(KEYS)]
        new = [Work(f"new-{number}", number, 1) for number in range(KEYS)]
        texts = [each.task_id for each in old]
        yield 1, lambda: work.record_claims(me, run, old[:1])
        for works in (old, new):
            yield KEYS, partial(work.record_claims, me, run, works)
            yield KEYS, partial(work.begin_tasks, me, run, works, lost_limit=2, most_lost=0)
            yield KEYS, partial(work.record_completions, me, run, works)
            yield KEYS, partial(work.write_audit, me, run, works)
        yield KEYS, lambda: work.end_claims(me, run, [(each, "why") for each in old])
        yield 1, lambda: work.note_failure(run, old[0], "why")
        yield KEYS, lambda: work.forget_failures(me, run, texts)
        yield KEYS, lambda: work.read_progress(run, texts)
        yield KEYS, lambda: work.read_set_aside(run, texts)
        yield self.many, lambda: work.read_audit(TODAY)
        yield KEYS, lambda: work.find_dates(self.named, dict(zip(texts, count())))
        yield KEYS, lambda: work.find_strays(self.named, Place(b"", b"ids", 0), range(KEYS))

    def of_batches(self) -> Iterator[Call]:
        moment = dt.datetime(2024, 3, 1, tzinfo=dt.timezone.utc)
        opened = Opened(TODAY, moment, "w0", TODAY, moment)
        begun = partial(self.work.begin_batch, self.me)
        yield 1, self.work.read_date
        for day in (TODAY, TODAY + dt.timedelta(1)):
            yield 1, partial(begun, b"new", b"ids", Asked("new", day), 5)
            yield 1, partial(begun, self.named.batch_key, b"ids", Asked("batch-7", day), 5)
        yield 1, lambda: begun(b"new", b"ids", Asked("new"), 5)
        complete = partial(self.work.find_complete, self.named.batch_key)
        yield self.many, lambda: complete(b"ids", Asked(None, TODAY), 20)
        yield 1, lambda: complete(b"ids", Asked("batch-7", TODAY), 20)
        yield 1, lambda: complete(b"ids", Asked("batch-7", TODAY), 21)
        yield 1, lambda: complete(b"others", Asked("batch-7", TODAY), 20)
        for anyhow in (False, True):
            place = Place(b"before", b"portion", 9)
            yield 1, partial(self.work.advance_batch, self.me, self.named, place, anyhow=anyhow)
        yield 1, lambda: self.work.finish_batch(self.named, opened, b"ids")
        yield 20, lambda: self.work.read_parts(self.named, opened, b"ids")

    def of_runs(self) -> Iterator[Call]:
        moment = dt.datetime(2024, 3, 1, tzinfo=dt.timezone.utc)
        tomorrow = TODAY + dt.timedelta(1)
        run = RunRow(
            self.named.batch_key, TODAY, "batch-7", 5, moment, "w0", moment, 0, 5, 0, 0, 0, 1,
            moment,
        )  # fmt: skip
        # What is set aside is little, and for people to deal with: each run looks at all of it.
        yield 20 * PINS + 2 * BATCHES, lambda: self.runs.find(None, None, 20)
        yield PINS, lambda: self.runs.failed(run)
        yield 20, lambda: self.runs.workers(run)
        yield BATCHES, lambda: self.runs.reopen(run, "me")
        yield KEYS, lambda: self.runs.forget_failed(run, moment)
        yield 2 * BATCHES, lambda: self.pruning.kept(tomorrow)
        yield 2 * BATCHES, lambda: self.pruning.next_day(None, tomorrow)
        for delete in (False, True):
            for table in GROWING:
                yield (
                    2 * BATCHES,
                    partial(self.pruning.piece, table, TODAY, b"", KEYS, delete=delete),
                )

    def of_people(self) -> Iterator[Call]:
        yield 1, self.status.nodes
        yield 1, self.status.cluster
        yield 1, self.status.handoffs
        yield 1, self.status.stuck_handoffs
        yield WORKERS, self.status.pulse
        yield from self.of_history()
        yield 1, self.inspection.settings
        yield KEYS, lambda: self.inspection.owners_of(range(KEYS))
        yield 1, lambda: self.inspection.token(500)
        yield BATCHES, lambda: self.inspection.task("id-5", TODAY)
        yield PINS, lambda: self.inspection.release(None, None, None, "me")
        yield PINS, lambda: self.inspection.release(["id-5"], None, YESTERDAY, "me")
        yield from self.of_steering()
        yield PINS, lambda: self.inspection.count_set_aside(PINS)
        yield 20, lambda: self.inspection.connected([f"w{number}" for number in range(20)])
        yield 1, lambda: self.bounds.set(20.0)
        yield 1, lambda: self.bounds.allow(15.0)
        yield 1, lambda: self.bounds.lagging("0/0")

    def of_steering(self) -> Iterator[Call]:
        async def there_and_back() -> None:
            for act in (self.steering.pause, self.steering.resume):
                await act("me")
            await self.steering.evict("w0", "me")
            await self.steering.allow("w0", "me")

        yield 1, there_and_back
        yield 1, self.status.pause
        yield 1, self.status.evicted

    def of_history(self) -> Iterator[Call]:
        history, link = HistoryStatements(cast(Any, self.each), self.queries), self.each
        yield 1, lambda: link.run(lambda to: history.record(cast(Any, to), "paused", by="me"))
        yield 20, lambda: history.events(20)
        yield self.many / 720, lambda: history.events(2 * KEYS, since_sec=3600)
        yield WORKERS, lambda: history.events(1, node="w7")
        yield 20, lambda: history.rebalances(20)
        yield VERSION, lambda: history.rebalances(20, since_sec=3600)
        yield 1, history.leader
        yield 20, lambda: history.terms(20)
        for most in (KEYS, 10):
            yield most, partial(history.forget, most, days=29)
            yield most, partial(history.forget, most, before=dt.date.max)
            yield most, partial(history.forget, most, days=31)
        yield self.many, lambda: history.count_before(dt.date.max)


def beat(worker: int) -> Beat:
    return Beat(f"w{worker}", uuid_of(worker), 0)


# == what they touch ===============================================================================


async def touched(tables: Tables, *more: str) -> list[tuple[float, Touched]]:
    """Every statement of every call, each with how many rows its call asked for; `more` is said in
    the sessions first."""
    connector = Connector(lambda _: tables.dsn, 60)
    connector.queries = tables.queries
    connector.context.channel = "sync_changes"
    told = []
    async with (
        Watched.open(connector, PLAN_EACH_TIME, *more) as each,
        Watched.open(connector, PLAN_ONCE, *more) as once,
    ):
        for asked, call in Calls(tables, connector, each, once).all():
            async with each.undone(), once.undone():
                await call()
            told += [(asked, one) for one in (*each.take(), *once.take())]
    return told


def too_much(told: Sequence[tuple[float, Touched]], many: int) -> list[Touched]:
    """Those that touched more than some steps of a plan need for what was asked for and what came
    of it, and for all workers."""
    return [
        one
        for asked, one in told
        if one.rows > STEPS * (asked + one.returned + WORKERS + (many if one.name in ALL else 0))
    ]


@pytest.mark.needs("timeline")
@pytest.mark.parametrize("work_mem", ["64kB", "4MB"])
async def test_what_a_statement_touches_is_what_it_is_asked_for(tables, state, work_mem):
    told = await touched(tables, f"SET work_mem = '{work_mem}'")
    assert not (found := too_much(told, tables.many)), "\n\n".join(map(str, found))
    missing = _statements() - {one.name for _, one in told} - ELSE.keys()
    assert not missing, f"tell here how they are called: {sorted(missing)}"
