"""Removes what a certification made, however that ends.

It is a process of its own, which begins when its standard input ends: that is so when whoever
certifies is done, and when that was killed. It holds one connection, on which one transaction is
open for as long as the certification lasts. That holds a lock that names the tables. So whoever
finds such tables, and gets the lock, knows that nobody uses them any more: the next certification
removes what is left when both processes were killed.

A lock of a transaction, not of a session: that works through a pooler in transaction mode, too. An
open transaction that has no snapshot keeps vacuum from nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from jobsync_async.host.orders import StartOrders
from jobsync_async.operations.certify.certificate import PREFIX
from jobsync_async.operations.certify.figures import Left
from jobsync_async.postgres.sql import TABLES

_OWN = re.compile(rf"{PREFIX}[0-9a-f]{{12}}_", re.ASCII)
_WORKER = re.compile(r"[0-9a-f]{12}-[a-z]+", re.ASCII)
_WITHIN_SEC = 15.0
_SESSIONS_WITHIN_SEC = 3.0
_AGAIN_SEC = 0.2
_LOCK_MS = "2000"

_TABLES_OF = """
SELECT c.relname FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE n.nspname OPERATOR(pg_catalog.=) %s
  AND pg_catalog.starts_with(c.relname::pg_catalog.text, %s)
  AND c.relkind OPERATOR(pg_catalog.=) 'r'
"""
_HOLD = "SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(%s, 0))"
_SET = """
SELECT pg_catalog.count(pg_catalog.set_config(name, value, true)) FROM (VALUES
    ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'),
    ('transaction_timeout', '0'), ('statement_timeout', '0'), ('lock_timeout', %s)
) AS settings (name, value) WHERE pg_catalog.current_setting(name, true) IS NOT NULL
"""
_SESSIONS = """
SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
WHERE pg_catalog.strpos(application_name, %s) OPERATOR(pg_catalog.>) 0
  AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
"""
_DELETES = """
SELECT pg_catalog.has_table_privilege(c.oid, 'DELETE') FROM pg_catalog.pg_class c
WHERE c.oid OPERATOR(pg_catalog.=) %s::pg_catalog.regclass
"""


class Taken(Exception):
    """Somebody else uses the tables; the message says who."""


@dataclass(frozen=True)
class Duty(StartOrders):
    """What is to be removed.

    Attributes:
        conninfo: how to connect; holds the password.
        prefix: the tables'.
        keep: they are somebody else's: only their rows are deleted.
        mark: in the names of all sessions of the run; empty where these cannot be told.
    """

    VARIABLE = "JOBSYNC_ASYNC_CERTIFY"

    conninfo: str
    schema: str
    prefix: str
    keep: bool
    mark: str


class Janitor:
    """The connection, and the lock that says that the run lives."""

    def __init__(self, duty: Duty) -> None:
        self._duty = duty
        self._connection: psycopg.Connection[Any] | None = None

    def hold(self) -> None:
        """Take the lock. Raises Taken, or what the driver raises."""
        connection = self._connection = self._open()
        connection.execute(_SET, [_LOCK_MS])
        if not self._lock(connection, self._duty.prefix):
            self.close()
            raise Taken("another certification")

    def remove_earlier(self) -> tuple[int, list[str]]:
        """Remove what earlier runs left; how many tables, and those that this role may not drop.
        Raises Taken where workers use the tables, which are not ours then."""
        removed, others = 0, list[str]()
        with self._own_transactions() as connection:
            if self._duty.keep:
                self._require_unused(connection)
                self._empty(connection)
            prefixes = {_OWN.match(name) for name in self._tables(connection, PREFIX)}
            for prefix in sorted({found[0] for found in prefixes if found}):
                if prefix == self._duty.prefix:
                    continue
                try:
                    with connection.transaction():
                        connection.execute(_SET, [_LOCK_MS])
                        if not self._lock(connection, prefix):
                            continue  # it lives
                        names = self._tables(connection, prefix)
                        self._drop(connection, names)
                        removed += len(names)
                except (errors.InsufficientPrivilege, errors.LockNotAvailable):
                    others += self._tables(connection, prefix)
        return removed, sorted(others)

    def clean(self) -> Left:
        """Remove what this run made, and look what is left."""
        began = time.monotonic()
        self.close()
        while True:
            try:
                with self._own_transactions() as connection:
                    left = self._clean(connection)
            except psycopg.OperationalError:  # a lock, or an outage
                if time.monotonic() - began > _WITHIN_SEC:
                    raise
            else:
                gone = self._duty.keep or not left.tables
                # a server process takes a moment to notice that its client went
                if gone and (not left.sessions or time.monotonic() - began > _SESSIONS_WITHIN_SEC):
                    return left
                if time.monotonic() - began > _WITHIN_SEC:
                    return left
            time.sleep(_AGAIN_SEC)

    def close(self) -> None:
        """Give the lock back."""
        if self._connection is not None:
            self._connection.close()

    def _clean(self, connection: psycopg.Connection[Any]) -> Left:
        duty, rows = self._duty, 0
        with connection.transaction():
            connection.execute(_SET, [_LOCK_MS])
            if duty.keep:
                rows = self._empty(connection)
            else:
                self._drop(connection, self._tables(connection, duty.prefix))
        sessions = connection.execute(_SESSIONS, [duty.mark]).fetchone() if duty.mark else None
        return Left(
            len(self._tables(connection, duty.prefix)), rows, int(sessions[0]) if sessions else 0
        )

    def _empty(self, connection: psycopg.Connection[Any]) -> int:
        """Delete what may be deleted; how many rows stay."""
        kept, there = 0, self._tables(connection, self._duty.prefix)
        for table in reversed(TABLES):
            if self._duty.prefix + table not in there:
                continue
            name = sql.Identifier(self._duty.schema, self._duty.prefix + table)
            allowed = connection.execute(_DELETES, [name.as_string()]).fetchone()
            if allowed and allowed[0]:
                connection.execute(sql.SQL("DELETE FROM {}").format(name))
                continue
            if table == "token":
                connection.execute(
                    sql.SQL(
                        "UPDATE {} SET node = NULL, incarnation = NULL, next_node = NULL, "
                        "revoked_at = NULL"
                    ).format(name)
                )
            count = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(name)).fetchone()
            kept += count[0] if count else 0
        return kept

    def _require_unused(self, connection: psycopg.Connection[Any]) -> None:
        if f"{self._duty.prefix}node" in self._tables(connection, self._duty.prefix):
            node = sql.Identifier(self._duty.schema, f"{self._duty.prefix}node")
            names = connection.execute(sql.SQL("SELECT name FROM {} ORDER BY 1").format(node))
            if strangers := [name for (name,) in names if not _WORKER.fullmatch(name)]:
                raise Taken(", ".join(strangers))

    def _drop(self, connection: psycopg.Connection[Any], names: Sequence[str]) -> None:
        if names:
            tables = sql.SQL(", ").join(sql.Identifier(self._duty.schema, name) for name in names)
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(tables))

    def _tables(self, connection: psycopg.Connection[Any], prefix: str) -> list[str]:
        return [name for (name,) in connection.execute(_TABLES_OF, [self._duty.schema, prefix])]

    def _lock(self, connection: psycopg.Connection[Any], prefix: str) -> bool:
        row = connection.execute(_HOLD, [f"{self._duty.schema}.{prefix} certified"]).fetchone()
        return bool(row and row[0])

    def _open(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._duty.conninfo, prepare_threshold=None)

    @contextmanager
    def _own_transactions(self) -> Iterator[psycopg.Connection[Any]]:
        with self._open() as connection:
            connection.autocommit = True
            yield connection


def _main() -> None:
    # It is told to end by the end of its input alone, also when a service or a container stops.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    janitor = Janitor(Duty.from_environment())
    try:
        janitor.hold()
        removed, others = janitor.remove_earlier()
    except Taken as taken:
        _tell("taken", by=str(taken))
        return
    except psycopg.Error as error:
        _tell("failed", error=str(error))
        return
    _tell("ready", removed=removed, others=others)
    sys.stdin.read()
    _tell("left", **asdict(janitor.clean()))


def _tell(event: str, **values: Any) -> None:
    try:
        print(json.dumps({"event": event, **values}), flush=True)  # noqa: T201 - to whoever certifies
    except BrokenPipeError:  # it was killed: nobody hears it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    _main()
