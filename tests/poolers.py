"""A PgBouncer of the test's own before the test's server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async.embedded import _free_port, _unprivileged

_CONFIG = """
[databases]
{database} = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
logfile = {directory}/log
pidfile = {directory}/pid
"""
# Names another one than the PATH does.
VARIABLE = "JOBSYNC_TEST_PGBOUNCER"


def program() -> str:
    """Where PgBouncer is; the test is skipped when it is nowhere."""
    found = os.environ.get(VARIABLE) or shutil.which(
        "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    if found is None:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    return found


@contextmanager
def pgbouncer(dsn: str, mode: str, size: int) -> Iterator[str]:
    """Run one in `mode` with up to `size` connections to the server; the DSN to go through it.
    Whoever connects acts as the role of `dsn`, in its database."""
    parts = conninfo_to_dict(dsn)
    server = " ".join(
        f"{name}='{value}'"
        for name, value in parts.items()
        if name in ("host", "port", "user", "password", "dbname")
    )
    dbname = str(parts["dbname"])
    with _running(dbname, server, mode, size, {"auth_type": "any"}) as (port, ready):
        through = make_conninfo("", host="127.0.0.1", port=port, user="anybody", dbname=dbname)
        ready(through)
        yield through


@contextmanager
def pgbouncer_for_all(dsn: str, *, mode: str, **settings: object) -> Iterator[str]:
    """Run one for every database and role of the server of a superuser's DSN. Roles log in as they
    do at the server."""
    parts = conninfo_to_dict(dsn)
    user, password = parts["user"], parts["password"]
    server = f"host={parts['host']} port={parts['port']} auth_user={user}"
    secret = f'"{user}" "{password}"\n'
    given = {
        "auth_type": "scram-sha-256",
        "auth_query": "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1",
        # what a dropped database leaves is to be gone soon
        "server_idle_timeout": 5,
        **settings,
    }
    size = 120 if mode == "session" else 40  # every client has a session of its own there
    with _running("*", server, mode, size, given, secret) as (port, ready):
        through = make_conninfo(dsn, host="127.0.0.1", port=port)
        ready(through)
        yield through


def await_reachable(through: str, process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until a server can be reached through a process, which has to live until then."""
    deadline = time.monotonic() + 10
    while True:
        with suppress(psycopg.OperationalError):
            psycopg.connect(through, connect_timeout=2).close()
            return
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)


@contextmanager
def _running(database, server, mode, size, settings, secret=None):
    port, as_user = _free_port(), _unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="jobsync_async-pgbouncer-"))
    config, users = directory / "pgbouncer.ini", directory / "users"
    users.write_text(secret or "")
    values = {"database": database, "server": server, "port": port, "mode": mode, "size": size}
    if secret is not None:
        settings = {"auth_file": users, **settings}
    config.write_text(
        _CONFIG.format(**values, directory=directory)
        + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    if as_user:
        for path in (directory, config, users):
            os.chown(path, as_user["user"], as_user["group"])
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [program(), config], stdout=output, stderr=output, cwd=directory, **as_user
        )

    try:
        yield port, lambda through: await_reachable(through, process, directory / "output")
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)
