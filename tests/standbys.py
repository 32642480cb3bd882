"""A copy of an embedded server that follows it, to be cut off and promoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobsync_async.embedded import EmbeddedPostgres


class Standby(EmbeddedPostgres):
    """A streaming standby of `primary`, which must be up. Its password is the primary's.

    Args:
        address: where it listens, on the primary's port; None for a port of its own.
    """

    def __init__(self, primary: EmbeddedPostgres, address: str | None = None) -> None:
        super().__init__({} if address is None else {"listen_addresses": address})
        self._primary = primary
        self._address = address
        self._password = primary._password

    @property
    def dsn(self) -> str:
        if self._address is None:
            return super().dsn
        return super().dsn.replace("@127.0.0.1:", f"@{self._address}:")

    def start(self) -> None:
        if self._address is not None:
            self.port = self._primary.port
        super().start()

    def _init(self) -> None:
        if not (self._bin / "pg_basebackup").exists():
            pytest.skip("this PostgreSQL came without pg_basebackup, which makes standbys")
        arguments = (
            "-D",
            str(self.data),
            "-d",
            self._primary.dsn,
            "-R",
            "-c",
            "fast",
            "-X",
            "stream",
        )
        self.tool("pg_basebackup", *arguments)

    @property
    def data(self) -> Path:
        return self._there() / "data"

    def promote(self) -> None:
        """Make it a primary; returns when it accepts writes."""
        self.tool("pg_ctl", "promote", "-w", "-D", str(self.data))


def both(dsn: str, *others: EmbeddedPostgres) -> str:
    """A DSN that names all the servers, the first one's first."""
    head, _, tail = dsn.rpartition("@")
    hosts, _, database = tail.partition("/")
    return (
        f"{head}@{','.join([hosts, *(f'127.0.0.1:{server.port}' for server in others)])}/{database}"
    )
