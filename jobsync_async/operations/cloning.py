"""Gives a copy of a cluster an identity of its own: a new generation, in which nobody owns anything
yet."""

from __future__ import annotations

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.rows import Announcement
from jobsync_async.core.server_history import ServerReading
from jobsync_async.host.clock import lease_clock
from jobsync_async.postgres.store import Store
from jobsync_async.tasks.heartbeat import agree
from jobsync_async.tasks.worker import Worker


async def begin_anew(store: Store, config: CoordinationConfig) -> tuple[int, int]:
    """Begin a generation on this server as after a failover; the one before and the one that is
    begun.

    First nobody may act any more, so that it is safe even where workers run: they drop everything,
    and every lease is waited for. Raises StoreUnavailable or SchemaError; nothing, or the first
    half, is done then, and the first worker does the second.
    """
    seen = await stop_all(store)
    worker = Worker(config, "command", Announcement(), lease_clock)
    await agree(worker, store.failover)
    assert worker.history is not None, "that is what agree() is for"
    return seen.generation, worker.history.generation


async def stop_all(store: Store) -> ServerReading:
    """Let nobody act on the cluster as it is; what was seen of it. Raises StoreUnavailable or
    SchemaError."""
    seen = await store.failover.read_server()
    while seen.agreed and not await store.failover.condemn(seen, None):
        seen = await store.failover.read_server()  # it has changed meanwhile
    return seen
