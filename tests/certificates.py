"""An authority of the tests' own, and a server that takes encrypted connections alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psycopg

from jobsync_async.embedded import EmbeddedPostgres


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def authority(folder: Path, name: str) -> Path:
    """A certificate authority of one's own."""
    certificate = folder / f"{name}.crt"
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(certificate)),
    )
    return certificate


def certificate(folder: Path, name: str, days: int) -> None:
    """One for ``localhost``, signed by the trusted authority, with the server's key."""
    key, request, extensions = folder / "server.key", folder / "request", folder / "extensions"
    if not key.exists():
        openssl("genrsa", "-out", str(key), "2048")
    openssl("req", "-new", "-key", str(key), "-subj", "/CN=localhost", "-out", str(request))
    extensions.write_text("subjectAltName=DNS:localhost\n")
    openssl(
        *("x509", "-req", "-in", str(request), "-days", str(days), "-CAcreateserial"),
        *("-extfile", str(extensions), "-CA", str(folder / "trusted.crt")),
        *("-CAkey", str(folder / "trusted.key"), "-out", str(folder / f"{name}.crt")),
    )


def want_tls(postgres: EmbeddedPostgres, folder: Path) -> None:
    """Restart a server, built with TLS, so that it takes nothing else; with the certificate
    ``server`` of the folder."""
    assert postgres.directory is not None
    data = postgres.directory / "data"
    for name in ("server.crt", "server.key"):
        shutil.copy(folder / name, data / name)
        os.chmod(data / name, 0o600)
        if os.geteuid() == 0:
            shutil.chown(data / name, "nobody")
    access = data / "pg_hba.conf"
    access.write_text(access.read_text().replace("\nhost ", "\nhostssl "))
    with psycopg.connect(postgres.dsn) as connection:  # plain, for the last time
        connection.execute("SELECT pg_reload_conf()")
    postgres.stop()
    postgres._settings["ssl"] = "on"
    postgres.start()
