"""Fixtures for tests that harm workers, networks and servers: a server of their own, and fleets of
worker processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import CoordinationConfig
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.postgres.schema import creation_script
from tests.faults import wires
from tests.faults.fleet import Fleet
from tests.faults.history import TABLES
from tests.faults.nursery import Nursery
from tests.faults.proxy import Proxy
from tests.faults.wires import Namespace, ServerOnAWire, Wire

HERE = Path(__file__).parent

QUICK = {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 2.0}
"""For faults that outlast the timeout."""
STEADY = {"heartbeat_interval_sec": 0.5, "heartbeat_timeout_sec": 4.0}
"""For faults that must not cost anybody its lease."""
DEFAULT = {"heartbeat_interval_sec": 5.0, "heartbeat_timeout_sec": 15.0}
"""For bounds that are promised for the default settings."""

MakeFleet = Callable[..., Fleet]
Way = dict[str, str]
"""Options of `Fleet.launch`: how a worker reaches the tables."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server that tests may stop, starve and restart, and must leave running."""
    with EmbeddedPostgres() as server:
        yield server


def make_database(
    server: EmbeddedPostgres, tablespace: str = "pg_default", script: str | None = None
) -> str:
    """A database with the cluster's tables and the resource; its DSN. Goes away with the server.

    `script` makes the tables, if it is not today's.
    """
    name = f"faults_{uuid4().hex[:12]}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        names = map(sql.Identifier, (name, tablespace))
        connection.execute(sql.SQL("CREATE DATABASE {} TABLESPACE {}").format(*names))
    dsn = make_conninfo(server.dsn, dbname=name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute((script or creation_script(CoordinationConfig())).encode())
        connection.execute(TABLES.encode())
    return dsn


@pytest.fixture
def dsn(postgres: EmbeddedPostgres) -> str:
    return make_database(postgres)


@pytest.fixture
def make_fleet(nursery: Nursery, dsn: str) -> Iterator[MakeFleet]:
    """Makes the workers of a test. Afterwards, what they did is judged, whatever the test was
    about."""
    # Short: a socket's path has at most a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    made: list[Fleet] = []

    def make(times: dict[str, float], *, dsn: str = dsn, tasks: int = 24) -> Fleet:
        fleet = Fleet(nursery, dsn, folder, times, tasks)
        made.append(fleet)
        return fleet

    yield make
    try:
        for fleet in made:
            fleet.judge()
    finally:
        for fleet in made:
            fleet.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_proxy(dsn: str) -> Iterator[Callable[[], tuple[Proxy, Way]]]:
    """Makes a network to the server, and the way through it."""
    server = conninfo_to_dict(dsn)
    with ExitStack() as stack:

        def make() -> tuple[Proxy, Way]:
            proxy = stack.enter_context(Proxy(str(server["host"]), int(str(server["port"]))))
            return proxy, {"dsn": make_conninfo(dsn, host="127.0.0.1", port=proxy.port)}

        yield make


@pytest.fixture(scope="session")
def hub() -> Iterator[Namespace]:
    """A host that is wired to others."""
    if reason := wires.why_not():
        pytest.skip(reason)
    with Namespace() as hub:
        yield hub


@pytest.fixture(scope="session")
def wired_postgres(hub: Namespace) -> Iterator[EmbeddedPostgres]:
    """A server that others reach by wire."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as sockets,
        ServerOnAWire(hub, Path(sockets)) as server,
    ):
        yield server


@pytest.fixture
def make_wire(hub: Namespace, dsn: str) -> Iterator[Callable[[], tuple[Wire, Way]]]:
    """Makes a host with a wire to the server, and the way to live there."""
    with ExitStack() as stack:

        def make() -> tuple[Wire, Way]:
            host = stack.enter_context(Namespace())
            wire = stack.enter_context(Wire(host, hub))
            return wire, {"dsn": make_conninfo(dsn, host=wire.far_address), "network": host.path}

        yield make


@pytest.fixture
def small_disk(postgres: EmbeddedPostgres) -> Iterator[tuple[str, Path]]:
    """The DSN of a database on a disk of its own with little room, and where that is mounted."""
    assert postgres.directory is not None
    disk = postgres.directory / "small-disk"
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk of its own can be mounted here: {mounted.stderr.strip()}")
    try:
        place = disk / "tables"
        place.mkdir()
        owner = postgres.directory.stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'".encode())
        dsn = make_database(postgres, "small")
        yield dsn, disk
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            database = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
            connection.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
