"""Claims and completions: lists of tasks in one round trip each, fenced by token, incarnation and epoch in the statement."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobsync_async.core.hashing import task_key
from jobsync_async.core.rows import Identity, Progress, Work
from jobsync_async.core.texts import storable
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.tokens import int_array


class WorkStore:
    """The statements about tasks."""

    def __init__(self, link: Pool, queries: Queries, codec: str = "utf-8") -> None:
        self._link = link
        self._codec = codec
        self._queries = queries

    async def record_claims(
        self, me: Identity, date: dt.date, works: Sequence[Work], *, all_or_none: bool = False
    ) -> dict[str, bool]:
        """Write down that tasks begin; for each whose ownership held, whether it may begin (False: it is complete already).

        Args:
            all_or_none: write nothing when the ownership of any of them did not hold.

        Raises StoreUnavailable; recording again is safe.
        """
        if len(works) == 1:
            (work,) = works
            values = {**work._asdict(), "task_key": task_key(work.task_id), "date": date, "node": me.name}
            held = await self._fetch("record_claim", {**values, "incarnation": me.incarnation})
            return {work.task_id: not held[0].complete} if held else {}
        values = {**self._fenced(me, date, works), "all_or_none": all_or_none}
        rows = await self._record("record_claims", values, works)
        return {text: not row.complete for text, row in rows.items()}

    async def record_completions(self, me: Identity, date: dt.date, works: Sequence[Work]) -> dict[str, bool]:
        """Complete tasks; for each whose ownership held, whether this call completed it (False: it was complete before).

        Raises StoreUnavailable; recording again is safe.
        """
        rows = await self._record("record_completions", self._fenced(me, date, works), works)
        return {text: row.completed for text, row in rows.items()}

    async def write_audit(self, me: Identity, date: dt.date, works: Sequence[Work]) -> int:
        """Write down tasks as done, whoever owns them now; how many were not written down before."""
        values = self._fenced(me, date, works)

        async def work(connection: Connection) -> int:
            return (await connection.execute(self._queries["write_audit"], values)).rowcount

        return await self._link.run(work)

    async def record_failures(self, date: dt.date, failures: Sequence[tuple[Work, str]]) -> int:
        """Write down that tasks were given up, with the error; of how many: those that nobody has begun anew since."""
        values = {
            "date": date,
            "task_keys": [task_key(work.task_id) for work, _ in failures],
            "errors": [storable(error, self._codec) for _, error in failures],
            "epochs": int_array([work.epoch for work, _ in failures]),
        }

        async def work(connection: Connection) -> int:
            return (await connection.execute(self._queries["record_failures"], values)).rowcount

        return await self._link.run(work)

    async def forget_failures(self, date: dt.date, texts: Iterable[str]) -> None:
        """Try again what was given up."""
        values = {"date": date, "task_keys": [task_key(text) for text in texts]}

        async def work(connection: Connection) -> None:
            await connection.execute(self._queries["forget_failures"], values)

        await self._link.run(work)

    async def read_progress(self, date: dt.date, texts: Iterable[str]) -> dict[str, Progress]:
        """Which of the tasks are done with."""
        keys = {task_key(text): text for text in texts}
        rows = await self._fetch("read_progress", {"date": date, "task_keys": list(keys)})
        return {keys[row.task_key]: Progress(row.node, row.error, row.claimed_at) for row in rows}

    async def read_audit(self, date: dt.date) -> list[dict[str, Any]]:
        """The completions of a date, oldest first."""
        return [row._asdict() for row in await self._fetch("read_audit", {"date": date})]

    async def _record(self, name: str, values: Mapping[str, Any], works: Sequence[Work]) -> dict[str, Any]:
        rows = {row.task_key: row for row in await self._fetch(name, values)}
        keys = ((work.task_id, task_key(work.task_id)) for work in works)
        return {text: rows[key] for text, key in keys if key in rows}

    def _fenced(self, me: Identity, date: dt.date, works: Sequence[Work]) -> dict[str, Any]:
        # Sorted, so that two statements over the same tasks lock rows in the same order.
        by_key = sorted({task_key(work.task_id): work for work in works}.items())
        return {
            "date": date,
            "node": me.name,
            "incarnation": me.incarnation,
            "task_keys": [key for key, _ in by_key],
            "task_ids": [work.task_id for _, work in by_key],
            "token_ids": int_array([work.token_id for _, work in by_key]),
            "epochs": int_array([work.epoch for _, work in by_key]),
        }

    async def _fetch(self, name: str, values: Mapping[str, Any]) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            return await (await cursor.execute(self._queries[name], values)).fetchall()

        return await self._link.run(work)
