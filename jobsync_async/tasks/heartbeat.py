"""The heartbeat task: joins, proves life, extends the lease, and ends it when it must.

A lease counts from the moment *before* a heartbeat is sent, is extended only when its commit is
acknowledged, and never by an error. When it ends, everything held is lost; when a later heartbeat
succeeds, the next reading brings back what is still ours. A heartbeat that finds no row means that
this incarnation was expired: it drops everything first, and then joins anew.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from jobsync_async.core.lease import Beat, BeatWatch
from jobsync_async.core.neighbours import visible
from jobsync_async.core.rows import NameInUse, Neighbour
from jobsync_async.core.server_history import OldLeasesWait, ServerReading
from jobsync_async.core.server_profile import begun_otherwise, read_otherwise
from jobsync_async.errors import NodeNameTaken, StoreError, StoreUnavailable
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.process import known_dead
from jobsync_async.host.waiting import signalled
from jobsync_async.postgres.deaths import Deaths
from jobsync_async.postgres.failover import Failover
from jobsync_async.postgres.membership import Membership
from jobsync_async.tasks.outages import HEARTBEAT
from jobsync_async.tasks.worker import Worker

T = TypeVar("T")

_MOST_TRIES = 5


async def keep_beating(
    worker: Worker, membership: Membership, failover: Failover, deaths: Deaths
) -> None:
    """Send heartbeats for ever. When it has to join anew, raises NodeNameTaken if the name is
    another's by then, CoordinationError if it was evicted, and ConfigError if its timeout is above
    the cluster's bound."""
    log = WorkerLog(__name__, worker.identity.name)
    failures = 0
    while True:
        sent_at = worker.clock()
        try:
            alive = await beat_once(worker, membership)
            if not alive:
                log.warning("is not in the cluster any more and joins anew")
                worker.begin_incarnation("expired by the cluster, or its server is another one")
                worker.metrics.rejoins += 1
            worker.outages.succeeded(HEARTBEAT, sent_at)
            if not alive:
                await enter(worker, membership, failover, deaths)
                continue
        except StoreError as error:
            failures += 1
            chance = random.random()  # noqa: S311 - a jitter
            wait_sec = worker.outages.wait_after(HEARTBEAT, error, failures, chance, sent_at)
            worker.metrics.heartbeats_failed += 1
            await signalled(worker.beat_wanted, wait_sec)
            continue
        failures = 0
        beat_in_sec = worker.next_beat_in(random.random())  # noqa: S311
        await signalled(worker.beat_wanted, sent_at + beat_in_sec - worker.clock())


async def beat_once(worker: Worker, membership: Membership) -> bool:
    """Send one heartbeat; False when this incarnation is not in the cluster any more. Raises
    StoreUnavailable."""
    watch_all = worker.wants_all_beats()
    sent_at = worker.clock()
    answer = await membership.heartbeat(worker.identity, watch_all=watch_all, version=worker.seen)
    if answer is None:
        return False
    worker.beat_answered(sent_at, answer, watched_all=watch_all)
    return True


async def guard_lease(worker: Worker) -> None:
    """End the lease when its deadline passes, for ever. What asks the clock by itself does not
    depend on this."""
    while True:
        worker.lease_extended.clear()
        remaining = worker.lease.remaining(worker.clock())
        if remaining > 0:
            await asyncio.sleep(remaining)
            continue
        worker.check_lease()
        await worker.lease_extended.wait()


async def enter(worker: Worker, membership: Membership, failover: Failover, deaths: Deaths) -> None:
    """Adopt the history of a server, and join. Raises what `join` does, and StoreUnavailable after
    several tries."""
    await agree(worker, failover)
    await join(worker, membership, deaths)


async def agree(worker: Worker, failover: Failover) -> None:
    """Adopt the server's identity, if the cluster was begun on it; else wait until every lease from
    before is over, and begin it anew, unless somebody else does.

    The wait counts from when the answer arrived: whoever holds something sent his last heartbeat to
    the server before, which had ended by then. Where others may have gone on, on a history from
    before what this worker has seen, the row is first made unfit for all, and the wait begins after
    that. Raises StoreUnavailable after several tries.
    """
    log = WorkerLog(__name__, worker.identity.name)
    known, version = worker.history, worker.seen
    failover.adopt(None)
    waiting = OldLeasesWait(worker.config.heartbeat_timeout_sec, worker.bound)
    failures = 0
    while True:
        try:
            reading = await failover.read_server()
            history = reading.adoptable(known, version)
            if history is not None:
                failover.adopt(history)
                worker.adopt(history)
                return
            failures = 0
            unreadable = failover.unreadable(reading)
            other = read_otherwise(reading.recorded, reading.actual)
            if other is not None and not unreadable:
                raise begun_otherwise(other)
            if reading.agreed or unreadable:
                condemned = await failover.condemn(reading, known)
                if condemned:
                    log.warning(
                        "the server refuses what it was recognised by before"
                        if unreadable
                        else "the cluster's state is older than what this worker has seen"
                    )
                await asyncio.sleep(0 if condemned else worker.backoff.first_sec)
                continue
            if waiting.observe(reading, worker.clock()):
                _warn_of(log, reading, waiting.wait_sec)
            if waiting.remaining(worker.clock()) <= 0 and await failover.begin(
                reading, known, version, waiting.wait_sec
            ):
                log.warning("begins the cluster anew on this server: its tokens are free")
                continue
            wait_sec = min(max(0.01, waiting.remaining(worker.clock())), worker.backoff.most_sec)
        except StoreUnavailable:
            failures += 1
            if failures > _MOST_TRIES:
                raise
            wait_sec = worker.backoff.wait_sec(failures, random.random())  # noqa: S311 - a jitter
        await asyncio.sleep(wait_sec)


def _warn_of(log: WorkerLog, reading: ServerReading, wait_sec: float) -> None:
    log.warning(
        "PostgreSQL was failed over, restored or replaced (this is %s, the cluster was begun on "
        "%s): commits may be lost, so nobody acts for %g s",
        reading.actual,
        reading.recorded,
        wait_sec,
    )


async def join(worker: Worker, membership: Membership, deaths: Deaths) -> None:
    """Make the own row, as soon as the name is free.

    A name that another incarnation holds is taken over, with its tokens, once its beat was seen to
    stand still for its own timeout: so a worker that was killed and started again waits, and then
    moves nothing. If it ran on this host and its process is dead, nothing is waited for.

    Raises:
        NodeNameTaken: the other incarnation's beat moves.
        CoordinationError: the name was evicted.
        ConfigError: this worker's timeout is above the cluster's bound.
        StoreUnavailable: after several tries.
    """
    watch = BeatWatch()
    seen: Beat | None = None
    replace: Beat | None = None
    while True:
        refusal = await _retrying(
            worker, partial(membership.join, worker.identity, worker.announcement, replace=replace)
        )
        if refusal is None:
            return
        if dead := _died_here(worker, refusal):
            # What it had sent may still be carried out, and its last heartbeat move the beat: then
            # once more.
            await _retrying(worker, partial(deaths.end_sessions, [dead.session_tag]))
            replace = refusal.beat
            continue
        arrived = worker.clock()
        watch.observe({refusal.beat: refusal.times}, arrived)
        if seen is None:
            seen = refusal.beat
            timeout = refusal.times.timeout_sec
            text = (
                "another incarnation has this name (%s); it is replaced if it shows no life for "
                "%g s"
            )
            WorkerLog(__name__, worker.identity.name).info(
                text, refusal.holder, timeout, seconds=timeout
            )
        elif refusal.beat != seen:
            raise NodeNameTaken(worker.identity.name, refusal.holder)
        read_within_sec = min(worker.config.heartbeat_interval_sec, watch.read_within_sec)
        await asyncio.sleep(min(max(watch.next_due(arrived) - arrived, 0.01), read_within_sec))
        replace = seen if watch.stalled(worker.clock()) else None


def _died_here(worker: Worker, refusal: NameInUse) -> Neighbour | None:
    """Who has the name, if that is a worker of this host whose process is dead."""
    holder = refusal.neighbour
    if holder is None or holder.process is None or not visible(worker.announcement, holder):
        return None
    return holder if known_dead(holder.process) else None


async def _retrying(worker: Worker, call: Callable[[], Awaitable[T]]) -> T:
    for failures in range(1, _MOST_TRIES + 1):
        try:
            return await call()
        except StoreUnavailable:
            # a jitter
            await asyncio.sleep(worker.backoff.wait_sec(failures, random.random()))  # noqa: S311
    return await call()
