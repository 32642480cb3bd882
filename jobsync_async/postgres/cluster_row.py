"""The one row about the cluster: what never changes in it, and whether a worker's settings fit."""

from __future__ import annotations

from typing import Any

from psycopg import errors

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import name_key
from jobsync_async.core.server_profile import Profile
from jobsync_async.errors import ConfigError, SchemaError
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.sql import LAYOUT, Queries

OLDEST_LAYOUT = 1
"""Workers that know this layout and no newer one may work beside this library on the tables that it
makes."""


def channel_of(schema: str, appname: str) -> str:
    """The channel on which a new cluster announces its changes: clusters of one prefix in several
    schemas have one each.

    That of ``public`` is the one that 0.1.0 used for all of them.
    """
    told_apart = "" if schema == "public" else f"_{name_key(schema).hex()[:8]}"
    return f"{appname}changes{told_apart}"


def settings(config: CoordinationConfig, channel: str, profile: Profile) -> dict[str, int | str]:
    """The columns of the cluster row that never change. Workers of 0.1.0 know one profile alone."""
    return {
        "schema_version": OLDEST_LAYOUT if profile == "timeline" else LAYOUT,
        "layout": LAYOUT,
        "total_tokens": config.total_tokens,
        "hash_function": config.hash_function,
        "channel": channel,
        "time_zone": config.time_zone,
    }


async def insert_cluster_row(
    connection: Connection, queries: Queries, config: CoordinationConfig
) -> None:
    """Make the row, unless it is there."""
    channel = channel_of(queries.schema, config.appname)
    values = settings(config, channel, queries.readings.profile)
    await connection.execute(
        queries["insert_cluster"], {**values, "cluster": queries.table("cluster")}
    )


async def check_cluster_row(
    connection: Connection, queries: Queries, config: CoordinationConfig, *, observe: bool
) -> tuple[str, str | None]:
    """See that the tables and the settings fit; the channel on which changes are announced, and the
    identity of the server that the cluster was begun on.

    Raises ConfigError or SchemaError where they do not.
    """
    row = await (await connection.execute(queries["read_settings"])).fetchone()
    if row is None and observe:
        raise SchemaError(
            f"the tables of {config.appname!r} are there, but no worker has ever started"
        )
    if row is None:  # the tables were made from the printed script: the first start adds the row
        await insert_cluster_row(connection, queries, config)
        row = await (await connection.execute(queries["read_settings"])).fetchone()
        assert row is not None
    if row.layout < LAYOUT:
        raise SchemaError(
            f"the tables are of layout {row.layout}, and this library needs {LAYOUT}: run "
            "`jobsync-async init`; older workers go on meanwhile"
        )
    if row.schema_version > LAYOUT:
        raise SchemaError(
            f"the tables are for layout {row.schema_version} and newer, and this library's newest "
            f"is {LAYOUT}; install the version of jobsync-async that the other workers run"
        )
    channel = str(row.channel or config.channel)
    if observe:
        return channel, row.server_identity
    if row.time_zone is None:
        row = await _set_time_zone(connection, queries, config)
    for name in ("total_tokens", "hash_function", "time_zone"):
        ours, theirs = getattr(config, name), getattr(row, name)
        if ours != theirs:
            raise ConfigError(
                f"{name} is {ours!r} here and {theirs!r} in the running cluster "
                f"{config.appname!r}; all workers must agree: change this setting, or use another "
                "appname for another cluster"
            )
    return channel, row.server_identity


async def _set_time_zone(
    connection: Connection, queries: Queries, config: CoordinationConfig
) -> Any:
    """Write the cluster's time zone, unless another start is faster; the settings that there are
    then."""
    try:
        await connection.execute(queries["set_time_zone"], {"time_zone": config.time_zone})
    except errors.InvalidParameterValue as error:
        raise ConfigError(
            f"the server does not know the time zone {config.time_zone!r}; its view "
            "pg_timezone_names shows those that it knows"
        ) from error
    return await (await connection.execute(queries["read_settings"])).fetchone()
