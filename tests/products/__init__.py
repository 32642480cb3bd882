"""Products that users have, and servers that are made to behave as these do.

`JOBSYNC_TEST_PRODUCT` names one; then the tests of tests/integration run on it. What an application
would be given there is the fixture `dsn`; `admin` is a superuser's connection without anything in
between. A test that makes no sense there is marked with what it needs::

    @pytest.mark.needs("sessions")

What a product lacks is said below, with the reason that is printed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import config
from jobsync_async.embedded import EmbeddedPostgres
from tests import haproxies, poolers
from tests.certificates import authority, certificate, want_tls
from tests.products import middleman
from tests.products.startup.sitecustomize import give_defaults
from tests.refusals import be_aurora

VARIABLE = "JOBSYNC_TEST_PRODUCT"
ROLE, PASSWORD = "application", "secret"
_STARTUP = Path(__file__).parent / "startup"

# What a test may need.
SESSIONS = "sessions"
NAMES = "names"
FRESH = "fresh sessions"
PLAIN = "plain connections"
LONG_IDLE = "long idle"
STARTUP_OPTIONS = "startup options"
TIMELINE = "timeline"
SUPERUSER = "superuser"
NEEDS = {
    SESSIONS: "a session that stays one client's: LISTEN, its settings, its locks",
    NAMES: "sessions that are known on the server by the name and the number of one client",
    FRESH: "a session that is opened for each connection, and not kept by a pooler",
    PLAIN: "connections that are not encrypted, for what the test puts before the server",
    LONG_IDLE: "connections that stay, however long they are idle",
    STARTUP_OPTIONS: "the `options` of a DSN",
    SUPERUSER: "that applications log in as a superuser",
    TIMELINE: "a server that says its timeline and its log's position, as workers of 0.1.0 need",
}

NOTIFY_OR_NOT = [pytest.param(True, marks=pytest.mark.needs(SESSIONS)), False]
"""Both values of `notify`, where a product has them."""

Front = Callable[[str], AbstractContextManager[str]]


@dataclass(frozen=True)
class Product:
    """How a server is made to behave.

    Attributes:
        like: what it stands for, and where that is documented.
        settings: of the server.
        role: the attributes of the role that applications log in as; None for a superuser.
        change: changes a database, which a superuser is connected to, before others are copied
            from it.
        front: what stands before the server: from the DSN of the server to the one through it.
        config: settings of `CoordinationConfig` that users need there.
        lacks: what tests may need and it does not have, and why.
        tls: whether the server takes encrypted connections alone, which are verified in full.
        server: runs one that is no embedded one: gives the DSN of a superuser, and of whoever goes
            through what stands before it.
    """

    like: str
    settings: Mapping[str, str] = field(default_factory=dict)
    role: str | None = None
    change: Callable[[psycopg.Connection[Any]], None] | None = None
    front: Front = nullcontext
    config: Mapping[str, object] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    tls: bool = False
    server: Callable[[], AbstractContextManager[tuple[str, str]]] | None = None

    @property
    def keeps_sessions(self) -> bool:
        """Whether what stands before the server has sessions without a client."""
        return self.front is not nullcontext


@contextmanager
def _patroni() -> Iterator[tuple[str, str]]:
    # it is needed where this product is alone
    from tests import patroni

    if why := patroni.why_not():
        pytest.skip(why)
    with patroni.PatroniCluster() as nodes:
        yield nodes.primary().dsn, nodes.through_haproxy


_POLLING = {"notify": False, "poll_interval_sec": 0.1}
_SHARED = {
    SESSIONS: "a session is another client's after each transaction",
    NAMES: "a session has the name of the client that had it last",
    FRESH: "the pooler opens and keeps sessions as it likes",
}
_KEPT = {FRESH: "the pooler keeps the sessions of clients that went, for others"}
_OPTIONS = {STARTUP_OPTIONS: "the pooler refuses startup parameters that it does not know"}
_NO_SUPERUSER = {SUPERUSER: "applications have no superuser"}
_MANAGED = "CREATEDB CREATEROLE"
# What it makes, a role may also use, as before PostgreSQL 16.
_SELF_GRANT = {"createrole_self_grant": "set, inherit"}

PRODUCTS = {
    "aurora": Product(
        "Aurora's role; its log's position and its files' names are refused",
        settings=_SELF_GRANT,
        role=_MANAGED,
        change=be_aurora,
        lacks={
            **_NO_SUPERUSER,
            TIMELINE: "Aurora does not tell its timeline; workers of 0.1.0 do not run there",
        },
    ),
    "pgbouncer-1.18": Product(
        "PgBouncer 1.18 of Debian 12 in transaction mode; it knows no prepared statements",
        front=partial(poolers.pgbouncer_for_all, mode="transaction"),
        config=_POLLING,
        lacks={**_SHARED, **_OPTIONS},
    ),
    "pgbouncer-latest": Product(
        "the newest PgBouncer that Debian has, in transaction mode; it follows prepared statements "
        "(max_prepared_statements, 1.21 and newer)",
        front=partial(poolers.pgbouncer_for_all, mode="transaction", max_prepared_statements=200),
        config=_POLLING,
        lacks={**_SHARED, **_OPTIONS},
    ),
    "pgbouncer-session": Product(
        "PgBouncer in session mode, which tells the server another application_name "
        "(application_name_add_host)",
        front=partial(poolers.pgbouncer_for_all, mode="session", application_name_add_host=1),
        lacks={**_OPTIONS, **_KEPT},
    ),
    "rds-proxy": Product(
        "Amazon RDS Proxy: a pooler that pins a client to a session as soon as it changes "
        "something of it (Amazon RDS User Guide, 'Avoiding pinning an RDS Proxy')",
        settings=_SELF_GRANT,
        role=_MANAGED,
        front=partial(middleman.running, mode="pinning", refuses_options=True),
        lacks={
            **_OPTIONS,
            **_NO_SUPERUSER,
            NAMES: "a session has the name of the client that opened it",
        },
    ),
    "supabase": Product(
        "Supabase's role, through Supavisor in session mode",
        settings=_SELF_GRANT,
        role=f"{_MANAGED} REPLICATION BYPASSRLS",
        front=partial(middleman.running, mode="session"),
        lacks=_NO_SUPERUSER,
    ),
    "supabase-6543": Product(
        "Supabase's role, through Supavisor in transaction mode, whose sessions all have the name "
        "Supavisor",
        settings=_SELF_GRANT,
        role=f"{_MANAGED} REPLICATION BYPASSRLS",
        front=partial(middleman.running, mode="transaction", name="Supavisor"),
        config=_POLLING,
        lacks={**_SHARED, **_NO_SUPERUSER},
    ),
    "neon": Product(
        "Neon's role, on a server that is stopped after two idle seconds, with all its sessions, "
        "and started by the next connection",
        settings=_SELF_GRANT,
        role=f"{_MANAGED} REPLICATION BYPASSRLS",
        front=partial(middleman.running, mode="session", suspend_sec=2.0, wake_sec=0.3),
        lacks={**_NO_SUPERUSER, LONG_IDLE: "idle sessions end when the server is suspended"},
    ),
    "haproxy": Product(
        "HAProxy in TCP mode, which cuts connections that are idle for four seconds",
        front=partial(haproxies.haproxy, idle_sec=4),
        lacks={LONG_IDLE: "HAProxy cuts idle connections"},
    ),
    "patroni": Product(
        "three nodes under Patroni, synchronous, through HAProxy as docs/patroni.md has them",
        server=_patroni,
    ),
    "tls": Product(
        "a server that takes encrypted connections alone, with sslmode=verify-full and an "
        "authority of its own; JOBSYNC_EMBEDDED_POSTGRES must name one that was built with TLS",
        lacks={PLAIN: "the server takes encrypted connections alone"},
        tls=True,
    ),
}


def chosen() -> Product | None:
    """The product to test on; None for a server as it is."""
    name = os.environ.get(VARIABLE)
    return None if not name else PRODUCTS[name]


@contextmanager
def running(product: Product) -> Iterator[tuple[str, str]]:
    """Run a server that behaves as the product: the DSN of a superuser, and the one that
    applications are given."""
    server = product.server or partial(_embedded, product)
    with server() as (dsn, road):
        _roads[_place(road)] = dsn
        yield dsn, road


@contextmanager
def _embedded(product: Product) -> Iterator[tuple[str, str]]:
    with EmbeddedPostgres(product.settings) as postgres, _in_use(product, postgres) as road:
        yield postgres.dsn, road


@contextmanager
def _in_use(product: Product, postgres: EmbeddedPostgres) -> Iterator[str]:
    if product.change is not None:
        with psycopg.connect(postgres.dsn) as connection:
            connection.execute("UPDATE pg_database SET datallowconn = true")
        for database in ("template0", "template1", "postgres"):
            with psycopg.connect(make_conninfo(postgres.dsn, dbname=database)) as connection:
                product.change(connection)
    with ExitStack() as stack:
        road = postgres.dsn
        if product.tls:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            authority(folder, "trusted")
            certificate(folder, "server", days=2)
            want_tls(postgres, folder)
            verified = {"sslmode": "verify-full", "sslrootcert": str(folder / "trusted.crt")}
            road = make_conninfo(road, host="localhost", **verified)
        road = stack.enter_context(product.front(road))
        if product.role is not None:
            with psycopg.connect(postgres.dsn, autocommit=True) as connection:
                attributes = f"LOGIN {product.role} PASSWORD '{PASSWORD}'"
                connection.execute(f"CREATE ROLE {ROLE} {attributes}".encode())
            road = make_conninfo(road, user=ROLE, password=PASSWORD)
        yield road


_roads = dict[tuple[object, object], str]()


def _place(dsn: str) -> tuple[object, object]:
    parts = conninfo_to_dict(dsn)
    return parts["host"], str(parts["port"])


def direct(dsn: str) -> str:
    """How a superuser reaches a database that applications reach by `dsn`, with nothing in
    between."""
    there = _roads.get(_place(dsn), dsn)
    return make_conninfo(there, dbname=conninfo_to_dict(dsn)["dbname"])


def own(product: Product | None, dsn: str) -> None:
    """Give a database, by a superuser's DSN, with the tables in it to the application's role."""
    if product is None or product.role is None:
        return
    with psycopg.connect(dsn, autocommit=True) as connection:
        name, role = sql.Identifier(connection.info.dbname), sql.Identifier(ROLE)
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, role))
        connection.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(role))
        for kind in ("TABLES", "SEQUENCES", "SCHEMAS", "ROUTINES"):  # what a test makes
            grant = f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO {ROLE}"
            connection.execute(grant.encode())
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND "
            "relkind IN ('r', 'p')"
        )
        for (table,) in tables.fetchall():
            connection.execute(
                sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(table), role)
            )


def set_up() -> None:
    """Give every program of the tests, and this one, the defaults of the product."""
    product = chosen()
    if product is None or not product.config:
        return
    os.environ["JOBSYNC_TEST_DEFAULTS"] = json.dumps(dict(product.config))
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_STARTUP), path]))
    give_defaults(config)


def given_to_programs() -> dict[str, str]:
    """The part of the environment by which programs have the defaults of the product."""
    names = ("JOBSYNC_TEST_DEFAULTS", "PYTHONPATH")
    return {name: os.environ[name] for name in names if name in os.environ}
