"""Loads the SQL files and puts the names of one cluster's tables into them, quoted once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from psycopg import sql

from jobsync_async.core.server_profile import BY_TIMELINE, UNKNOWN, Profile, Readings
from jobsync_async.errors import ConfigError

TABLES = (
    "cluster",
    "node",
    "evicted",
    "token",
    "lock",
    "claim",
    "set_aside",
    "audit",
    "batch",
    "batch_part",
    "rebalance",
    "history",
)
# What a worker writes, as grants.sql grants it.
WORKER_WRITES = {
    "cluster": ("INSERT", "UPDATE"),
    "node": ("INSERT", "UPDATE", "DELETE"),
    "evicted": ("INSERT", "UPDATE", "DELETE"),
    "token": ("INSERT", "UPDATE"),
    "lock": ("INSERT", "UPDATE", "DELETE"),
    "claim": ("INSERT", "UPDATE"),
    "set_aside": ("INSERT", "DELETE"),
    "audit": ("INSERT",),
    "batch": ("INSERT", "UPDATE"),
    "batch_part": ("INSERT", "UPDATE"),
    "rebalance": ("INSERT", "DELETE"),
    "history": ("INSERT", "DELETE"),
}
GROWING = {
    "claim": "task_key",
    "audit": "task_key",
    "batch_part": "batch_key",
    "batch": "batch_key",
}
"""Tables that grow by days, and by which key their rows of a day are told. In this order old days
are deleted: a run is forgotten last."""

_FOR_THE_SCRIPT = """
-- Workers may be running. So nothing here waits for long, and makes them wait: if it says "lock
-- timeout", run it again.
SET LOCAL lock_timeout = '200ms';
"""
INDEXES = (
    "node_owner_idx",
    "token_version_idx",
    "token_next_node_idx",
    "lock_token_id_idx",
    "lock_expires_at_idx",
    "claim_failed_idx",
    "history_at_idx",
    "history_version_idx",
    "history_term_idx",
    "history_gone_idx",
)

# See the head of queries.sql. What stands for lost commits, by profile. Recovery knows no timeline
# of its own; nothing can be written in it either. Microseconds, for no setting changes how a whole
# number is written.
_MARK: dict[Profile, str] = {
    "timeline": ", CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN "
    'pg_catalog."left"(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END',
    "shared-storage": "",
    "start-time": ", (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) "
    "OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8",
}


def _server(readings: Readings) -> str:
    """A server's identity. That by timeline is the one that 0.1.0 reads, without the profile's
    name."""
    name = "" if readings.profile == "timeline" else f"'{readings.profile}', "
    control, system = "", f"'{UNKNOWN}'"
    if readings.system:
        control, system = "pg_catalog.pg_control_system() s, ", "s.system_identifier"
    return (  # all parts are our own
        f"(SELECT pg_catalog.concat_ws('/', {name}{system}{_MARK[readings.profile]}, d.oid) "  # noqa: S608
        f"FROM {control}pg_catalog.pg_database d "
        "WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
    )


_SOUND = (
    "server_identity = coalesce(%(here)s::text, {server}) || '/' || tableoid AND "
    "(%(adopted_server)s::text IS NULL OR (server_identity = %(adopted_server)s::text AND "
    "generation = %(adopted_generation)s::bigint))"
)
# What a worker's row `n` says of its times, if the incarnation that it is now has written that; see
# the head of queries.sql.
_TIMEOUT = sql.SQL("CASE WHEN n.said_by = n.incarnation THEN n.timeout_sec ELSE c.longest_wait END")
_INTERVAL = sql.SQL("CASE WHEN n.said_by = n.incarnation THEN n.interval_sec END")
_SILENCE = sql.SQL(
    "greatest(0, extract(epoch FROM clock_timestamp() - n.last_heartbeat)::double precision)"
)
_PLACE = "width_bucket(t.token_id, %(token_ids)s::integer[])"
_ANNOUNCES = "%(channel)s::text IS NOT NULL"

LAYOUT = 2
"""The newest layout of the tables that this library knows."""

# What each layout of the tables adds to the one before, beyond new tables; each of them can be run
# again.
_EXPANSIONS = {2: "expand/0002.sql"}

# A CHECK's name is all that a worker of any version shows its user when the row that it makes is
# refused by it.
TOO_OLD = "this version of jobsync_async is too old for the cluster"

_FIELD = re.compile(r"\{(\w+)\}")
_HEADER = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_MADE = re.compile(r"CREATE (?:TABLE|INDEX) IF NOT EXISTS \{(\w+)\}")
_SUBJECT = re.compile(
    r"(?:CREATE TABLE IF NOT EXISTS|CREATE INDEX IF NOT EXISTS \{\w+\} ON|ALTER TABLE|UPDATE) "
    r"\{(\w+)\}"
)


class Creation(NamedTuple):
    """A statement that makes a table or an index, and the table that it is about. Names are quoted
    and qualified."""

    name: str
    table: str
    statement: bytes


class Queries:
    """Every statement of ``queries.sql`` and ``operators.sql`` for one schema and prefix, as bytes,
    by its name: ``queries["heartbeat"]``.

    Args:
        readings: what makes the server's identity.
    """

    def __init__(self, schema: str, appname: str, readings: Readings = BY_TIMELINE) -> None:
        # Drivers take it for the start of a parameter, the user's own in `Claim.fence_sql` too.
        if "%" in schema:
            raise ConfigError(
                f"the tables cannot be in schema {schema!r}: its name has a percent sign; use "
                "another schema"
            )
        self.schema = schema
        self.appname = appname
        self.readings = readings
        self._names: dict[str, Any] = {
            table: sql.Identifier(schema, appname + table) for table in TABLES
        }
        self._names |= {index: sql.Identifier(appname + index) for index in INDEXES}
        server = sql.SQL(_server(readings))
        self._names |= {
            "server": server,
            "sound": sql.SQL(_SOUND).format(server=server),
            "announces": sql.SQL(_ANNOUNCES),
        }
        self._names |= {"timeout": _TIMEOUT, "interval": _INTERVAL, "place": sql.SQL(_PLACE)}
        self._names |= {"receiver": sql.SQL(f"(%(receivers)s::integer[])[{_PLACE}]")}
        self._names |= {"silence": _SILENCE}
        self._names |= {"too_old": sql.Identifier(TOO_OLD)}
        self._statements: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        # Each when it is needed: a worker that starts needs few.
        if name not in self._statements:
            self._statements[name] = self._compose(_text(name))
        return self._statements[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_load("queries.sql") | _load("operators.sql"))

    @property
    def create_tables(self) -> bytes:
        """The script that makes the tables where they are missing, and expands those that are
        there: all of it or nothing."""
        script = "\n".join(_read(name) for name in ("schema.sql", *_EXPANSIONS.values()))
        return self._compose(f"BEGIN;\n{_FOR_THE_SCRIPT}\n{script}COMMIT;\n")

    def creations(self) -> list[Creation]:
        """The statements that make each table and index."""
        return [
            Creation(self._name(_MADE, part), self._name(_SUBJECT, part), self._compose(part))
            for part in split(_read("schema.sql"))
        ]

    def expansions(self, layout: int) -> list[tuple[str, bytes]]:
        """The statements that bring tables of a layout up to the newest, with the table that each
        of them changes."""
        parts = [
            part for to, name in _EXPANSIONS.items() if to > layout for part in split(_read(name))
        ]
        return [(self._name(_SUBJECT, part), self._compose(part)) for part in parts]

    def _name(self, pattern: re.Pattern[str], statement: str) -> str:
        found = pattern.match(statement)
        assert found is not None, f"a statement of another form: {statement:.60}"
        return sql.Identifier(self.schema, self.appname + found[1]).as_string()

    def table(self, name: str) -> str:
        """A table's quoted, qualified name."""
        identifier: sql.Identifier = self._names[name]
        return identifier.as_string()

    def grants(self, kind: str, role: str) -> list[bytes]:
        """The statements of ``grants.sql`` for one kind of role."""
        names = {"schema": sql.Identifier(self.schema), "role": sql.Identifier(role)}
        return self._statements_of(_load("grants.sql")[kind], **names)

    def by_days(self, name: str, table: str) -> bytes:
        """A statement of ``prune.sql`` for one of the tables that grow by days."""
        key = sql.Identifier(GROWING[table])
        return self._compose(_load("prune.sql")[name], table=self._names[table], key=key)

    def probe(self, name: str, **parts: sql.SQL) -> bytes:
        """A statement of ``certify.sql``."""
        return self._compose(_load("certify.sql")[name], **parts)

    def _compose(self, text: str, **names: sql.Composable) -> bytes:
        used = dict.fromkeys(_FIELD.findall(text))
        known = self._names | names
        values = {name: known.get(name) or self._part(name) for name in used}
        return sql.SQL(text).format(**values).as_bytes()

    def _part(self, name: str) -> sql.Composable:
        """A statement that is part of another."""
        return sql.SQL(self[name].decode())

    def _statements_of(self, script: str, **names: sql.Identifier) -> list[bytes]:
        # Split before any name is put in: a name may hold a semicolon, a line's end or what looks
        # like a comment.
        return [self._compose(part, **names) for part in split(script)]


@cache
def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


@cache
def _load(name: str) -> dict[str, str]:
    _, *parts = _HEADER.split(_read(name))
    return {
        part_name: _without_comments(text)
        for part_name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def _text(name: str) -> str:
    return _load("queries.sql").get(name) or _load("operators.sql")[name]


def split(script: str) -> list[str]:
    """The statements of one of our own scripts: none of them has a semicolon inside a line."""
    lines = [line.partition("--")[0].rstrip() for line in script.splitlines()]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]


def _without_comments(text: str) -> str:
    return "\n".join(
        line for line in text.splitlines() if not line.lstrip().startswith("--")
    ).strip()
