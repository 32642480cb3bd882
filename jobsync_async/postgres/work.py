"""Claims, completions and batches: lists of tasks in one round trip each, fenced by token,
incarnation and epoch in the statement."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from jobsync_async.core.hashing import key_range
from jobsync_async.core.rows import Identity, TaskProgress, Work
from jobsync_async.core.runs import Asked, Begun, Complete, Opened, Parts, Place, Run
from jobsync_async.core.texts import storable
from jobsync_async.postgres.arrays import bytes_array, int_array, text_array
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.pool import Pool
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext

T = TypeVar("T")

SET_ASIDE = "its workers ended # times while it was at work; `jobsync-async release` releases it"
"""Why a task is set aside; # is how often."""


class WorkStore:
    """The statements about tasks. `WorkRecords` says what each of them does."""

    def __init__(
        self, link: Pool, queries: Queries, context: StatementContext, codec: str = "utf-8"
    ) -> None:
        self._link = link
        self._context = context
        self._codec = codec
        self._queries = queries

    async def read_date(self) -> dt.date:
        (row,) = await self._fetch("read_date", {})
        date: dt.date = row.date
        return date

    # -- claims and completions --------------------------------------------------------------------

    async def record_claims(
        self, me: Identity, run: Run, works: Sequence[Work], *, all_or_none: bool = False
    ) -> dict[str, bool]:
        if len(works) == 1:
            (work,) = works
            values = {
                **work._asdict(),
                "task_key": run.key(work.task_id),
                "date": run.date,
                "node": me.name,
            }
            held = await self._fetch("record_claim", {**values, "incarnation": me.incarnation})
            return {work.task_id: not held[0].complete} if held else {}
        more = {"all_or_none": all_or_none}
        rows = await self._record("record_claims", me, run, works, more)
        return {text: not row.complete for text, row in rows.items()}

    async def begin_tasks(
        self, me: Identity, run: Run, works: Sequence[Work], *, lost_limit: int, most_lost: int
    ) -> dict[str, Begun]:
        limits = {"lost_limit": lost_limit, "most_lost": most_lost, "reason": SET_ASIDE}
        others = await self._record("begin_tasks", me, run, works, limits)
        return _but_for(
            others,
            works,
            Begun(True),
            lambda row: Begun(row.begun, row.complete, row.set_aside, row.lost),
        )

    async def record_completions(
        self, me: Identity, run: Run, works: Sequence[Work]
    ) -> dict[str, bool]:
        others = await self._record("record_completions", me, run, works)
        return _but_for(others, works, True, lambda _: False)

    async def write_audit(self, me: Identity, run: Run, works: Sequence[Work]) -> int:
        return await self._execute("write_audit", self._fenced(me, run, _by_key(run, works)))

    async def end_claims(
        self, me: Identity, run: Run, ended: Sequence[tuple[Work, str | None]]
    ) -> int:
        values = {
            **self._counted(me, run),
            "task_keys": bytes_array([run.key(work.task_id) for work, _ in ended]),
            "errors": [
                None if error is None else storable(error, self._codec) for _, error in ended
            ],
            "epochs": int_array([work.epoch for work, _ in ended]),
        }
        (row,) = await self._fetch("end_claims", values)
        return int(row.ended)

    async def note_failure(self, run: Run, work: Work, error: str) -> None:
        values = {
            "date": run.date,
            "task_key": run.key(work.task_id),
            "epoch": work.epoch,
            "error": storable(error, self._codec),
        }
        await self._execute("note_failure", values)

    async def forget_failures(self, me: Identity, run: Run, texts: Iterable[str]) -> None:
        keys = {"task_keys": bytes_array([run.key(text) for text in texts])}
        await self._execute("forget_failures", self._counted(me, run) | keys)

    async def read_progress(self, run: Run, texts: Iterable[str]) -> dict[str, TaskProgress]:
        return await self._progress("read_progress", run, texts)

    async def read_set_aside(self, run: Run, texts: Iterable[str]) -> dict[str, TaskProgress]:
        return await self._progress("read_set_aside", run, texts)

    async def read_audit(self, date: dt.date) -> list[dict[str, Any]]:
        return [row._asdict() for row in await self._fetch("read_audit", {"date": date})]

    # -- batches -----------------------------------------------------------------------------------

    async def begin_batch(
        self, me: Identity, key: bytes, ids_key: bytes, asked: Asked, total: int | None
    ) -> Opened:
        values = {**asked._asdict(), "batch_key": key, "ids_key": ids_key, "total": total}
        return Opened(*await self._one_at_a_time("begin_batch", key, {**values, "node": me.name}))

    async def advance_batch(self, me: Identity, run: Run, place: Place, *, anyhow: bool) -> bool:
        values = {**self._counted(me, run), **place._asdict(), "anyhow": anyhow}
        values |= self._context.values(None)
        row = await self._one_at_a_time("advance_batch", run.batch_key, values)
        return bool(row.there)

    async def _one_at_a_time(self, name: str, key: bytes, values: Mapping[str, Any]) -> Any:
        """The row that comes back, while nobody else sends a statement of this kind about the
        batch."""
        lock = f"{self._queries.schema}.{self._queries.appname} batch {key.hex()}"
        statements = [self._queries["lock_batch"], self._queries[name]]

        async def work(connection: Connection) -> Any:
            _, (row,) = await connection.together(statements, {**values, "lock": lock})
            return row

        return await self._link.run(work)

    async def find_complete(
        self, key: bytes, ids_key: bytes, asked: Asked, total: int
    ) -> Complete | None:
        low, high = key_range(asked.name)
        values = {**asked._asdict(), "batch_key": key, "ids_key": ids_key, "total": total}
        rows = await self._fetch("find_complete", {**values, "low": low, "high": high})
        return Complete(*rows[0]) if rows else None

    async def finish_batch(self, run: Run, opened: Opened, ids_key: bytes) -> None:
        values = _opening(run, opened, ids_key)
        await self._execute("finish_batch", values | self._context.values(None))

    async def read_parts(self, run: Run, opened: Opened, ids_key: bytes) -> Parts:
        (row,) = await self._fetch("read_parts", _opening(run, opened, ids_key))
        return Parts(*row)

    async def find_dates(self, run: Run, tokens: Mapping[str, int]) -> set[tuple[str, dt.date]]:
        values = {
            "batch_key": run.batch_key,
            "date": run.date,
            "name": run.batch,
            "this_run": _told(run),
            "task_keys": bytes_array([run.key(text) for text in tokens]),
            "token_ids": int_array(list(tokens.values())),
        }
        return {(row.node, row.date) for row in await self._fetch("find_dates", values)}

    async def find_strays(self, run: Run, place: Place, tokens: Collection[int]) -> set[str]:
        values = {
            "batch_key": run.batch_key,
            "date": run.date,
            "this_run": _told(run),
            "token_ids": int_array(list(tokens)),
            **place._asdict(),
        }
        return {row.node for row in await self._fetch("find_strays", values)}

    # ----------------------------------------------------------------------------------------------

    async def _progress(self, name: str, run: Run, texts: Iterable[str]) -> dict[str, TaskProgress]:
        keys = {run.key(text): text for text in texts}
        rows = await self._fetch(name, {"date": run.date, "task_keys": bytes_array(list(keys))})
        return {
            keys[row.task_key]: TaskProgress(row.node, row.error, row.claimed_at) for row in rows
        }

    async def _record(
        self,
        name: str,
        me: Identity,
        run: Run,
        works: Sequence[Work],
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        by_key = _by_key(run, works)
        rows = await self._fetch(name, {**self._fenced(me, run, by_key), **more})
        return {by_key[row.task_key].task_id: row for row in rows}

    def _fenced(self, me: Identity, run: Run, by_key: Mapping[bytes, Work]) -> dict[str, Any]:
        works = by_key.values()
        return {
            **self._counted(me, run),
            "batch": run.batch,
            "task_keys": bytes_array(list(by_key)),
            "task_ids": text_array([work.task_id for work in works]),
            "token_ids": int_array([work.token_id for work in works]),
            "epochs": int_array([work.epoch for work in works]),
        }

    def _counted(self, me: Identity, run: Run) -> dict[str, Any]:
        """Under which run something is counted, and as whose."""
        return {
            "date": run.date,
            "batch_key": run.batch_key,
            "node": me.name,
            "incarnation": me.incarnation,
        }

    async def _fetch(self, name: str, values: Mapping[str, Any]) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            return await (await cursor.execute(self._queries[name], values)).fetchall()

        return await self._link.run(work)

    async def _execute(self, name: str, values: Mapping[str, Any]) -> int:
        """How many rows it wrote."""

        async def work(connection: Connection) -> int:
            return (await connection.execute(self._queries[name], values)).rowcount

        return await self._link.run(work)


def _opening(run: Run, opened: Opened, ids_key: bytes) -> dict[str, Any]:
    """The very opening of a run, and over which ids."""
    key = {"batch_key": run.batch_key, "date": run.date, "ids_key": ids_key}
    return {**key, "started_at": opened.started_at}


def _told(run: Run) -> str:
    """How a worker says that it runs this."""
    return json.dumps([{"kind": "batch", "name": run.batch, "date": run.date.isoformat()}])


def _but_for(
    others: Mapping[str, Any], works: Iterable[Work], usual: T, other: Callable[[Any], T]
) -> dict[str, T]:
    """What came of each work whose fence held: `usual`, but for those of which a row came back."""
    answers = dict.fromkeys((work.task_id for work in works), usual)
    for text, row in others.items():
        if row.held:
            answers[text] = other(row)
        else:
            del answers[text]
    return answers


def _by_key(run: Run, works: Iterable[Work]) -> dict[bytes, Work]:
    """Sorted, so that two statements over the same tasks lock rows in the same order."""
    return dict(sorted((run.key(work.task_id), work) for work in works))
