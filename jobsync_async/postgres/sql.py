"""Loads the SQL files and puts the names of one cluster's tables into them, quoted once."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from psycopg import sql

TABLES = ("cluster", "node", "token", "lock", "claim", "audit", "rebalance")
INDEXES = ("token_version_idx", "token_next_node_idx", "lock_token_id_idx")

# See the head of queries.sql. Recovery knows no timeline of its own; nothing can be written in it either.
_SERVER = sql.SQL(
    "(SELECT concat_ws('/', s.system_identifier, CASE WHEN NOT pg_is_in_recovery() THEN "
    "left(pg_walfile_name(pg_current_wal_lsn()), 8) END, d.oid) "
    "FROM pg_control_system() s, pg_database d WHERE d.datname = current_database())"
)
_SOUND = sql.SQL(
    "server_identity = coalesce(%(here)s::text, {}) || '/' || tableoid AND (%(basis_server)s::text IS NULL "
    "OR (server_identity = %(basis_server)s::text AND generation = %(basis_generation)s::bigint))"
).format(_SERVER)

_HEADER = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


class Queries:
    """Every statement of ``queries.sql`` and ``operators.sql`` for one schema and prefix, as bytes, by its name:
    ``queries["heartbeat"]``."""

    def __init__(self, schema: str, appname: str) -> None:
        self.schema = schema
        self.appname = appname
        self._names: dict[str, Any] = {table: sql.Identifier(schema, appname + table) for table in TABLES}
        self._names |= {index: sql.Identifier(appname + index) for index in INDEXES}
        self._names |= {"server": _SERVER, "sound": _SOUND}
        self._statements = {name: self._compose(text) for name, text in _load().items()}
        self.create_tables = self._compose(_read("schema.sql"))

    def __getitem__(self, name: str) -> bytes:
        return self._statements[name]

    def migration(self, version: int) -> bytes:
        """The script that takes the tables from the version before to `version`."""
        return self._compose(_read(f"migrations/{version:04}.sql"))

    def table(self, name: str) -> str:
        """A table's quoted, qualified name."""
        identifier: sql.Identifier = self._names[name]
        return identifier.as_string()

    def _compose(self, text: str) -> bytes:
        return sql.SQL(text).format(**self._names).as_bytes()


@cache
def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


@cache
def _load() -> dict[str, str]:
    statements: dict[str, str] = {}
    for name in ("queries.sql", "operators.sql"):
        _, *parts = _HEADER.split(_read(name))
        statements |= {part_name: _without_comments(text) for part_name, text in zip(parts[::2], parts[1::2], strict=True)}
    return statements


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("--")).strip()
