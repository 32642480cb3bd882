"""Pins: registering them in bulk, listing, clearing. Every change takes a version, so the leader
hears of it at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jobsync_async.core.hashing import task_key
from jobsync_async.core.pins import Pin, admit
from jobsync_async.postgres.arrays import bytes_array, int_array, text_array
from jobsync_async.postgres.cluster_version import take_version
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.history import HistoryStatements
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext
from jobsync_async.types import LockInfo

_MOST_TOLD = 20  # of the tasks of one act


class PinStatements:
    """The statements about pins.

    Attributes:
        history: where what people pin and unpin is written down; None for a worker, whose pins are
            part of what its program does at each start.
    """

    def __init__(self, link: Pool, queries: Queries, context: StatementContext) -> None:
        self._link = link
        self._queries = queries
        self._context = context
        self.history: HistoryStatements | None = None

    async def register(
        self,
        pins: Sequence[Pin],
        reasons: Sequence[str | None],
        created_by: str,
        expires_in_days: float | None,
    ) -> list[tuple[Pin, Pin]]:
        """Store pins, `reasons` beside them; those that were refused, each with the pin that stays.
        All in one transaction.

        Raises StoreUnavailable; registering the same pins again is safe.
        """
        reason_of = dict(
            zip(((pin.task_id, pin.node_patterns) for pin in pins), reasons, strict=True)
        )

        async def work(connection: Connection) -> list[tuple[Pin, Pin]]:
            # The cluster's row lock comes first: of two registrations that conflict, one sees the
            # other.
            await self._take_version(connection)
            await connection.execute(self._queries["delete_expired_pins"])
            tokens = int_array(sorted({pin.token_id for pin in pins}))
            cursor = await connection.execute(
                self._queries["pins_of_tokens"], {"token_ids": tokens}
            )
            existing = [
                Pin(row.task_id, row.token_id, tuple(row.node_patterns))
                for row in await cursor.fetchall()
            ]
            accepted, refused = admit(pins, existing)
            if accepted:
                values = {
                    "task_keys": bytes_array([task_key(pin.task_id) for pin in accepted]),
                    "task_ids": text_array([pin.task_id for pin in accepted]),
                    "token_ids": int_array([pin.token_id for pin in accepted]),
                    "node_patterns": text_array(
                        [json.dumps(pin.node_patterns) for pin in accepted]
                    ),
                    "reasons": [reason_of[pin.task_id, pin.node_patterns] for pin in accepted],
                    "created_by": created_by,
                    "expires_in_days": expires_in_days,
                }
                await connection.execute(self._queries["upsert_pins"], values)
                tasks = [pin.task_id for pin in accepted[:_MOST_TOLD]]
                patterns = list(accepted[0].node_patterns)
                told = {"pins": len(accepted), "tasks": tasks, "node_patterns": patterns}
                await self._tell(
                    connection,
                    "pinned",
                    told,
                    reason_of[accepted[0].task_id, accepted[0].node_patterns],
                )
            await connection.execute(self._queries["touch_pins"])
            return refused

        return await self._link.transaction(work)

    async def clear(self, created_by: str | None) -> int:
        """Delete the pins that `created_by` made, or all for None; how many there were."""
        query = "delete_all_pins" if created_by is None else "delete_pins_by_creator"

        async def work(connection: Connection) -> int:
            await self._take_version(connection)
            cursor = await connection.execute(self._queries[query], {"created_by": created_by})
            if cursor.rowcount:
                told = {"pins": cursor.rowcount, "created_by": created_by}
                await self._tell(connection, "unpinned", told)
            await connection.execute(self._queries["touch_pins"])
            return cursor.rowcount

        return await self._link.transaction(work)

    async def clear_tasks(self, task_ids: Sequence[str]) -> int:
        """Delete the pins of these tasks, given as text; how many there were."""
        values = {"task_keys": bytes_array([task_key(text) for text in task_ids])}

        async def work(connection: Connection) -> int:
            await self._take_version(connection)
            cursor = await connection.execute(self._queries["delete_pins_of_tasks"], values)
            if cursor.rowcount:
                told = {"pins": cursor.rowcount, "tasks": list(task_ids[:_MOST_TOLD])}
                await self._tell(connection, "unpinned", told)
            await connection.execute(self._queries["touch_pins"])
            return cursor.rowcount

        return await self._link.transaction(work)

    async def list(self) -> list[LockInfo]:
        """The pins in force, oldest first. Raises StoreUnavailable."""

        async def work(connection: Connection) -> list[LockInfo]:
            rows = await (await connection.execute(self._queries["list_pins"])).fetchall()
            return [
                LockInfo(**{**row._asdict(), "node_patterns": tuple(row.node_patterns)})
                for row in rows
            ]

        return await self._link.run(work)

    async def _tell(
        self, connection: Connection, kind: str, details: dict[str, Any], reason: str | None = None
    ) -> None:
        if self.history is not None:
            by = self._context.by
            await self.history.record(connection, kind, by=by, reason=reason, details=details)

    async def _take_version(self, connection: Connection) -> int:
        return await take_version(connection, self._queries, self._context)
