"""TLS settings reach libpq: ``sslmode=verify-full`` accepts the server whose certificate it can
verify, and no other."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import CoordinationConfig, Job, StoreUnavailable, embedded
from tests.certificates import authority, certificate, want_tls

DEBIAN = Path("/usr/lib/postgresql")


def install_with_tls() -> Path | None:
    """The folder of a PostgreSQL that was built with TLS, as Debian's is and the embedded one is
    not."""
    found = sorted(DEBIAN.glob("*/bin/postgres"), key=lambda path: int(path.parent.parent.name))
    return found[-1].parent.parent if found else None


def present(tls_server: tuple[str, Path], name: str) -> None:
    """Let the server show this certificate to those that connect from now on."""
    dsn, folder = tls_server
    with psycopg.connect(dsn, autocommit=True) as connection:
        query = "SELECT current_setting('data_directory') || '/server.crt'"
        shutil.copy(folder / f"{name}.crt", str(connection.execute(query).fetchone()[0]))
        connection.execute("SELECT pg_reload_conf()")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory, monkeypatch_module) -> Iterator[tuple[str, Path]]:
    """A server that takes TLS connections only, certified for ``localhost``; its DSN, and the
    folder of certificates."""
    install = install_with_tls()
    if install is None or shutil.which("openssl") is None:
        pytest.skip(
            f"no PostgreSQL built with TLS under {DEBIAN}, or no openssl: apt-get install "
            "postgresql openssl"
        )
    folder = tmp_path_factory.mktemp("tls")
    authority(folder, "trusted")
    authority(folder, "stranger")
    certificate(folder, "server", days=2)
    certificate(folder, "expired", days=-1)
    monkeypatch_module.setattr(embedded, "_find_install", lambda: install)
    with embedded.EmbeddedPostgres() as postgres:
        want_tls(postgres, folder)
        yield postgres.dsn, folder


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def config(tls_server: tuple[str, Path], authority: str, **settings: str) -> CoordinationConfig:
    dsn, folder = tls_server
    tls = {"sslmode": "verify-full", "sslrootcert": str(folder / f"{authority}.crt")}
    return CoordinationConfig(
        dsn=make_conninfo(**{**conninfo_to_dict(dsn), **tls, **settings}), total_tokens=50
    )


@pytest.mark.needs("sessions")
async def test_a_worker_runs_over_verified_tls_on_each_of_its_connections(tls_server):
    async with Job("a", config(tls_server, "trusted", host="localhost"), wait_on_enter=20) as job:
        assert len(job.my_tokens) == 50
        await job.owner_of("x")
        with psycopg.connect(tls_server[0]) as connection:
            query = (
                "SELECT split_part(application_name, ' ', 4), ssl FROM pg_stat_activity JOIN "
                "pg_stat_ssl USING (pid) WHERE application_name LIKE 'jobsync_async % a %'"
            )
            seen = dict(connection.execute(query).fetchall())
        assert {"heartbeat", "listener", "calls"} <= seen.keys()
        assert set(seen.values()) == {True}


async def test_a_certificate_that_cannot_be_verified_is_refused(tls_server):
    with pytest.raises(StoreUnavailable, match=r"certificate verify failed.*sslrootcert"):
        await Job("a", config(tls_server, "stranger", host="localhost")).start()


async def test_a_certificate_that_runs_out_ends_no_session_and_is_named_when_one_is_opened(
    tls_server, caplog
):
    times = {"heartbeat_interval_sec": 0.3, "heartbeat_timeout_sec": 2}
    trusting = replace(config(tls_server, "trusted", host="localhost"), **times)
    advice = "certificate verify failed.*has run out.*renew"
    async with Job("a", trusting, wait_on_enter=20) as job:
        present(tls_server, "expired")
        try:
            with anyio.fail_after(10), pytest.raises(StoreUnavailable, match=advice):
                while True:  # until the server shows it
                    await job.owner_of("x")
                    await _end_sessions(tls_server[0], "calls")
            with pytest.raises(StoreUnavailable, match=advice):
                await Job("b", trusting).start()
            assert job.am_i_healthy() and job.metrics.lease_losses == 0
            await _end_sessions(tls_server[0], "heartbeat")
            with anyio.fail_after(10):
                while job.am_i_healthy():
                    await asyncio.sleep(0.01)
            said = [one.message for one in caplog.records if one.levelname == "WARNING"]
            assert any(re.search(advice, text) for text in said)
        finally:
            present(tls_server, "server")
        with anyio.fail_after(10):
            while len(job.my_tokens) < 50:
                await asyncio.sleep(0.01)


async def _end_sessions(dsn: str, purpose: str) -> None:
    query = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE application_name LIKE 'jobsync_async % a {purpose}'"
    )
    plain = make_conninfo(dsn, sslmode="require")
    async with await psycopg.AsyncConnection.connect(plain, autocommit=True) as connection:
        await connection.execute(query)


async def test_a_certificate_for_another_name_is_refused(tls_server):
    with pytest.raises(StoreUnavailable, match=r"does not match host name.*by a name"):
        await Job("a", config(tls_server, "trusted", host="127.0.0.1")).start()


async def test_a_connection_without_tls_is_refused_by_a_server_that_wants_it(tls_server):
    with pytest.raises(StoreUnavailable, match=r"no encryption.*sslmode=verify-full"):
        await Job("a", config(tls_server, "trusted", sslmode="disable")).start()
