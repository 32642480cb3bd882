"""Looks for what would keep a cluster from working: each check is ok, a warning or a failure, and
says what to do.

It needs no tables and writes nothing. A check that cannot be made because an earlier one failed is
left out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

from psycopg import sql

from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import ConfigError, SchemaError, StoreError
from jobsync_async.operations import judgements as judge
from jobsync_async.operations.judgements import Check
from jobsync_async.operations.places import HOW, reached, tried
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import translated
from jobsync_async.postgres.listener import Listener
from jobsync_async.postgres.pooler import shares_sessions
from jobsync_async.postgres.recognition import look_closely
from jobsync_async.postgres.sql import TABLES, WORKER_WRITES, Queries
from jobsync_async.postgres.status import node_info

_ROUND_TRIPS = 5
# No lease depends on it, and a server that is slow is to be told so.
_PATIENCE_SEC = 10.0


async def examine(config: CoordinationConfig) -> list[Check]:
    """Make every check. Raises nothing that a check can tell."""
    return [check async for check in _checks(config)]


async def _checks(config: CoordinationConfig) -> AsyncIterator[Check]:
    connector = Connector(
        lambda purpose: config.conninfo(f"doctor {purpose}", reads_only=True), _PATIENCE_SEC
    )
    try:
        connection = await connector.open("calls")
    except StoreError as error:
        yield Check(
            "connection", "fail", f"{error}; tried {tried(config)}", f"{HOW}, or see pg_hba.conf"
        )
        return
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        patient = _Patient(config, connector, connection)
        checks = (
            patient.server, patient.speed, patient.push, patient.tables, patient.recognition
        )  # fmt: skip
        for check in checks:
            try:
                for found in await check():
                    yield found
            except StoreError as error:
                yield Check(check.__name__, "fail", str(error), "look at the server's log")
                if connection.closed:
                    return


def rights_asked(queries: Queries) -> dict[str, Any]:
    """The parameters of `doctor_rights`."""
    return {
        "schema": queries.schema,
        "tables": [queries.appname + table for table in TABLES],
        "needed": [" ".join(WORKER_WRITES[table]) for table in TABLES],
    }


class _Patient:
    """One cluster under examination."""

    def __init__(
        self, config: CoordinationConfig, connector: Connector, connection: Connection
    ) -> None:
        self._config = config
        self._connector = connector
        self._connection = connection
        self._queries = Queries(config.schema or "public", config.appname)
        self._through_pooler = False

    async def server(self) -> list[Check]:
        """What it is, and its settings."""
        (found,) = await self._fetch("doctor_server")
        info = self._connection.info
        self._through_pooler = found.backend_pid != info.backend_pid
        return [
            Check("connection", "ok", reached(self._connection, found)),
            judge.version(found.version, found.version_num),
            judge.writable(standby=found.standby, read_only=found.read_only),
            judge.encoding(found.encoding),
            judge.durability(fsync=found.fsync, full_page_writes=found.full_page_writes),
            judge.connections(found.connections_used, found.connections_most),
            judge.idle_sessions(found.idle_session_timeout),
            judge.session_names(
                info.get_parameters().get("application_name", ""), found.session_name
            ),
            judge.queue(found.queue_usage),
        ]

    async def recognition(self) -> list[Check]:
        """By what the server is recognised: in one transaction, for the session may be another's
        too."""
        connector = Connector(self._connector.conninfo, self._connector.limit_sec, pooled=True)
        try:
            with translated(), self._connection.limited(connector.patience_sec):
                async with self._connection.transaction():
                    found = await look_closely(
                        connector, self._connection, self._queries.schema, self._config
                    )
        except (ConfigError, SchemaError) as error:
            return [judge.unrecognised(error)]
        return [
            judge.recognition(
                found.queries.readings,
                found.evidence,
                timeline=found.timeline,
                setting=self._config.server_profile,
            )
        ]

    async def speed(self) -> list[Check]:
        """Round trips, against the lease, and the server's clock, against ours."""
        trips, offsets = [], []
        for _ in range(_ROUND_TRIPS):
            began, wall = time.perf_counter(), time.time()
            (found,) = await self._fetch("doctor_clock")
            trips.append(time.perf_counter() - began)
            offsets.append((trips[-1], found.seconds - wall - trips[-1] / 2))
        return [judge.lease(self._config, min(trips)), judge.clock(min(offsets)[1])]

    async def push(self) -> list[Check]:
        """A notification on a channel of its own, so that no worker is disturbed. None is tried
        where a session would go on listening for whoever has it next."""
        if not self._config.notify:
            return [judge.polling(self._config.poll_interval_sec)]
        took = None
        if not await shares_sessions(self._connector, self._connection):
            took = await self._heard_after()
        return [judge.push(took, through_pooler=self._through_pooler)]

    async def _heard_after(self) -> float | None:
        """Seconds from a NOTIFY to its arrival; None if it does not come."""
        channel = f"{self._config.appname}doctor_{uuid4().hex[:8]}"[-63:]
        self._connector.context.channel = channel
        listener = await Listener.open(self._connector)
        try:
            began = time.perf_counter()
            await self._execute(
                sql.SQL("SELECT pg_notify({}, '1')").format(sql.Literal(channel)).as_bytes()
            )
            heard = await listener.heard_in_time(1, self._config.statement_limit_sec)
            return time.perf_counter() - began if heard else None
        finally:
            await listener.close()

    async def tables(self) -> list[Check]:
        """Whether they are there, of this version, may be used, and are of a sound size."""
        await self._resolve_schema()
        asked = rights_asked(self._queries)
        schema, names = asked["schema"], asked["tables"]
        uses = await self._fetch("doctor_may_use", {"schema": schema})
        rights = await self._fetch("doctor_rights", asked)
        missing = sorted(set(names) - {right.table for right in rights})
        checks = [judge.tables(schema, missing, len(names), schema_exists=bool(uses))]
        if missing:
            return checks
        checks.append(judge.rights(rights, uses_schema=bool(uses[0].uses)))
        if checks[-1].status == "fail" and not all(right.reads for right in rights):
            return checks
        settings = await self._fetch("read_settings")
        checks.append(judge.settings(settings))
        if settings and checks[-1].status == "ok":
            nodes = [node_info(row) for row in await self._fetch("list_nodes")]
            checks.append(judge.versions(nodes, settings[0].schema_version))
        sizes = await self._fetch("doctor_sizes", {"schema": schema, "tables": names})
        checks.append(judge.bloat(self._config.appname, sizes))
        checks.append(judge.transactions(await self._fetch("doctor_transactions")))
        return checks

    async def _resolve_schema(self) -> None:
        if self._config.schema is None:
            (found,) = await self._fetch("inspect_server")
            self._queries = Queries(found.schema or "public", self._config.appname)

    async def _fetch(self, name: str, values: dict[str, Any] | None = None) -> list[Any]:
        with translated(), self._connection.limited(self._connector.patience_sec):
            # As text, extra_float_digits may round what it says of clocks.
            cursor = self._connection.cursor(binary=True)
            return await (await cursor.execute(self._queries[name], values)).fetchall()

    async def _execute(self, statement: bytes) -> None:
        with translated(), self._connection.limited(self._connector.patience_sec):
            await self._connection.execute(statement)
