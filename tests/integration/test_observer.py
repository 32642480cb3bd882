"""The observer, on running clusters: told by push, without rights to write, through cuts and
outages."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import anyio
import psycopg
import pytest
from psycopg import sql

from jobsync_async import (
    CoordinationConfig,
    Job,
    Observer,
    SchemaError,
    StoreUnavailable,
    UsageError,
)
from jobsync_async.cli.watch import _follow
from jobsync_async.postgres.observer import ObserverFeed
from jobsync_async.types import ClusterChange


class Table:
    """A routing table as a user would keep it, from an observer's changes."""

    def __init__(self, cluster: Observer) -> None:
        self._changes = cluster.changes()
        self.owners: dict[int, str | None] = {}
        self.items: list[ClusterChange] = []

    async def until(self, condition, seconds: float = 3) -> ClusterChange:
        """Take changes until the condition holds; the last one. By push: far sooner than the next
        look by the clock."""
        with anyio.fail_after(seconds):
            while True:
                change = await self._changes.__anext__()
                self.items.append(change)
                self.owners.update(change.moved)
                if condition():
                    return change

    def shares(self) -> dict[str | None, int]:
        owners = list(self.owners.values())
        return {owner: owners.count(owner) for owner in set(owners)}


@contextmanager
def read_only_role(dsn: str, name: str):
    """A role that may SELECT from the tables and nothing else, in sessions that cannot write at
    all."""
    role = sql.Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'looks'").format(role))
        try:
            connection.execute(
                sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(role)
            )
            connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            connection.execute(
                sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role)
            )
            yield {"user": name, "password": "looks"}
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def sessions_named(admin, name: str) -> list[str]:
    """Their names, less what a pooler adds."""
    cursor = await admin.execute(
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND "
        "application_name LIKE %s",
        [f"%{name}%"],
    )
    return [application.partition(" - ")[0] for (application,) in await cursor.fetchall()]


async def until_no_session_is_named(admin, name: str) -> None:
    """A server process takes a moment to notice that its client went."""
    with anyio.fail_after(5):
        while await sessions_named(admin, name):
            await asyncio.sleep(0.01)


@pytest.mark.needs("sessions")
async def test_a_role_that_may_only_select_sees_joins_moves_and_leaves_by_push(
    jobs, config, dsn, dsn_with, admin
):
    await jobs.start("anna", address="10.0.0.1:80")
    with read_only_role(dsn, "jobsync_test_looker") as login:
        async with Observer(CoordinationConfig(dsn=dsn_with(**login))) as cluster:
            table = Table(cluster)
            first = await table.until(lambda: True)
            assert first.is_initial
            assert table.shares() == {"anna": 120}
            assert dict(first.workers) == {"anna": "10.0.0.1:80"}

            (berta,) = await jobs.start("berta")
            await table.until(lambda: table.shares() == {"anna": 60, "berta": 60})
            assert {
                token for token, owner in table.owners.items() if owner == "berta"
            } == berta.my_tokens
            assert frozenset().union(*(change.joined for change in table.items[1:])) == {"berta"}

            owner = await cluster.owner_of("some task")
            # By the cluster's 120 tokens, not by 10,000.
            assert owner.node == table.owners[cluster.task_to_token("some task")]
            status = await cluster.status()
            assert {node["name"]: node["tokens"] for node in status["nodes"]} == {
                "anna": 60,
                "berta": 60,
            }

            await jobs.stop("anna")
            last = await table.until(lambda: table.shares() == {"berta": 120})
            assert last.leader == "berta"
            assert await (await admin.execute("SELECT name FROM sync_node")).fetchall() == [
                ("berta",)
            ]
            assert sorted(set(await sessions_named(admin, "observer"))) == [
                "jobsync_async observer calls",
                "jobsync_async observer listener",
            ]
    await until_no_session_is_named(admin, "observer")


@pytest.mark.needs("sessions")
async def test_one_connection_is_kept_and_it_listens(jobs, config, admin):
    await jobs.start("anna")
    async with Observer(config) as cluster:
        await Table(cluster).until(lambda: True)
        assert await sessions_named(admin, "observer") == ["jobsync_async observer listener"]


async def test_a_slow_reader_gets_one_merged_item_and_one_that_closes_ends(jobs, config):
    await jobs.start("anna")
    async with Observer(config) as cluster:
        fast, slow = Table(cluster), Table(cluster)
        await slow.until(lambda: True)
        await jobs.start("berta")
        await fast.until(lambda: fast.shares() == {"anna": 60, "berta": 60})
        await jobs.start("carla")
        await fast.until(lambda: fast.shares() == {"anna": 40, "berta": 40, "carla": 40})
        await jobs.stop("carla")
        await fast.until(lambda: fast.shares() == {"anna": 60, "berta": 60})
        change = await slow.until(lambda: True)
        assert slow.shares() == {"anna": 60, "berta": 60}
        # Carla came and went unseen.
        assert (change.joined, change.left) == (
            {"berta"},
            frozenset(),
        )
        async with cluster.changes() as changes:
            assert (await changes.__anext__()).is_initial
        assert [change async for change in changes] == []


@pytest.mark.parametrize(
    "times", [{}, {"heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": 1.5}]
)
async def test_a_connection_that_is_cut_is_replaced_and_what_happened_meanwhile_is_told(
    jobs, make_config, admin, times
):
    await jobs.start("anna")
    async with Observer(make_config(**times)) as cluster:
        table = Table(cluster)
        await table.until(lambda: True)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE "
            "'%observer listener%'"
        )
        await jobs.start("berta")
        await table.until(lambda: table.shares() == {"anna": 60, "berta": 60}, 3)
        assert cluster.connected


@pytest.mark.needs("sessions")
async def test_a_change_that_was_not_announced_is_found_by_the_clock_and_listening_is_renewed(
    make_config, admin, jobs
):
    await jobs.start("anna")
    async with Observer(
        make_config(heartbeat_interval_sec=0.2, heartbeat_timeout_sec=1)
    ) as cluster:
        table = Table(cluster)
        await table.until(lambda: True)
        before = await backend(admin)
        await admin.execute(
            "UPDATE sync_cluster SET version = version + 1, announced = version + 1"
        )
        await table.until(lambda: True, 3)
        with anyio.fail_after(5):
            while (await backend(admin)) in (before, None):
                await asyncio.sleep(0.02)


async def backend(admin) -> tuple[int, str] | None:
    """The listener's process and name, to which a pooler adds the client's port."""
    cursor = await admin.execute(
        "SELECT pid, application_name FROM pg_stat_activity"
        " WHERE application_name LIKE '%observer listener%'"
    )
    return await cursor.fetchone()


async def test_forged_and_junk_notifications_cause_few_looks(jobs, config, admin, monkeypatch):
    await jobs.start("anna")
    async with Observer(config) as cluster:
        table = Table(cluster)
        await table.until(lambda: True)
        looks = []
        original = ObserverFeed.read

        async def counted(feed, since):
            looks.append(since)
            return await original(feed, since)

        monkeypatch.setattr(ObserverFeed, "read", counted)
        await admin.execute(
            "SELECT pg_notify('sync_changes', 'junk ' || n) FROM generate_series(1, 5000) n"
        )
        for n in range(300):
            await admin.execute("SELECT pg_notify('sync_changes', %s)", [str(1_000_000 + n)])
        await jobs.start("berta")
        await table.until(lambda: table.shares() == {"anna": 60, "berta": 60}, 5)
        assert len(looks) <= 8


@pytest.mark.needs("sessions")
async def test_it_goes_on_after_every_session_of_the_server_was_ended(jobs, config, admin):
    await jobs.start("anna")
    async with Observer(config) as cluster:
        table = Table(cluster)
        await table.until(lambda: True)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await jobs.start("berta")
        await table.until(lambda: table.shares() == {"anna": 60, "berta": 60}, 10)
        assert (await cluster.status())["active_nodes"] == 2


class Gate:
    """A TCP proxy in front of the server that can be shut: connections break, and new ones are
    refused."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target
        their_reader, their_writer = await (
            asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            if host[0] == "/"
            else asyncio.open_connection(host, port)
        )
        self._writers |= {writer, their_writer}
        await asyncio.gather(self._copy(reader, their_writer), self._copy(their_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)


@pytest.mark.needs("plain connections")
async def test_it_goes_on_after_the_server_was_away_for_a_while(jobs, admin, dsn_with):
    await jobs.start("anna")
    gate = Gate(admin.info.host, admin.info.port)
    await gate.open()
    shown: list[str] = []

    class Screen:
        def show(self, seen):
            shown.append(f"{seen['active_nodes']} workers")

        def unavailable(self, error):
            shown.append("away")

    async with Observer(
        CoordinationConfig(dsn=dsn_with(host="127.0.0.1", port=str(gate.port)))
    ) as cluster:
        table = Table(cluster)
        await table.until(lambda: True)
        # Several connections, which will all break.
        await asyncio.gather(*(cluster.status() for _ in range(4)))
        await gate.shut()
        with anyio.fail_after(20):
            while cluster.connected:
                await asyncio.sleep(0.01)
        await gate.open()
        with anyio.fail_after(10):
            while not cluster.connected:
                await asyncio.sleep(0.01)
        # And none of them is handed out.
        await asyncio.gather(*(cluster.status() for _ in range(4)))

        watching = asyncio.ensure_future(_follow(cluster, Screen(), 0.2))
        await gate.shut()
        with anyio.fail_after(20):
            while cluster.connected or shown[-1:] != ["away"]:
                await asyncio.sleep(0.01)
        with pytest.raises(StoreUnavailable):
            await cluster.owner_of("x")
        await jobs.start("berta")
        await gate.open()
        await table.until(lambda: table.shares() == {"anna": 60, "berta": 60}, 10)
        assert cluster.connected
        with anyio.fail_after(10):
            while shown[-1:] != ["2 workers"]:
                await asyncio.sleep(0.01)
        watching.cancel()
        await asyncio.wait([watching])
    await gate.shut()


async def test_what_cannot_be_followed_any_more_reaches_the_reader_as_it_is(jobs, config, admin):
    await jobs.start("anna")
    with pytest.raises(SchemaError):
        async with Observer(config) as cluster:
            table = Table(cluster)
            await table.until(lambda: True)
            await jobs.crash("anna")  # which could not go on either
            await admin.execute("ALTER TABLE sync_node RENAME TO gone")
            try:
                await admin.execute("SELECT pg_notify('sync_changes', '999999')")
                await table.until(lambda: False)
            finally:
                await admin.execute("ALTER TABLE gone RENAME TO sync_node")


async def test_it_must_be_open_and_a_cluster_must_be_there(empty_dsn, config):
    with pytest.raises(UsageError):
        await Observer(config).status()
    with pytest.raises(UsageError):
        Observer(config).changes()
    with pytest.raises(SchemaError, match="no cluster"):
        async with Observer(CoordinationConfig(dsn=empty_dsn)):
            pass
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone() == (0,)


async def test_a_job_and_its_observer_show_the_same_cluster(config):
    async with Job("anna", config) as job, Observer(config) as cluster:
        ours, theirs = await job.get_coordination_status(), await cluster.status()
        moving = {"beat", "age_sec", "last_heartbeat", "heartbeat_age_sec"}
        for status in (ours, theirs):
            status["nodes"] = [
                {k: v for k, v in node.items() if k not in moving} for node in status["nodes"]
            ]
        assert theirs.items() <= ours.items()
