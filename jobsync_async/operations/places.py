"""Where a command has looked for PostgreSQL, for people: all but the password."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, pq
from psycopg.conninfo import conninfo_to_dict

from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import StoreError
from jobsync_async.postgres.schema import Unreachable

HOW = "give another with --dsn or JOBSYNC_DSN"


def tried(config: CoordinationConfig) -> str:
    """Host, port, database and user, as libpq takes them from the configuration, its environment
    and its defaults."""
    given = conninfo_to_dict(config.conninfo("command"))
    options = {each.keyword.decode(): each.val for each in pq.Conninfo.get_defaults()}

    def value(name: str) -> str | None:
        default = options.get(name)
        return str(given[name]) if given.get(name) else default.decode() if default else None

    user, host = value("user"), value("host") or value("hostaddr")
    parts = {
        "service": value("service"),
        "host": host,
        "port": value("port"),
        "database": value("dbname") or user,
        "user": user,
    }
    named = ", ".join(f"{name} {part}" for name, part in parts.items() if part)
    return named if host else f"a local socket, {named}"


def reached(connection: AsyncConnection[Any], found: Any) -> str:
    """Where a connection leads, as what role, and whether it is encrypted.

    Args:
        found: the row of `doctor_server`.
    """
    info = connection.info
    encrypted = "TLS" if connection.pgconn.ssl_in_use else "not encrypted"
    return f"{found.role}@{info.host}:{info.port}/{found.database}, {encrypted}"


def why(error: StoreError) -> str:
    """What an error says, without what only callers in Python can look at."""
    return error.reason if isinstance(error, Unreachable) else str(error)


def placed(config: CoordinationConfig, error: StoreError) -> str:
    """An error's text, with where that was and how to name another place."""
    return f"{why(error)}; tried {tried(config)}: {HOW}"
