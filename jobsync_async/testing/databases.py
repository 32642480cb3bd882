"""Databases that last as long as a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from jobsync_async.config import CoordinationConfig
from jobsync_async.postgres.schema import creation_script


@contextmanager
def database(server: str, template: str, prefix: str) -> Iterator[str]:
    """A new database, copied from another; its DSN. Dropped in the end, whoever is still connected.

    Args:
        server: a DSN of a role that may create databases.
        template: the database to copy; nobody may be connected to it. ``template0`` has nothing in
            it.
        prefix: what its name begins with.
    """
    name = f"{prefix}_{uuid4().hex[:12]}"
    identifier = sql.Identifier(name)
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(identifier, sql.Identifier(template))
    if template == "template0":
        create += sql.SQL(" ENCODING 'UTF8'")
    # One connection for each statement: a session that waits for the test to end could be cut off
    # by the test.
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(create)
    try:
        yield make_conninfo(server, dbname=name)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@contextmanager
def with_tables(server: str, prefix: str) -> Iterator[str]:
    """A database to copy that has the library's tables, by their default names; its name."""
    with database(server, "template0", prefix) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(creation_script(CoordinationConfig()).encode())
            name = connection.info.dbname
        yield name
