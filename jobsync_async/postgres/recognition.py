"""Finds out by what a server is recognised, and names what it refuses.

At most starts that takes no statement of its own: the first one on the connection reads an identity
by timeline, and the cluster's row says the same. Where something is refused, or the row was begun
by other readings, a start looks more closely. What is found is judged by
`core/server_profile.py`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from psycopg import errors

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.server_profile import (
    ANY_SERVER,
    FILE,
    POSITION,
    PROFILES,
    STARTED,
    SYSTEM,
    Readings,
    Refusal,
    decide,
    refused_meanwhile,
    shared_storage,
)
from jobsync_async.errors import StoreUnavailable
from jobsync_async.postgres.driver_errors import first_line
from jobsync_async.postgres.sql import Queries

if TYPE_CHECKING:
    from jobsync_async.postgres.connection import Connection, Connector

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REFUSED = (
    errors.InsufficientPrivilege,
    errors.UndefinedFunction,
    errors.FeatureNotSupported,
    errors.ObjectNotInPrerequisiteState,
)
# Of these, what is said by servers that are no plain PostgreSQL alone.
_OF_SERVERS = (errors.FeatureNotSupported, errors.ObjectNotInPrerequisiteState)
_ASKING = {SYSTEM: "ask_system", POSITION: "ask_position", FILE: "ask_file", STARTED: "ask_started"}


class Recognition(NamedTuple):
    """By what a server is recognised.

    Attributes:
        queries: the statements, which read that.
        evidence: what shows that its storage is shared; None where nothing does.
        timeline: whether it says its timeline.
    """

    queries: Queries
    evidence: str | None
    timeline: bool


# Whatever the role has set: what is refused would end the session.
_ERRORS_END_STATEMENTS = b"SELECT pg_catalog.set_config('exit_on_error', 'off', %s)"


async def recognise(
    connector: Connector, connection: Connection, schema: str, config: CoordinationConfig
) -> Queries:
    """Pin what the statements rely on, and find out by what the server is recognised: the
    statements that read that. Raises ConfigError or SchemaError where that cannot be found out."""
    queries = Queries(schema, config.appname, Readings(config.server_profile or "timeline"))
    await connection.execute(_ERRORS_END_STATEMENTS, [connector.pooled])
    try:
        if connector.pooled:
            async with connection.transaction():  # a savepoint: what is refused ends it alone
                await connection.execute(queries["read_identity"])
        await connector.pin(connection, queries)
    except _REFUSED:
        return (await look_closely(connector, connection, schema, config)).queries
    return queries


async def look_closely(
    connector: Connector, connection: Connection, schema: str, config: CoordinationConfig
) -> Recognition:
    """The same, from what the server refuses, what it shows of its kind, and what the cluster was
    begun with. That takes a dozen round trips, so each question has a limit of its own."""

    async def bounded(asked: Awaitable[T]) -> T:
        with connection.limited(connector.patience_sec):
            return await asked

    queries = Queries(schema, config.appname, ANY_SERVER)
    await bounded(connector.pin(connection, queries))  # from here on no name is a stranger's
    asked = [await bounded(_ask(connection, queries, function)) for function in _ASKING]
    refusals = [refusal for refusal in asked if refusal is not None]
    evidence = shared_storage(await bounded(_aurora_version(connection, queries)), refusals)
    recorded, here = await bounded(_recorded(connection, queries))
    if here is not None and SYSTEM not in {refusal.function for refusal in refusals}:
        readable = Queries(schema, config.appname, Readings("shared-storage"))
        recorded, here = await bounded(_recorded(connection, readable))
    decision = decide(config.server_profile, recorded, here or "", refusals, evidence)
    queries = Queries(schema, config.appname, decision.readings)
    await bounded(connector.pin(connection, queries))
    connector.context.unreadable = recorded if decision.replaces else None
    _tell(config, decision.readings, refusals, evidence)
    timeline = not {SYSTEM, POSITION, FILE} & {refusal.function for refusal in refusals}
    return Recognition(queries, evidence, timeline)


async def _ask(connection: Connection, queries: Queries, function: str) -> Refusal | None:
    """Call one of the functions."""
    try:
        async with connection.transaction():
            await connection.execute(queries[_ASKING[function]])
    except _REFUSED as error:
        by_rights = isinstance(error, errors.InsufficientPrivilege)
        return Refusal(function, first_line(error), by_rights)
    return None


async def _aurora_version(connection: Connection, queries: Queries) -> str | None:
    try:
        async with connection.transaction():
            row = await (await connection.execute(queries["ask_aurora"])).fetchone()
    except _REFUSED:
        return None
    return None if row is None else str(row.version)


async def _recorded(connection: Connection, queries: Queries) -> tuple[str | None, str | None]:
    """The identity in the cluster's row, and that of this server; both None where there is no
    row."""
    table = {"table": queries.table("cluster")}
    there: Any = await (await connection.execute(queries["table_exists"], table)).fetchone()
    if not there[0]:
        return None, None
    row = await (await connection.execute(queries["read_recorded"])).fetchone()
    return (None, None) if row is None else (row.recorded, row.actual)


def _tell(
    config: CoordinationConfig,
    readings: Readings,
    refusals: list[Refusal],
    evidence: str | None,
) -> None:
    profile = PROFILES[readings.profile]
    logger.info(
        "%s: this server is of the profile %s (%s): %s. Not recognised: %s",
        config.appname,
        profile.name,
        evidence or "as it was set, or as the cluster was begun",
        profile.failover,
        profile.misses,
        extra={"channel": config.channel},
    )
    if not readings.system:
        (said,) = [refusal.message for refusal in refusals if refusal.function == SYSTEM] or ["-"]
        logger.warning(
            "%s: this server does not say its system identifier (%s): another server, or a "
            "restored dump, is not told from it where the numbers of database and table are the "
            "same",
            config.appname,
            said,
            extra={"channel": config.channel},
        )


@asynccontextmanager
async def named_refusals(connection: Connection, queries: Queries) -> AsyncIterator[None]:
    """Where a statement fails because the server refuses what makes its identity, say so. Raises
    SchemaError; StoreUnavailable where it is refused no more."""
    try:
        yield
    except _REFUSED as error:
        asked = queries.readings.functions
        refusals = [refusal for name in asked if (refusal := await _ask(connection, queries, name))]
        if not refusals and isinstance(error, _OF_SERVERS):
            raise StoreUnavailable(f"{first_line(error)}; a moment later nothing was") from error
        if not refusals:
            raise
        raise refused_meanwhile(refusals, queries.readings) from error
