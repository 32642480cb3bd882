"""An HAProxy of the test's own before the test's server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async.embedded import _free_port
from tests.poolers import await_reachable

# As HAProxy's own documentation has it for TCP, but for the times.
_CONFIG = """
global
    maxconn 2000
defaults
    mode tcp
    timeout connect 5s
    timeout client {idle_ms}ms
    timeout server {idle_ms}ms
listen postgres
    bind 127.0.0.1:{port}
    server one {host}:{server_port}
"""


def program() -> str:
    """Where HAProxy is; the test is skipped when it is nowhere."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("HAProxy is not installed (apt-get install haproxy)")
    return found


@contextmanager
def haproxy(dsn: str, *, idle_sec: float) -> Iterator[str]:
    """Run one that cuts what is idle for so long; the DSN to go through it."""
    parts, port = conninfo_to_dict(dsn), _free_port()
    folder = Path(tempfile.mkdtemp(prefix="jobsync_async-haproxy-"))
    config = folder / "haproxy.cfg"
    config.write_text(
        _CONFIG.format(
            idle_ms=round(idle_sec * 1000),
            port=port,
            host=parts["host"],
            server_port=parts["port"],
        )
    )
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [program(), "-db", "-f", config], stdout=output, stderr=output, cwd=folder
        )
    try:
        through = make_conninfo(dsn, host="127.0.0.1", port=port)
        await_reachable(through, process, folder / "output")
        yield through
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)
