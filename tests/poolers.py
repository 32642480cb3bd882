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
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
logfile = {directory}/log
pidfile = {directory}/pid
"""


def program() -> str:
    """Where PgBouncer is; the test is skipped when it is nowhere."""
    found = shutil.which(
        "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    if found is None:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    return found


@contextmanager
def pgbouncer(dsn: str, mode: str, size: int) -> Iterator[str]:
    """Run one in `mode` with up to `size` connections to the server; the DSN to go through it."""
    parts = conninfo_to_dict(dsn)
    port, as_user = _free_port(), _unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="jobsync_async-pgbouncer-"))
    server = " ".join(
        f"{name}='{value}'"
        for name, value in parts.items()
        if name in ("host", "port", "user", "password", "dbname")
    )
    config = directory / "pgbouncer.ini"
    values = {
        "database": parts["dbname"],
        "server": server,
        "port": port,
        "mode": mode,
        "size": size,
        "directory": directory,
    }
    config.write_text(_CONFIG.format(**values))
    if as_user:
        for path in (directory, config):
            os.chown(path, as_user["user"], as_user["group"])
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [program(), config], stdout=output, stderr=output, cwd=directory, **as_user
        )
    try:
        through = make_conninfo(
            "", host="127.0.0.1", port=port, user="anybody", dbname=parts["dbname"]
        )
        deadline = time.monotonic() + 10
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(through, connect_timeout=2).close()
                break
            assert process.poll() is None and time.monotonic() < deadline, (
                directory / "output"
            ).read_text()
            time.sleep(0.02)
        yield through
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)
