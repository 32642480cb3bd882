"""The heartbeat task: joins, proves life, extends the lease, and ends it when it must.

A lease counts from the moment *before* a heartbeat is sent, is extended only when its commit is acknowledged, and never by an
error. When it ends, everything held is lost; when a later heartbeat succeeds, the next reading brings back what is still ours.
A heartbeat that finds no row means that this incarnation was expired: it drops everything first, and then joins anew.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio

from jobsync_async.core.lease import Beat
from jobsync_async.errors import NodeNameTaken, StoreUnavailable
from jobsync_async.postgres.membership import Membership
from jobsync_async.tasks.worker import Worker

T = TypeVar("T")
logger = logging.getLogger(__name__)


async def keep_beating(worker: Worker, membership: Membership) -> None:
    """Send heartbeats for ever. Raises NodeNameTaken when the name is another's by the time it has to join anew."""
    failures = 0
    while True:
        sent_at = worker.clock()
        try:
            alive = await beat_once(worker, membership)
            if not alive:
                name = worker.identity.name
                logger.warning("%s was expired by the cluster and joins anew", name, extra={"node": name})
                worker.begin_incarnation()
                worker.metrics.rejoins += 1
                await join(worker, membership)
                continue
        except StoreUnavailable as error:
            failures += 1
            worker.metrics.heartbeats_failed += 1
            remaining = worker.lease.remaining(worker.clock())
            logger.warning(
                "%s: heartbeat failed (%d in a row, %.1f s of the lease left): %s",
                worker.identity.name,
                failures,
                remaining,
                error,
                extra={"node": worker.identity.name, "failures": failures, "lease_sec": remaining},
            )
            await _pause(worker, worker.backoff.wait_sec(failures, random.random()))  # noqa: S311 - a jitter
            continue
        failures = 0
        await _pause(worker, sent_at + worker.config.heartbeat_interval_sec - worker.clock())


async def beat_once(worker: Worker, membership: Membership) -> bool:
    """Send one heartbeat; False when this incarnation is not in the cluster any more. Raises StoreUnavailable."""
    watch_all = worker.wants_all_beats()
    sent_at = worker.clock()
    answer = await membership.heartbeat(worker.identity, watch_all=watch_all)
    if answer is None:
        return False
    worker.beat_answered(sent_at, answer, watched_all=watch_all)
    return True


async def guard_lease(worker: Worker) -> None:
    """End the lease when its deadline passes, for ever. What asks the clock by itself does not depend on this."""
    while True:
        worker.lease_extended.clear()
        remaining = worker.lease.remaining(worker.clock())
        if remaining > 0:
            await anyio.sleep(remaining)
            continue
        if worker.ownership.known:
            worker.stop_acting("no heartbeat was acknowledged for the length of the lease")
        await worker.lease_extended.wait()


async def join(worker: Worker, membership: Membership) -> None:
    """Make the own row, as soon as the name is free.

    A name that another incarnation holds is taken over, with its tokens, once its beat was seen to stand still for the
    heartbeat timeout: so a worker that was killed and started again waits, and then moves nothing.

    Raises:
        NodeNameTaken: the other incarnation's beat moves.
        StoreUnavailable: after several tries.
    """
    seen: Beat | None = None
    since = 0.0
    while True:
        now = worker.clock()
        still = seen is not None and now - since >= worker.config.heartbeat_timeout_sec
        refusal = await _retrying(
            worker, partial(membership.join, worker.identity, worker.announcement, replace=seen if still else None)
        )
        if refusal is None:
            return
        if seen is None:
            seen, since = refusal.beat, worker.clock()  # observed from when the answer arrived
            logger.info(
                "%s: the name is another incarnation's (%s); taking over if it shows no life for %g s",
                worker.identity.name,
                refusal.holder,
                worker.config.heartbeat_timeout_sec,
                extra={"node": worker.identity.name, "seconds": worker.config.heartbeat_timeout_sec},
            )
        elif refusal.beat != seen:
            raise NodeNameTaken(worker.identity.name, refusal.holder)
        wait = since + worker.config.heartbeat_timeout_sec - worker.clock()
        await anyio.sleep(min(max(wait, 0.01), worker.config.heartbeat_interval_sec))


async def _retrying(worker: Worker, call: Callable[[], Awaitable[T]]) -> T:
    for failures in range(1, 6):
        try:
            return await call()
        except StoreUnavailable:
            await anyio.sleep(worker.backoff.wait_sec(failures, random.random()))  # noqa: S311 - a jitter
    return await call()


async def _pause(worker: Worker, seconds: float) -> None:
    with anyio.move_on_after(max(0.0, seconds)):
        await worker.beat_wanted.wait()
    worker.beat_wanted.clear()
