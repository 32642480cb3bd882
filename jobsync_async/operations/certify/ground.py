"""Where a certification takes place: the way to the server, and the tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg

from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import ConfigError, SchemaError
from jobsync_async.operations import judgements
from jobsync_async.operations.certify import verdicts
from jobsync_async.operations.certify.certificate import PREFIX
from jobsync_async.operations.certify.figures import Pushes
from jobsync_async.operations.certify.janitor import Duty
from jobsync_async.operations.certify.probes import Probes
from jobsync_async.operations.certify.verdicts import Verdict, ms
from jobsync_async.operations.doctor import rights_asked
from jobsync_async.operations.places import reached
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import translated
from jobsync_async.postgres.pooler import shares_sessions
from jobsync_async.postgres.schema import open_schema
from jobsync_async.postgres.sql import TABLES, Queries

PATIENCE_SEC = 10.0
"""For so long a statement of the certification itself may take."""

_HELP = (
    f"let an administrator run `jobsync-async init --appname {PREFIX} --role ROLE`, then certify "
    f"with --prefix {PREFIX}; or give a --schema in which this role may make tables"
)
_UNRECOGNISED = f"{judgements.NO_START}: certify with --server-profile, as workers are to have"


class Ground:
    """How the server is reached, and what is found on the way.

    Args:
        config: of the trial's workers.
        mark: is in the names of all sessions.
        given: the tables are somebody else's.
        found: is told each verdict.

    Attributes:
        config: changes where nobody can listen, and to what the tables say.
        connector: makes connections for the certification itself.
        queries: its statements.
        shared: a pooler in transaction mode is between.
    """

    def __init__(
        self,
        config: CoordinationConfig,
        mark: str,
        given: bool,
        found: Callable[[Verdict], None],
    ) -> None:
        self.config = config
        self.shared = False
        self.connector = Connector(self._conninfo, PATIENCE_SEC, pooled=not config.notify)
        self.queries = Queries("pg_catalog", config.appname)
        self._mark = mark
        self._given = given
        self._found = found
        self._behind_pooler = False

    @property
    def channel(self) -> str:
        """One that no worker hears."""
        return f"{self.config.appname}heard"

    def _conninfo(self, purpose: str) -> str:
        return self.config.conninfo(purpose, self._mark)

    async def connect(self) -> Connection:
        """Raises StoreUnavailable."""
        return await self.connector.open("certify")

    async def look(self, connection: Connection) -> str:
        """What the server is, for people; whether something is between, and in which schema the
        tables are to be."""
        with translated():
            (about,) = await self._fetch(connection, "doctor_server")
            (where,) = await self._fetch(connection, "inspect_server")
        schema = self.config.schema or where.schema or "public"
        self.config = replace(self.config, schema=schema)
        self.queries = Queries(schema, self.config.appname)
        self._behind_pooler = about.backend_pid != connection.info.backend_pid
        self.shared = await shares_sessions(self.connector, connection)
        if not self.config.notify:
            why = "polling was asked for, so workers look every poll_interval_sec"
            self._found(verdicts.skipped("notifications", why))
        elif self.shared:
            self._poll(Pushes(None))
        if self.connector.pooled:  # it was opened before that was known
            connection.prepare_threshold = None
        return f"PostgreSQL {about.version}, {reached(connection, about)}"

    def duty(self) -> Duty:
        """What is to be removed in the end."""
        # Which sessions a pooler keeps is its own affair.
        mark = "" if self._behind_pooler else self._mark
        conninfo = self._conninfo("janitor")
        return Duty(conninfo, str(self.config.schema), self.config.appname, self._given, mark)

    async def make_tables(self, connection: Connection) -> bool:
        """Make the run's tables, or take those that are there; False when there are none."""
        began = time.monotonic()
        try:
            if self._given:
                await self._adopt(connection)
            self.queries = await open_schema(self.connector, self.config)
        except ConfigError as error:
            self._found(Verdict("failover", "fail", str(error), advice=_UNRECOGNISED))
            self.connector.queries = None
            return False
        except SchemaError as error:
            self._found(Verdict("tables", "fail", str(error), advice=_HELP))
            self.connector.queries = None
            return False
        how = f"{'found' if self._given else 'made'} in {ms(time.monotonic() - began)}"
        where = f"schema {self.queries.schema!r}"
        self._found(Verdict("tables", "ok", f"{len(TABLES)} {how}, {where}"))
        rights = judgements.rights(await self._rights(connection), uses_schema=True)
        self._found(Verdict(rights.name, rights.status, rights.found, advice=rights.advice))
        return True

    async def _adopt(self, connection: Connection) -> None:
        """Use tables that are there, with what is fixed in them."""
        with translated():
            rows = await self._fetch(connection, "read_settings")
        for row in rows:
            fixed = ("total_tokens", "hash_function", "time_zone")
            settings = {
                name: getattr(row, name) for name in fixed if getattr(row, name) is not None
            }
            self.config = replace(self.config, **settings)

    async def _rights(self, connection: Connection) -> list[Any]:
        with translated():
            return await self._fetch(connection, "doctor_rights", rights_asked(self.queries))

    async def require_push(self, probes: Probes) -> None:
        """Whether a notification comes at all, before workers rely on it."""
        try:
            pushes = await probes.pushes(self.channel, 1)
        except psycopg.Error:  # an engine that knows no LISTEN
            pushes = Pushes(None)
        if pushes.latency is None:
            self._poll(pushes)

    def _poll(self, pushes: Pushes) -> None:
        """Nobody can listen here: the rest is tried as workers do it that poll."""
        self._found(verdicts.pushes(pushes))
        self.config = replace(self.config, notify=False)
        self.connector.pooled = True

    async def _fetch(
        self, connection: Connection, name: str, values: dict[str, Any] | None = None
    ) -> list[Any]:
        return await (await connection.execute(self.queries[name], values)).fetchall()
