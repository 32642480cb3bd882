"""``failover="session"``: real processes that pretend to run on other machines. Observed times are
printed (pytest -s)."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from uuid import uuid4

import anyio
import pytest

from jobsync_async import CoordinationConfig, Job
from jobsync_async.embedded import EmbeddedPostgres
from tests.hands import hand
from tests.mortals import mortals

pytestmark = pytest.mark.needs("sessions")

# By the protocol two seconds, on an idle machine; a lease would take fifteen.
SOON_SEC = 4.0
LOCKS = (
    "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
    "WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.mode = 'ShareLock'"
)


@pytest.fixture
def config(make_config):
    return make_config(total_tokens=300, failover="session")


async def held(admin) -> int:
    return (await (await admin.execute(LOCKS)).fetchone())[0]


async def until_all_are_watched(*watchers: Job, least: int) -> None:
    """Until each has seen so many locks held: before that, it misses nobody."""
    with anyio.fail_after(20):
        while any(job.metrics.sessions_watched < least for job in watchers):
            await asyncio.sleep(0.01)


async def test_a_worker_that_dies_on_another_machine_is_replaced_within_two_seconds(config, admin):
    async with mortals(config) as workers, Job("here", config) as job:
        for name in ("b", "c"):
            await workers.start(name, boot_id=f"machine of {name}", failover="session")
        await until_all_are_watched(job, least=3)
        for name in ("b", "c"):
            killed_at = workers.kill(name)
            with anyio.fail_after(SOON_SEC):
                while len(job.my_tokens) + len(workers.owned()) < 300:
                    await asyncio.sleep(0.002)
            print(
                "killed elsewhere: every token owned again after "
                f"{time.monotonic() - killed_at:.3f} s"
            )
        assert job.metrics.sessions_expired == 2 and job.metrics.deaths_reported == 0


async def test_a_leader_that_dies_on_another_machine_is_replaced_within_two_seconds(config):
    async with mortals(config) as workers:
        await workers.start("leader", boot_id="its machine", failover="session")
        async with Job("next", config) as job:
            await until_all_are_watched(job, least=2)
            killed_at = workers.kill("leader")
            with anyio.fail_after(SOON_SEC):
                while len(job.my_tokens) < 300 or not job.am_i_leader():
                    await asyncio.sleep(0.002)
            print(
                "leader killed elsewhere: every token owned again after "
                f"{time.monotonic() - killed_at:.3f} s"
            )


async def test_a_worker_whose_sessions_are_ended_is_back_within_the_grace_and_keeps_its_tokens(
    config, admin
):
    async with Job("a", config) as a, Job("b", config) as b:
        await until_all_are_watched(a, least=2)
        with anyio.fail_after(5):
            while len(b.my_tokens) < 150:
                await asyncio.sleep(0.01)
        before, incarnation = b.my_tokens, b._worker.identity.incarnation
        for _ in range(2):
            heartbeats = b.metrics.heartbeats
            tag = b._engine.store.tag
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name "
                "LIKE %s",
                [f"%{tag}%"],
            )
            ended_at = time.monotonic()
            with anyio.fail_after(5):
                while b.metrics.heartbeats == heartbeats or await held(admin) < 2:
                    await asyncio.sleep(0.005)
            print(f"its lock was back after {time.monotonic() - ended_at:.3f} s")
            await asyncio.sleep(1.3)  # longer than the grace: what would happen has happened by now
        assert (b.my_tokens, b._worker.identity.incarnation) == (before, incarnation)
        assert a.metrics.sessions_expired == 0 and b.metrics.rejoins == 0


async def test_after_a_look_at_the_beats_that_failed_a_heartbeat_has_the_session_again(
    config, admin
):
    """The look uses the session of the heartbeats, whose end the others take for a death."""
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '% a heartbeat%' AND "
        "wait_event_type = 'Lock'"
    )
    async with Job("a", config) as a:
        await until_all_are_watched(a, least=1)
        heartbeats = a.metrics.heartbeats
        with anyio.fail_after(10):
            while a.metrics.heartbeats == heartbeats:
                await asyncio.sleep(0.005)
        async with admin.transaction():
            await admin.execute(f"LOCK TABLE {config.appname}node")
            # Sooner than the next heartbeat: it is the look.
            with anyio.fail_after(config.heartbeat_interval_sec - 1):
                while (look := await (await admin.execute(waiting)).fetchone()) is None:
                    await asyncio.sleep(0.005)
            heartbeats = a.metrics.heartbeats
            await admin.execute("SELECT pg_cancel_backend(%s)", look)
        with anyio.fail_after(1):
            while a.metrics.heartbeats == heartbeats or await held(admin) < 1:
                await asyncio.sleep(0.005)
        assert a.metrics.heartbeats_failed == a.metrics.rejoins == 0


async def test_a_restart_of_the_server_expires_nobody():
    with EmbeddedPostgres() as postgres:
        config = CoordinationConfig(dsn=postgres.dsn, total_tokens=300, failover="session")
        async with Job("a", config) as a, Job("b", config) as b:
            await until_all_are_watched(a, b, least=2)
            incarnations = [job._worker.identity.incarnation for job in (a, b)]
            tokens = [job.my_tokens for job in (a, b)]
            before = [job.metrics.heartbeats for job in (a, b)]
            await asyncio.to_thread(postgres.stop, "immediate")
            await asyncio.sleep(1.3)  # away for longer than the grace
            await asyncio.to_thread(postgres.start)
            with anyio.fail_after(10):
                while any(
                    job.metrics.heartbeats == number
                    for job, number in zip((a, b), before, strict=True)
                ):
                    await asyncio.sleep(0.01)
            await until_all_are_watched(a, b, least=2)
            await asyncio.sleep(1.3)  # longer than the grace
            assert [job.my_tokens for job in (a, b)] == tokens
            assert [job._worker.identity.incarnation for job in (a, b)] == incarnations
            assert a.metrics.sessions_expired + b.metrics.sessions_expired == 0


async def test_who_does_not_take_part_is_not_missed(config, make_config, admin):
    """A worker with failover="lease" holds no lock, and is left to the timeout."""
    async with Job("a", config) as a, Job("b", make_config(total_tokens=300)) as b:
        await until_all_are_watched(a, least=1)
        assert await held(admin) == 1
        await asyncio.sleep(1.5)  # longer than the grace
        assert a.metrics.sessions_expired == 0 and b.metrics.rejoins == 0


async def test_an_expiry_needs_the_lock_to_be_gone_the_beat_unmoved_and_the_ground_the_same(config):
    async with hand(config, "a") as a, hand(config, "b") as b, hand(config, "c") as c:
        for worker in (a, b):
            await worker.join()
            await worker.beat()
        await c.join()  # and never a heartbeat: no lock
        sessions = a.store.sessions
        reading = await sessions.read()
        seen = {session.beat.name: session for session in reading.sessions}
        assert {name: session.held for name, session in seen.items()} == {
            "a": True,
            "b": True,
            "c": False,
        }
        assert await sessions.expire(reading.watcher, [seen["b"]._replace(held=False)]) == [], (
            "its lock is held"
        )
        moved = seen["c"]._replace(beat=seen["c"].beat._replace(beat=7))
        assert await sessions.expire(reading.watcher, [moved]) == [], "its beat is another"
        another = seen["c"]._replace(beat=seen["c"].beat._replace(incarnation=b.me.incarnation))
        assert await sessions.expire(reading.watcher, [another]) == [], "its incarnation is another"
        later = dt.timedelta(microseconds=1)
        for watcher in (
            reading.watcher._replace(pid=reading.watcher.pid + 1),
            reading.watcher._replace(backend_start=reading.watcher.backend_start + later),
            reading.watcher._replace(server_started=reading.watcher.server_started + later),
        ):
            assert await sessions.expire(watcher, [seen["c"]]) == [], (
                "the server or the watcher's session is another"
            )
        assert await sessions.expire(reading.watcher, [seen["c"]]) == ["c"]
        assert await c.beat() is None


async def test_a_lock_follows_its_worker_to_the_next_session_and_the_next_incarnation(
    config, admin
):
    async with hand(config, "a") as a:
        await a.join()
        await a.beat()
        heartbeats = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE "
            "'% a heartbeat%'"
        )
        assert (await admin.execute(heartbeats)).rowcount == 1
        with anyio.fail_after(5):
            while (await a.store.sessions.read()).sessions[0].held:
                await asyncio.sleep(0.005)
        await a.beat()  # in a session of its own, for the one that has ended is not used
        assert (await a.store.sessions.read()).sessions[0].held
        await a.store.membership.leave(a.me)
        a.me = a.me._replace(incarnation=uuid4())
        await a.join()
        assert not (await a.store.sessions.read()).sessions[0].held
        await a.beat()
        assert (await a.store.sessions.read()).sessions[0].held
