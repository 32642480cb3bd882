"""One server per session, one database per test, and a look afterwards that nothing was left
connected."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import hypothesis
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import CoordinationConfig
from jobsync_async.testing.databases import database, with_tables
from tests import products
from tests.fast import go_fast
from tests.servers import Server, chosen

pytest_plugins = ["pytester"]

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

_SERVER = pytest.StashKey[str]()
_LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    products.set_up()
    if not hasattr(config, "workerinput"):  # the processes that this one starts inherit it
        config.add_cleanup(go_fast())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs something that the product lacks."""
    product = products.chosen()
    left_out = dict[str, list[pytest.Item]]()
    for item in items:
        for mark in item.iter_markers("needs"):
            unknown = set(mark.args) - products.NEEDS.keys()
            assert not unknown, f"{item.nodeid} needs {unknown}, which tests.products does not know"
            if product is not None and (lacking := product.lacks.keys() & mark.args):
                left_out.setdefault(product.lacks[min(lacking)], []).append(item)
                break
    config.stash[_LEFT_OUT] = {why: len(those) for why, those in left_out.items()}
    gone = {item for those in left_out.values() for item in those}
    if gone:
        config.hook.pytest_deselected(items=list(gone))
        items[:] = [item for item in items if item not in gone]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was logged may hold half of a surrogate pair; a report that is sent or written
    cannot."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with chosen() as server:
        request.config.stash[_SERVER] = str(server)
        yield server


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where the tests are spread over processes, each tells the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["server"] = session.config.stash.get(_SERVER, None)
        session.config.workeroutput["left out"] = session.config.stash.get(_LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    told = getattr(node, "workeroutput", {})
    if told.get("server"):
        node.config.stash[_SERVER] = told["server"]
    node.config.stash[_LEFT_OUT] = told.get("left out", {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for why, count in config.stash.get(_LEFT_OUT, {}).items():
        terminalreporter.write_line(f"left out: {count} tests, for {why}")
    if _SERVER in config.stash:
        terminalreporter.write_line(f"server: {config.stash[_SERVER]}")


@pytest.fixture(scope="session")
def template(server: Server) -> Iterator[str]:
    """A database with the default tables, to copy."""
    with with_tables(server.dsn, "jobsync_template") as name:
        products.own(products.chosen(), make_conninfo(server.dsn, dbname=name))
        yield name


@pytest.fixture
def empty_dsn(server: Server) -> Iterator[str]:
    """A database without anything in it."""
    yield from _database(server, "template0")


@pytest.fixture
def dsn(server: Server, template: str) -> Iterator[str]:
    """A database with the tables."""
    yield from _database(server, template)


def _database(server: Server, template: str) -> Iterator[str]:
    product = products.chosen()
    with database(server.dsn, template, "jobsync_test") as dsn:
        products.own(product, dsn)
        yield server.given(dsn)
        if product is not None and product.keeps_sessions:
            return
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            left = _still_connected(connection, str(conninfo_to_dict(dsn)["dbname"]))
    assert not left, f"sessions were left open: {left}"


def _still_connected(connection: psycopg.Connection[Any], name: str) -> list[str]:
    """Sessions that are still there after two seconds: a server process takes a moment to notice
    that its client went."""
    deadline = time.monotonic() + 2
    while True:
        cursor = connection.execute(
            "SELECT application_name, state, query FROM pg_stat_activity WHERE datname = %s", [name]
        )
        left = [
            f"{application} ({state}): {query:.60}"
            for application, state, query in cursor.fetchall()
        ]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


@pytest.fixture
def direct_dsn(dsn: str) -> str:
    """The test's database, as a superuser, with nothing in between."""
    return products.direct(dsn)


@pytest.fixture
def make_config(dsn: str) -> Callable[..., CoordinationConfig]:
    return lambda **settings: CoordinationConfig(**{"dsn": dsn, **settings})


@pytest.fixture
async def admin(direct_dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A superuser's connection to the test's database, in autocommit."""
    async with await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def dsn_with(dsn: str) -> Callable[..., str]:
    """The test database's DSN with some of its parts replaced."""
    return lambda **parts: make_conninfo(**{**conninfo_to_dict(dsn), **parts})
