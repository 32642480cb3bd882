"""Least privilege: a role that can do what a worker needs, one that may only look, and one that may
delete old days.

A role that is missing is made as a group without a login: `GRANT app TO your_login` hands its
rights on. No password is set here; that is between the administrator and the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from psycopg import errors, sql

from jobsync_async.errors import ConfigError, SchemaError
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import translated
from jobsync_async.postgres.sql import Queries

_MAX_NAME_BYTES = 63
_RESERVED = ("public", "none")
_OPTIONS = {"worker": "role", "observer": "observer-role", "pruner": "prune-role"}
_WHAT = {
    "worker": "What a worker needs.",
    "observer": "What an observer may read.",
    "pruner": "What deletes old days.",
}


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles to grant to; None for none.

    Raises:
        ConfigError: a name that no role can have, or one name for several.
    """

    worker: str | None = None
    observer: str | None = None
    pruner: str | None = None

    def __post_init__(self) -> None:
        given = self.given()
        for kind, name in given:
            _check_name(_OPTIONS[kind], name)
        for (kind, name), (other, same) in combinations(given, 2):
            if name == same:
                raise ConfigError(
                    f"{_OPTIONS[kind]} and {_OPTIONS[other]} must be two roles: an observer may "
                    "only read, and a worker may delete nothing that was completed"
                )

    def given(self) -> list[tuple[str, str]]:
        """Pairs of kind (``"worker"``, ``"observer"`` or ``"pruner"``) and name."""
        return [
            (kind, name)
            for kind, name in (
                ("worker", self.worker),
                ("observer", self.observer),
                ("pruner", self.pruner),
            )
            if name is not None
        ]


def _check_name(option: str, name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= _MAX_NAME_BYTES or "\0" in name:
        raise ConfigError(
            f"{option} must be a role's name of 1 to {_MAX_NAME_BYTES} bytes; got {name!r:.100}"
        )
    if name in _RESERVED or name.startswith("pg_"):
        raise ConfigError(f"{option} cannot be {name!r}: PostgreSQL reserves that name")


def _creation(role: str) -> str:
    return sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)).as_string()


def roles_script(queries: Queries, roles: Roles) -> str:
    """The SQL that makes the roles where they are missing, and grants. Does no I/O."""
    lines: list[str] = []
    for kind, name in roles.given():
        exists = (
            sql.SQL("SELECT FROM pg_catalog.pg_roles WHERE rolname = {}")
            .format(sql.Literal(name))
            .as_string()
        )
        body = f"BEGIN IF NOT EXISTS ({exists}) THEN {_creation(name)}; END IF; END"
        # As a literal: a name cannot end it, as it could end a dollar quote.
        lines += [
            "",
            f"-- {_WHAT[kind]}",
            f"DO {_quoted(body)};",
        ]
        lines += [f"{statement.decode()};" for statement in queries.grants(kind, name)]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return sql.Literal(text).as_string().strip()


async def open_roles(connector: Connector, roles: Roles) -> None:
    """Make the roles that are missing, and grant; all or nothing. The tables must be there.

    Raises SchemaError when this role may not, or StoreUnavailable.
    """
    queries = connector.queries
    assert queries is not None, "the schema is opened first"

    async def grant(connection: Connection) -> None:
        async with connection.transaction():
            key = f"{queries.schema}.{queries.appname}"
            await connection.execute(queries["lock_schema"], {"key": key})
            for kind, name in roles.given():
                found = await connection.execute(queries["role_exists"], {"role": name})
                if await found.fetchone() is None:
                    await connection.execute(_creation(name).encode())
                for statement in queries.grants(kind, name):
                    await connection.execute(statement)

    connection = await connector.open("roles")
    try:
        with translated(), connection.limited(connector.patience_sec):
            await connector.call(connection, grant)
    except SchemaError as error:
        if not isinstance(error.__cause__, errors.InsufficientPrivilege):
            raise
        raise SchemaError(
            "this role may not make roles or grant rights on the tables; run `jobsync-async init` "
            "as their owner, with CREATEROLE if the role is missing, or have an administrator run "
            "what it prints with --sql"
        ) from error.__cause__
    finally:
        await connection.close()
