"""A worker whose process is seen dead is replaced at once: real processes, killed. Observed times
are printed (pytest -s)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import warnings
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest

from jobsync_async import Job, NodeNameTaken
from jobsync_async.core.neighbours import MOST_TOLD
from jobsync_async.core.rows import Identity, Neighbour, Process
from jobsync_async.host import process
from tests.hands import Hand, hand
from tests.mortals import mortals

# With the default times a death that nobody sees takes 15 s and more. On an idle machine these take
# a tenth of a second; the bound is for a busy one.
AT_ONCE_SEC = 5.0

FENCED_WAIT = 2026
"""Key of the advisory lock that the statement of a fenced transaction waits for."""

UNDER_WAY = """SELECT count(*) FROM pg_stat_activity
               WHERE query LIKE 'SELECT pg_advisory_lock%' AND wait_event = 'advisory'
                   AND datname = current_database()"""


@pytest.fixture
def config(make_config):
    return make_config(total_tokens=1_000, hash_function="modulo")


async def test_whoever_is_killed_is_replaced_at_once(config, admin):
    """A follower, the leader, and then two at once, the leader among them; with the 15 s that a
    lease would take."""
    async with mortals(config) as workers:
        for name in ("a", "b"):
            await workers.start(name)
        await workers.start("c", "d", "e")
        await workers.all_owned()
        for victims, who in (
            (("e",), "a follower"),
            (("a",), "the leader"),
            (("b", "c"), "the leader and another"),
        ):
            held = set().union(*(workers.living[name].owned for name in victims))
            killed_at = workers.kill(*victims)
            await workers.all_owned(AT_ONCE_SEC)
            print(
                f"{who} killed: every token owned again after "
                f"{workers.last_came() - killed_at:.3f} s"
            )
            came = [
                mortal.come_at[token]
                for token in held
                for mortal in workers.living.values()
                if token in mortal.owned
            ]
            assert len(came) == len(held)
            assert min(came) > killed_at, "nobody has a dead worker's token while it lives"
        # Of two killed at once, the leader's end may be seen and written before the other's, who
        # then led for a moment.
        assert await (await admin.execute("SELECT leader, term FROM sync_cluster")).fetchone() in (
            ("d", 3),
            ("d", 4),
        )
        rows = await (
            await admin.execute("SELECT reason FROM sync_rebalance ORDER BY version")
        ).fetchall()
        died = {
            name
            for (reason,) in rows
            for part in reason.split("; ")
            if part.endswith(" died")
            for name in part[:-5].split(", ")
        }
        assert died == {"a", "b", "c", "e"}, (
            f"the history names all who died, also when it was the leader: {rows}"
        )


async def test_a_killed_worker_that_holds_a_fence_in_a_statement_keeps_that_token_alone_until_it_ends(  # noqa: E501
    config, admin
):
    async with mortals(config) as workers:
        await workers.start("a")
        await workers.start("c")
        await admin.execute("SELECT pg_advisory_lock(%s)", [FENCED_WAIT])
        await workers.start("b", fenced_wait=FENCED_WAIT)
        await workers.until(lambda: workers.living["b"].fenced is not None)
        fenced = workers.living["b"].fenced
        async with await psycopg.AsyncConnection.connect(config.dsn, autocommit=True) as looking:
            with anyio.fail_after(5):  # it is about to send the statement
                while await (await looking.execute(UNDER_WAY)).fetchone() != (1,):
                    await asyncio.sleep(0.005)
            killed_at = workers.kill("b")
            await workers.all_owned(AT_ONCE_SEC, but=1)
            print(f"others after {workers.last_came() - killed_at:.3f} s")
            assert fenced not in workers.owned()
            assert await (await looking.execute(UNDER_WAY)).fetchone() == (1,), (
                "its statement runs, its lock holds"
            )
        await admin.execute("SELECT pg_advisory_unlock(%s)", [FENCED_WAIT])
        ended_at = time.monotonic()
        await workers.all_owned(20)
        print(f"the fenced token {workers.last_came() - ended_at:.3f} s after the statement")


@pytest.mark.needs("names")
async def test_what_a_killed_leader_left_waiting_in_a_transaction_is_ended(
    config, admin, direct_dsn
):
    """It waits for a lock, with the cluster's row locked: nobody could write anything until its
    statement's time is over."""
    async with mortals(config) as workers:
        await workers.start("a")
        await workers.start("b")
        await workers.all_owned()
        tag = (
            await (
                await admin.execute("SELECT session_tag FROM sync_node WHERE name = 'a'")
            ).fetchone()
        )[0]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s AND "
            "wait_event_type = 'Lock'"
        )
        there = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s"
        async with await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as looking:
            async with admin.transaction():
                await admin.execute("LOCK TABLE sync_rebalance IN SHARE MODE")
                workers_starting = asyncio.ensure_future(workers.start("c"))
                with anyio.fail_after(15):
                    while await (await looking.execute(waiting, [f"%{tag}%"])).fetchone() == (0,):
                        await asyncio.sleep(0.005)
                killed_at = workers.kill("a")
                with anyio.fail_after(AT_ONCE_SEC):
                    while await (await looking.execute(there, [f"%{tag}%"])).fetchone() != (0,):
                        await asyncio.sleep(0.005)
                ended_after = time.monotonic() - killed_at
                with anyio.fail_after(AT_ONCE_SEC):
                    while await (
                        await looking.execute("SELECT count(*) FROM sync_node WHERE name = 'a'")
                    ).fetchone() != (0,):
                        await asyncio.sleep(0.005)
        assert ended_after < config.bulk_limit_sec - 0.5, (
            "sooner than the server would have ended the statement"
        )
        await workers_starting
        await workers.all_owned()
        print(
            f"its sessions were ended after {ended_after:.3f} s, owned again after "
            f"{workers.last_came() - killed_at:.3f} s"
        )


async def test_a_report_counts_only_for_the_very_start_in_the_very_process_that_was_seen_dead(
    config, admin
):
    async with hand(config, "a") as a, hand(config, "b") as b:
        await a.join()
        said = process.announce(1.0, None)._replace(session_tag="no session has this tag")
        assert await b.store.membership.join(b.me, said) is None
        version = (await b.read()).version
        row = Neighbour(
            "b",
            b.me.incarnation,
            said.boot_id,
            said.pid_namespace,
            said.host,
            Process(said.pid, said.process_started),
            said.session_tag,
        )
        for wrong in (
            {"name": "a"},
            {"incarnation": a.me.incarnation},
            {"process": Process(said.pid, said.process_started + 1)},
            {"process": Process(said.pid + 1, said.process_started)},
            {"boot_id": "another"},
            {"namespace": "another"},
        ):
            assert await a.store.deaths.report([row._replace(**wrong)]) == []
        assert await b.beat() is not None and (await b.read()).version == version
        assert await a.store.deaths.report([row]) == ["b"]
        assert await b.beat() is None
        assert await a.store.deaths.report([row]) == [], "reporting again does nothing"
        assert (await a.read()).version == version + 1


async def _join_in_other_processes(
    hand: Hand, admin: psycopg.AsyncConnection[Any], count: int
) -> None:
    """Workers older than `hand`, in processes that had this one's number in the past: dead, for
    whoever looks."""
    said = process.announce(1.0, None)
    for number in range(count):
        other = Identity(f"other{number}", uuid4())
        await hand.store.membership.join(other, said._replace(process_started=number))
    await hand.store.membership.join(hand.me, said)


async def test_a_worker_is_told_of_the_next_in_the_ring_and_of_none_in_its_own_process(
    config, admin
):
    async with hand(config, "me") as me:
        await _join_in_other_processes(me, admin, 40)
        for name in ("same1", "same2"):
            await me.store.membership.join(Identity(name, uuid4()), process.announce(1.0, None))
        told = [neighbour.name for neighbour in (await me.read()).neighbours]
        assert told == [*(f"other{number}" for number in range(MOST_TOLD - 1)), "me"]
        assert (await me.read()).neighbours is None, "they are told once"
        youngest = Identity("young", uuid4())
        await me.store.membership.join(
            youngest, process.announce(1.0, None)._replace(process_started=99)
        )
        told = [neighbour.name for neighbour in (await me.read()).neighbours]
        assert told == [*(f"other{number}" for number in range(MOST_TOLD - 2)), "me", "young"], (
            "after me in age comes first"
        )


async def test_more_deaths_than_a_worker_is_told_of_are_found_in_turn(config, admin):
    async with hand(config, "me") as me:
        await _join_in_other_processes(me, admin, 2 * MOST_TOLD + 5)
        await me.store.membership.leave(me.me)  # it would lead, and does nothing by itself
        async with Job("alive", config) as job:
            with anyio.fail_after(10):
                while await nodes(admin) != ["alive"]:
                    await asyncio.sleep(0.01)
            assert job.metrics.deaths_reported == 2 * MOST_TOLD + 5


async def nodes(admin: psycopg.AsyncConnection[Any]) -> list[str]:
    return [
        name
        for (name,) in await (
            await admin.execute("SELECT name FROM sync_node ORDER BY name")
        ).fetchall()
    ]


async def test_a_dead_leader_that_is_reported_is_replaced_in_the_same_transaction(config, admin):
    async with hand(config, "a") as a, hand(config, "b") as b:
        said = process.announce(1.0, None)
        assert await a.store.membership.join(a.me, said) is None
        await b.join()
        await a.lead()
        before = await a.read()
        started = Process(said.pid, said.process_started)
        row = Neighbour(
            "a", a.me.incarnation, said.boot_id, said.pid_namespace, said.host, started, None
        )
        assert await b.store.deaths.report([row]) == ["a"]
        after = await b.read()
        assert (after.leader, after.term) == (b.me.incarnation, before.term + 1)
        assert (
            await a.store.leading.rebalance(a.me, before.term, (), -1, -1, lambda reading: None)
            is None
        )
        await b.lead()
        assert len(await b.mine()) == 1_000


async def test_a_restart_under_the_same_name_takes_over_a_dead_workers_tokens_at_once(
    config, admin
):
    """Nobody on its host could see it die: the other worker runs elsewhere."""
    async with mortals(config) as workers:
        await workers.start("elsewhere", boot_id="another machine")
        await workers.start("b")
        await workers.all_owned()
        before = workers.living["b"].owned
        workers.kill("b")
        started_at = time.monotonic()
        async with Job("b", config) as heir:
            took_sec = time.monotonic() - started_at
            print(f"its name and tokens were taken over after {took_sec:.3f} s")
            assert took_sec < AT_ONCE_SEC
            assert heir.my_tokens == before
            lowest = await (
                await admin.execute(
                    "SELECT min(epoch & 4294967295) FROM sync_token WHERE node = 'b'"
                )
            ).fetchone()
            assert lowest[0] >= 3, "the dead incarnation's fences do not hold any more"
            assert workers.living["elsewhere"].owned.isdisjoint(before)


async def test_a_name_whose_holder_lives_on_this_host_is_not_taken_over(make_config, admin):
    config = make_config(total_tokens=100, heartbeat_interval_sec=0.3, heartbeat_timeout_sec=1.5)
    async with mortals(config) as workers:
        await workers.start("b")
        with pytest.raises(NodeNameTaken):
            await Job("b", config).start()
        await workers.all_owned()


async def test_where_processes_cannot_be_watched_it_says_so_once_and_waits_for_the_timeout(
    make_config, monkeypatch, caplog
):
    def refused(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(process, "_pidfd_open", refused)
    config = make_config(total_tokens=100, heartbeat_interval_sec=0.3, heartbeat_timeout_sec=1.5)
    async with mortals(config) as workers, Job("blind", config) as job:
        await workers.start("b")
        killed_at = workers.kill("b")
        with anyio.fail_after(10):
            while len(job.my_tokens) < 100:
                await asyncio.sleep(0.01)
        taken_after = time.monotonic() - killed_at
        assert taken_after >= 1.5 - 0.3, (
            "by the lease's rules: its last heartbeat was up to an interval ago"
        )
        assert job.metrics.nodes_expired == 1 and job.metrics.deaths_reported == 0
        said = [
            record
            for record in caplog.records
            if "cannot watch each other's processes" in record.getMessage()
        ]
        assert [record.levelno for record in said] == [logging.INFO]


async def test_a_worker_in_another_namespace_is_named_once_and_left_to_the_timeout(
    config, monkeypatch, caplog
):
    async with Job("here", config) as job:
        monkeypatch.setattr(process, "_namespace", lambda: "pid:[1] time:[1]")
        for name in ("x", "y"):
            async with Job(name, config):
                with anyio.fail_after(5):
                    while {n.name for n in job._worker.neighbours} != {"here", name}:
                        await asyncio.sleep(0.01)
        said = [
            r
            for r in caplog.records
            if r.getMessage().startswith(
                "here: some workers on this machine have another namespace"
            )
        ]
        assert len(said) == 1


async def test_several_jobs_of_one_process_watch_others_and_never_themselves(config):
    async with mortals(config) as workers, Job("m1", config) as m1:
        await workers.start("b")
        async with Job("m2", config) as m2, Job("m3", config) as m3:
            with anyio.fail_after(10):
                while (
                    sum(len(job.my_tokens) for job in (m1, m2, m3)) + len(workers.owned()) != 1_000
                ):
                    await asyncio.sleep(0.01)
            workers.kill("b")
            with anyio.fail_after(AT_ONCE_SEC):
                while sum(len(job.my_tokens) for job in (m1, m2, m3)) != 1_000:
                    await asyncio.sleep(0.01)
            reported = [job.metrics.deaths_reported for job in (m1, m2, m3)]
            assert sum(reported) == 1, reported


async def test_a_forked_child_holds_nothing_while_its_parent_goes_on(config):
    async with Job("parent", config) as job, job.claim(7) as claim:
        with warnings.catch_warnings():
            # Threads and fork: this child does nothing but look.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os._exit(bool(job.my_tokens) * 1 + claim.valid * 4 + job.am_i_healthy() * 8)
        status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status[1]) == 0
        assert len(job.my_tokens) == 1_000 and claim.valid
