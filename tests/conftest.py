"""One server per session, one database per test, and a look afterwards that nothing was left connected."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import CoordinationConfig
from jobsync_async.postgres.schema import creation_script
from tests.servers import Server, chosen

_TEMPLATE = f"jobsync_template_{uuid4().hex[:8]}"
_SERVER = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with chosen() as server:
        request.config.stash[_SERVER] = str(server)
        yield server


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _SERVER in config.stash:
        terminalreporter.write_line(f"server: {config.stash[_SERVER]}")


@pytest.fixture(scope="session")
def template(server: Server) -> Iterator[str]:
    """A database with the default tables, to copy."""
    name = sql.Identifier(_TEMPLATE)
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(name))
        with psycopg.connect(make_conninfo(server.dsn, dbname=_TEMPLATE), autocommit=True) as tables:
            tables.execute(creation_script(CoordinationConfig()).encode())
        yield _TEMPLATE
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def empty_dsn(server: Server) -> Iterator[str]:
    """A database without anything in it."""
    yield from _database(server, "template0")


@pytest.fixture
def dsn(server: Server, template: str) -> Iterator[str]:
    """A database with the tables."""
    yield from _database(server, template)


def _database(server: Server, template: str) -> Iterator[str]:
    name = f"jobsync_test_{uuid4().hex[:12]}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        connection.execute(create)
        try:
            yield make_conninfo(server.dsn, dbname=name)
            left = _still_connected(connection, name)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    assert not left, f"sessions were left open: {left}"


def _still_connected(connection: psycopg.Connection[Any], name: str) -> list[str]:
    """Sessions that are still there after two seconds: a server process takes a moment to notice that its client went."""
    deadline = time.monotonic() + 2
    while True:
        cursor = connection.execute("SELECT application_name, state, query FROM pg_stat_activity WHERE datname = %s", [name])
        left = [f"{application} ({state}): {query:.60}" for application, state, query in cursor.fetchall()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


@pytest.fixture
def make_config(dsn: str) -> Callable[..., CoordinationConfig]:
    return lambda **settings: CoordinationConfig(**{"dsn": dsn, **settings})


@pytest.fixture
async def admin(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A superuser's connection to the test's database, in autocommit."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def dsn_with(dsn: str) -> Callable[..., str]:
    """The test database's DSN with some of its parts replaced."""
    return lambda **parts: make_conninfo(**{**conninfo_to_dict(dsn), **parts})
