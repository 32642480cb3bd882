"""Where the simulation is put in: psycopg's place, the clocks', the operating system's, and
chance's."""

from __future__ import annotations

import random as global_random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import UUID

from anyio._backends import _asyncio as anyio_asyncio

from jobsync_async.postgres.driver_errors import translated
from jobsync_async.postgres.sql import Queries
from tests.simulation.driver import QUERIES, Connection, Pool, shut_down
from tests.simulation.scheduler import Ordered

if TYPE_CHECKING:
    from tests.simulation.hosts import Hosts


async def _open_schema(connector: Any, config: Any, **_: Any) -> Queries:
    """The tables are there: one connection finds that out."""
    connector.pooled |= not config.notify
    connection = await connector.open("start")
    try:
        with translated():
            await connection.send("read_settings", {})
    finally:
        await connection.close()
    connector.queries = QUERIES
    connector.context.channel = Connection.listens_to
    return QUERIES


@contextmanager
def installed(
    seed: object, now: Callable[[], float], clock: Callable[[], float], hosts: Hosts
) -> Iterator[None]:
    """In psycopg's place, for one run; chance comes from the seed, also where the library asks for
    it by itself."""
    chance = global_random.Random(f"{seed} of the library")
    state = global_random.getstate()
    scope_init = anyio_asyncio.CancelScope.__init__

    def init(scope: Any, *args: Any, **options: Any) -> None:
        scope_init(scope, *args, **options)
        scope._child_scopes = Ordered()

    with ExitStack() as stack:
        for target, replacement in (
            ("jobsync_async.postgres.connection.Connection", Connection),
            ("jobsync_async.postgres.connection.shut_down", shut_down),
            ("jobsync_async.postgres.listener.shut_down", shut_down),
            ("psycopg_pool.AsyncConnectionPool", Pool),
            ("jobsync_async.postgres.store.open_schema", _open_schema),
            ("jobsync_async.postgres.leader.time", SimpleNamespace(perf_counter=now)),
            ("jobsync_async.runtime.coordinator.lease_clock", clock),
            ("jobsync_async.postgres.store.os", SimpleNamespace(urandom=chance.randbytes)),
            ("jobsync_async.job.announce", hosts.announce),
            ("jobsync_async.work.fences.psycopg", SimpleNamespace(AsyncConnection=Connection)),
            ("jobsync_async.tasks.neighbours.why_unwatchable", lambda announcement: None),
            ("jobsync_async.tasks.neighbours.open_process", hosts.open_process),
            ("jobsync_async.tasks.neighbours.has_ended", hosts.has_ended),
            ("jobsync_async.tasks.neighbours.os", SimpleNamespace(close=hosts.close)),
            ("jobsync_async.tasks.heartbeat.known_dead", hosts.known_dead),
            (
                "jobsync_async.tasks.worker.uuid4",
                lambda: UUID(int=chance.getrandbits(128), version=4),
            ),
            ("anyio._backends._asyncio.CancelScope.__init__", init),
        ):
            stack.enter_context(patch(target, replacement))
        global_random.seed(f"{seed} of the jitters")
        try:
            yield
        finally:
            global_random.setstate(state)
