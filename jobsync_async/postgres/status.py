"""Reading the cluster for people and routers: nodes, owners, hand-offs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.tokens import runs_of
from jobsync_async.types import NodeInfo, Owner, Pause


def node_info(row: Any) -> NodeInfo:
    """A worker from a row of ``list_nodes``."""
    return NodeInfo(**{**row._asdict(), "runs": None if row.runs is None else runs_of(row.runs)})


class Pulse(NamedTuple):
    """What says whether anything happened.

    Attributes:
        version: the cluster's; None while its row is missing.
        numbers: the workers, oldest first, each as its place by age.
        ages: seconds since the last heartbeat of each.
        digest: another one when anything else in their rows changed, or a pin ran out.
    """

    version: int | None
    numbers: Sequence[int]
    ages: Sequence[float]
    digest: int


class Status:
    """Read-only statements. All raise StoreUnavailable."""

    def __init__(self, pool: Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def owner_of(self, token_id: int) -> Owner | None:
        """Who owns a token now; None for nobody."""
        rows = await self._fetch("owner_of", {"token_id": token_id})
        return Owner(*rows[0]) if rows else None

    async def nodes(self) -> list[NodeInfo]:
        """The workers, oldest first."""
        return [node_info(row) for row in await self._fetch("list_nodes")]

    async def cluster(self) -> dict[str, Any]:
        """The cluster row and counts, as a dictionary."""
        return dict((await self._fetch("read_status"))[0]._asdict())

    async def pause(self) -> Pause | None:
        """The pause that holds now."""
        rows = await self._fetch("read_pause")
        return Pause(*rows[0]) if rows else None

    async def evicted(self) -> list[dict[str, Any]]:
        """The names under which no worker joins."""
        return [row._asdict() for row in await self._fetch("list_evicted")]

    async def handoffs(self) -> list[dict[str, Any]]:
        """Tokens on their way, grouped by owner and receiver, the longest first."""
        return [row._asdict() for row in await self._fetch("list_handoffs")]

    async def stuck_handoffs(self) -> list[dict[str, Any]]:
        """Revoked tokens that are still in use past the hand-off timeout, each with worker, task
        and seconds."""
        return [row._asdict() for row in await self._fetch("list_stuck")]

    async def pulse(self) -> Pulse:
        """A look that costs next to nothing: heartbeats, and whether a whole look is due."""

        async def work(connection: Connection) -> Pulse:
            cursor = connection.cursor(binary=True)  # many numbers: faster than text
            row = await (await cursor.execute(self._queries["pulse"])).fetchone()
            assert row is not None, "it has no rows to choose from"
            return Pulse(row.version, row.numbers or (), row.ages or (), row.digest)

        return await self._pool.run(work)

    async def _fetch(self, name: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            return await (await connection.execute(self._queries[name], values)).fetchall()

        return await self._pool.run(work)
