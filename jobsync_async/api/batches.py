"""Batches."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, overload

from jobsync_async.api.base import Started, check_text
from jobsync_async.core.runs import Asked, date_of
from jobsync_async.errors import ConfigError
from jobsync_async.types import BatchCounts, BatchResult, Id, StreamOfIds, TasksOrIds

if TYPE_CHECKING:
    from jobsync_async.work.handlers import Handler
    from jobsync_async.work.progress import ProgressCallback


class BatchCalls(Started):
    """Every id of many once."""

    date: dt.date | None

    @overload
    async def run_batch(
        self,
        ids: TasksOrIds[Id],
        handler: Handler[Id],
        *,
        name: str | None = None,
        date: dt.date | None = None,
        concurrency: int = 8,
        attempts: int = 3,
        progress: ProgressCallback | None = None,
    ) -> BatchResult[Id]: ...

    @overload
    async def run_batch(
        self,
        ids: StreamOfIds[Id],
        handler: Handler[Id],
        *,
        name: str,
        date: dt.date | None = None,
        concurrency: int = 8,
        attempts: int = 3,
        progress: ProgressCallback | None = None,
    ) -> BatchCounts[Id]: ...

    async def run_batch(
        self,
        ids: TasksOrIds[Id] | StreamOfIds[Id],
        handler: Handler[Id],
        *,
        name: str | None = None,
        date: dt.date | None = None,
        concurrency: int = 8,
        attempts: int = 3,
        progress: ProgressCallback | None = None,
    ) -> BatchResult[Id] | BatchCounts[Id]:
        """Complete every id once per date, together with all workers that run the same batch;
        returns when all are complete.

        Of a stream the result tells how many, not which: `BatchCounts`.

        While the cluster is paused, it waits: no handler is called.

        Run again, it resumes: what is complete is not begun again, and what was given up is tried
        anew. An id at work on which `attempts` workers (two at least) have ended is set aside: it
        is in `failed` until ``jobsync-async release``.

        Args:
            ids: the ids of the whole cluster, the same at every worker. An async iterable is a
                stream: it is taken in as there is room, 50,000 ids at a time, so they may be too
                many to keep. Every worker gives the same ids in the same order.
            name: tells batches over the same ids apart; the same at every worker. Without one, a
                batch is told by its ids. A stream needs one.
            date: the run's; None is that of the batch's unfinished run, else the job's, else the
                cluster's.
            handler: a function that takes the `Claim`, async, or plain and run in a thread of its
                own; it may be called again for an id if a worker dies or loses the token half-way,
                so make its effects repeatable, or commit them through `fence`. Each call is a task
                of its own, with the context variables of whoever calls this.
            concurrency: how many handlers run at once here.
            attempts: how often a handler fails here before the id is reported as failed. It fails
                when it raises, or when it blocks the event loop until its lease is over. Also how
                many workers an id may end before it is set aside.
            progress: called with a `BatchProgress`, plain or async: at the start, when something
                has changed, though not more than five times a second, and at the end.
                `jobsync_async.progress.RichProgress` is one that draws a bar. If it raises, so does
                this.

        Raises:
            UsageError: the job ended before the batch; what ended it is the cause.
            CoordinationError: open ids belong to workers that run this batch under another date,
                or are at other ids of its stream, and will not do them.
            ConfigError: an id cannot be one, or two are equal and have different texts; or another
                argument cannot work.
            Exception: what a stream raises. Its cleanup has ended then, as it has in any case.
        """
        # many workers do without
        from jobsync_async.work.batch import Batch  # noqa: PLC0415
        from jobsync_async.work.handlers import check_handler, check_ids  # noqa: PLC0415
        from jobsync_async.work.order import Order  # noqa: PLC0415

        self._require_started()
        check_handler(handler)
        is_stream = check_ids(ids, name, streams=True)
        if name is not None:
            check_text("name", name)
        for setting, value in (("concurrency", concurrency), ("attempts", attempts)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{setting} must be a whole number of at least 1; got {value!r}")
        engine = self._engine
        order = Order(
            self._worker,
            engine.work,
            engine.fence_table,
            engine.codec,
            self._token_of,
            self._ended,
            Asked(name, date_of(date), self.date),
            handler,
            concurrency,
            attempts,
            progress,
        )
        given: Any = ids
        if not is_stream:
            return await Batch(order).run(given)
        from jobsync_async.work.portions import Portions  # noqa: PLC0415

        return await Portions(order).run(given)
