"""Creates, checks and upgrades the tables.

The first start creates them; twenty at once do too, one after the other. A role without the right
to create finds them made by `jobsync-async init`, or by a database administrator from its
``--sql``.

Tables change in two halves, so that a cluster needs no outage for a new version of the library:

* *Expand* only adds. The first new worker that may, or `jobsync-async init`, does it while old
  workers go on. The cluster row's ``layout`` says how far the tables are expanded.
* *Contract* makes the tables unfit for old workers, when none is left. The cluster row's
  ``schema_version`` is the oldest layout that a worker may know: it is what workers of 0.1.0
  compare.

So a worker takes part where ``schema_version <= LAYOUT <= layout`` holds, `LAYOUT` being the newest
that it knows.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from psycopg import errors, sql

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.server_profile import readings_of
from jobsync_async.errors import ConfigError, SchemaError, StoreUnavailable
from jobsync_async.host.logs import WorkerLog
from jobsync_async.postgres.cluster_row import check_cluster_row, insert_cluster_row
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import TakesNoWrites, remedy, translated
from jobsync_async.postgres.encoding import codec_of
from jobsync_async.postgres.expanding import Changing, bounds
from jobsync_async.postgres.pooler import REFUSAL, UNNAMED, keeps_name, shares_sessions
from jobsync_async.postgres.recognition import look_closely, recognise
from jobsync_async.postgres.sql import LAYOUT, Creation, Queries

if TYPE_CHECKING:
    from jobsync_async.postgres.roles import Roles

T = TypeVar("T")
logger = logging.getLogger(__name__)

LEAST_SERVER = 130000
MOST_TO_INDEX = 64 * 2**20
"""Bytes of a table of which an index is made while workers use it. That takes a fraction of a
second, in which they cannot write there."""

_MOST_TRIES = 5


class Unreachable(StoreUnavailable):
    """There was no connection at the start.

    Attributes:
        reason: why, without what to look at.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(f"{reason} - {hint}")
        self.reason = reason


async def open_schema(
    connector: Connector,
    config: CoordinationConfig,
    *,
    upgrade: bool = False,
    observe: bool = False,
) -> Queries:
    """Find or create the tables and check that they fit; the connector's connections are set up for
    them from now on.

    Args:
        upgrade: also bring tables of an older version up to this one.
        observe: create nothing, and take the cluster as it is, for somebody who only looks.

    Raises:
        ConfigError: total_tokens, hash_function or time_zone disagree with the cluster's; or LISTEN
            cannot work on the way.
        SchemaError: no right to create the tables, or they are of another version, or the database
            cannot hold them.
        StoreUnavailable: PostgreSQL cannot be reached, or accepts no writes.
    """
    connector.pooled |= not config.notify
    try:
        connection = await connector.open("start")
    except TakesNoWrites:
        raise
    except StoreUnavailable as error:
        if remedy(error.__cause__):
            raise  # it says what to do
        hint = (
            "is it running there, and do host, port, dbname, user and password of the "
            "CoordinationConfig (or PGHOST, …) fit?"
        )
        raise Unreachable(str(error), hint) from error.__cause__
    try:
        if not connector.pooled and await shares_sessions(connector, connection):
            if not (upgrade or observe):
                raise ConfigError(REFUSAL)
            connector.pooled, connection.prepare_threshold = True, None
        with translated(), connection.limited(connector.patience_sec):
            async with connection.transaction() if connector.pooled else nullcontext():
                queries = connector.queries = await _set_up(
                    connector, connection, config, must_write=not observe
                )

        async def in_turn(work: Callable[[Connection], Awaitable[T]]) -> T:
            """In a transaction of its own, where sessions are shared."""
            with translated(), connection.limited(connector.patience_sec):
                return await connector.call(connection, work)

        make = partial(
            _make_tables,
            queries=queries,
            config=config,
            connector=connector,
            upgrade=upgrade,
            observe=observe,
        )
        behind = await _until_made(partial(in_turn, make))
        if behind:  # each step is a transaction of its own, and may have to wait
            with translated():
                async with _rights_named(connection, queries):
                    await Changing(connection, connector, queries, config).expand(LAYOUT)
        check = partial(check_cluster_row, queries=queries, config=config, observe=observe)
        connector.context.channel, recorded = await in_turn(check)
        if readings_of(recorded) not in (None, queries.readings) and (
            connector.context.unreadable is None
        ):  # rare: what the cluster was begun with comes first
            look = partial(look_closely, connector, schema=queries.schema, config=config)
            queries = connector.queries = (await in_turn(look)).queries
    finally:
        await connection.close()
    return queries


async def _until_made(make: Callable[[], Awaitable[bool | None]]) -> bool:
    """Make the tables, or wait until another start has. Whether they may have to be expanded."""
    tries = 0
    while True:
        try:
            behind = await make()
        except StoreUnavailable as error:
            tries += 1
            # Making them takes several statements, and each may take as long as the one that waits
            # for all of them.
            if tries == _MOST_TRIES or not isinstance(error.__cause__, errors.QueryCanceled):
                raise
            continue
        if behind is not None:
            return behind
        # Another start has made them: a transaction that begins after it is sure to see what it
        # did.


async def _make_tables(
    connection: Connection,
    *,
    queries: Queries,
    config: CoordinationConfig,
    connector: Connector,
    upgrade: bool,
    observe: bool,
) -> bool | None:
    """Make the tables that are missing. Whether they may have to be expanded; None when another
    start was about them, which is done when this returns."""
    if observe:
        await _require(connection, queries)
        return False
    if not upgrade and await _fits(connection, queries):
        return False
    await _refuse_predecessor(connection, queries)
    async with _rights_named(connection, queries):
        return await _create(connection, queries, config, bounds(connector, config)) or None


async def _set_up(
    connector: Connector, connection: Connection, config: CoordinationConfig, *, must_write: bool
) -> Queries:
    """Find out where the tables are, and pin what the statements rely on; from then on every name
    is PostgreSQL's own."""
    unlocked = Queries("pg_catalog", config.appname)
    if connector.pooled:
        await connection.execute(unlocked["read_committed"])
    schema = await _inspect(
        connection, unlocked, config, connector.context.by, must_write=must_write
    )
    connector.codec = codec_of(connection.info.parameter_status("server_encoding") or "UTF8")
    return await recognise(connector, connection, schema, config)


async def _inspect(
    connection: Connection,
    unlocked: Queries,
    config: CoordinationConfig,
    worker: str,
    *,
    must_write: bool,
) -> str:
    """The schema that the tables are in."""
    server = await (await connection.execute(unlocked["inspect_server"])).fetchone()
    assert server is not None
    if server.read_only and must_write:
        raise errors.ReadOnlySqlTransaction("the server is read-only")
    if server.version < LEAST_SERVER:
        raise SchemaError(
            f"PostgreSQL 13 or newer is needed, and this server is {server.version // 10000}: "
            "upgrade it, or use another server"
        )
    if server.encoding == "SQL_ASCII":
        raise SchemaError(
            "the database's encoding is SQL_ASCII, which keeps no track of characters, so that "
            "task ids could not be read back as they were written; create a database with ENCODING "
            "'UTF8'"
        )
    asked = connection.info.get_parameters().get("application_name", "")
    if must_write and not keeps_name(asked, server.name):
        log = WorkerLog(__name__, worker)
        text = "sessions have the name %r on this server, not their worker's: %s"
        log.warning(text, server.name, UNNAMED, channel=config.channel)
    schema = config.schema or server.schema
    if schema is None:
        raise SchemaError(
            "no schema on the connection's search_path exists; set schema= in the configuration, "
            "or create the schema"
        )
    return str(schema)


async def _exists(connection: Connection, queries: Queries) -> bool:
    return await _table_exists(connection, queries, queries.table("cluster"))


async def _fits(connection: Connection, queries: Queries) -> bool:
    """Whether the tables are there, and have all that this library needs, or are too new for it."""
    if not await _exists(connection, queries):
        return False
    row = await (await connection.execute(queries["read_settings"])).fetchone()
    # The tables were made from a printed script: what came last tells of which version it was.
    if row is None:
        return await _table_exists(connection, queries, queries.table("history"))
    return bool(row.layout >= LAYOUT or row.schema_version > LAYOUT)


async def _table_exists(connection: Connection, queries: Queries, name: str) -> bool:
    row = await (await connection.execute(queries["table_exists"], {"table": name})).fetchone()
    return bool(row and row[0])


async def _refuse_predecessor(connection: Connection, queries: Queries) -> None:
    """jobsync's tables have some of the names that ours have, and another shape. It has one that we
    do not."""
    name = sql.Identifier(queries.schema, f"{queries.appname}leader_lock").as_string()
    if await _table_exists(connection, queries, name):
        raise SchemaError(
            f"the tables {queries.appname!r} in schema {queries.schema!r} are jobsync's, which "
            "this library leaves alone; use another appname, such as 'jobs_', or another schema"
        )


async def _require(connection: Connection, queries: Queries) -> None:
    if not await _exists(connection, queries):
        raise SchemaError(
            f"there is no cluster {queries.appname!r} in schema {queries.schema!r} of database "
            f"{connection.info.dbname!r}: its first worker makes it, or `jobsync-async init`; if "
            "it is elsewhere, give its appname, schema or database"
        )


async def _create(
    connection: Connection, queries: Queries, config: CoordinationConfig, bounds: dict[str, str]
) -> bool:
    """Create the tables and indexes that are missing, in one transaction; those that are there are
    left alone. False when another start was about it."""
    rights = await (
        await connection.execute(queries["may_create"], {"schema": queries.schema})
    ).fetchone()
    if rights is None:
        raise SchemaError(
            f"schema {queries.schema!r} does not exist; create it, or set schema= to one that does"
        )
    values = {"key": f"{queries.schema}.{config.appname}", **bounds}
    alone = await _create_alone(connection, queries, config, values)
    if not alone:
        await connection.execute(queries["await_schema"], values)
    return alone


async def _create_alone(
    connection: Connection, queries: Queries, config: CoordinationConfig, values: dict[str, str]
) -> bool:
    """False, and nothing is done, while another start does it."""
    async with connection.transaction():
        row = await (await connection.execute(queries["lock_schema"], values)).fetchone()
        if row is None or not row[0]:
            return False
        await connection.execute(queries["bound_transaction"], values)
        there = await _exists(connection, queries)
        new = set[str]()
        for made in queries.creations():
            # To create an index that is there already would lock its table, which workers use.
            if not await _table_exists(connection, queries, made.name) and (
                made.name == made.table
                or made.table in new
                or await _may_be_indexed(connection, queries, made, config.channel)
            ):
                await connection.execute(made.statement)
                new.add(made.name)
        if not there:
            await insert_cluster_row(connection, queries, config)
    return True


async def _may_be_indexed(
    connection: Connection, queries: Queries, made: Creation, channel: str | None
) -> bool:
    size = {"table": made.table}
    row = await (await connection.execute(queries["size_of_table"], size)).fetchone()
    if row is not None and row.size <= MOST_TO_INDEX:
        return True
    logger.warning(
        "%s: the index %s is left out, for it would lock the large table %s for long; without it, "
        "commands and some looks take longer: to make it, put CONCURRENTLY into this: %s",
        queries.appname,
        made.name,
        made.table,
        made.statement.decode(),
        extra={"channel": channel},
    )
    return False


@asynccontextmanager
async def _rights_named(connection: Connection, queries: Queries) -> AsyncIterator[None]:
    """A role that may not make or change the tables is told who is to do it."""
    try:
        yield
    except errors.InsufficientPrivilege as error:
        if await _exists(connection, queries):
            raise SchemaError(
                f"the tables of {queries.appname!r} in schema {queries.schema!r} were made by an "
                "older version, and this role may not expand them; run `jobsync-async init` of "
                "this version as their owner, or have an administrator run what `jobsync-async "
                "init --sql` prints: older workers go on meanwhile"
            ) from error
        raise SchemaError(
            f"the tables of {queries.appname!r} are not in schema {queries.schema!r}, and this "
            "role may not create them; run `jobsync-async init` as a role that may, or have an "
            "administrator run what `jobsync-async init --sql` prints"
        ) from error


def creation_script(config: CoordinationConfig, roles: Roles | None = None) -> str:
    """The SQL that creates the tables, and the roles, for a database administrator to run. Does no
    I/O; `schema` None means ``public``."""
    queries = Queries(config.schema or "public", config.appname)
    tables = queries.create_tables.decode()
    if roles is None or not roles.given():
        return tables
    # a worker has no use for it
    from jobsync_async.postgres.roles import roles_script  # noqa: PLC0415

    return f"{tables}\n{roles_script(queries, roles)}"
