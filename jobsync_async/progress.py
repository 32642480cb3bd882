"""How a batch proceeds, for `Job.run_batch(…, progress=…)`, and a ready-made display of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import anyio
from typing_extensions import Self

from jobsync_async.errors import UsageError
from jobsync_async.work.callbacks import call
from jobsync_async.work.handlers import apart

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["BatchProgress", "ProgressCallback", "RichProgress"]

_AT_MOST_EVERY_SEC = 0.2  # what people can follow
_LINE_EVERY_SEC = 5.0


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is, seen from one worker, which learns of the others' part when it has nothing to do itself.

    Attributes:
        total: different ids in the batch.
        completed_here: ids that this worker has completed in this run.
        completed_elsewhere: ids that others have completed, or that were complete before.
        failed: ids that were given up.
        seconds: since `Job.run_batch` was called.
    """

    total: int
    completed_here: int
    completed_elsewhere: int
    failed: int
    seconds: float

    @property
    def remaining(self) -> int:
        """Ids that are not done with, as far as this worker knows."""
        return self.total - self.completed_here - self.completed_elsewhere - self.failed


ProgressCallback = Callable[[BatchProgress], Awaitable[object] | object]
"""Called with a `BatchProgress`; a plain one blocks the event loop while it runs."""


class Reporter:
    """Calls a callback: first at once, then after changes, but not too often, and in the end. `run` is a task."""

    def __init__(self, callback: ProgressCallback, current: Callable[[], BatchProgress]) -> None:
        self._callback = callback
        self._current = current
        self._changed = asyncio.Event()
        self._told: BatchProgress | None = None

    def changed(self) -> None:
        """There is something to report."""
        self._changed.set()

    async def run(self) -> None:
        """Report for ever. What the callback raises passes."""
        while True:
            await self._tell()
            await anyio.sleep(_AT_MOST_EVERY_SEC)
            await self._changed.wait()
            self._changed.clear()

    async def finish(self) -> None:
        """Report the end, with `run` no longer running, unless `run` has."""
        if self._told is None or self._told.remaining:
            await self._tell()

    async def _tell(self) -> None:
        progress = self._current()

        async def tell() -> None:
            await call(self._callback, progress)
            self._told = progress

        await apart("the progress callback of run_batch", tell)


class RichProgress:
    """A progress bar on a terminal, and a line every few seconds elsewhere; needs the extra ``cli``.

        with RichProgress("invoices") as progress:
            result = await job.run_batch(ids, handle, progress=progress)

    Args:
        title: what is being done.
        console: where to draw; the default is standard error, which leaves standard output to results.

    Raises:
        UsageError: rich is not installed.
    """

    def __init__(self, title: str = "batch", *, console: Console | None = None) -> None:
        try:
            from rich.console import Console  # noqa: PLC0415 - an optional dependency
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "rich":
                raise
            raise UsageError("RichProgress needs rich, which comes with an extra: pip install 'jobsync-async[cli]'") from None
        self._title = title
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_line_at = 0.0

    def __repr__(self) -> str:
        return f"<RichProgress {self._title!r} {'shown' if self._bar is not None else 'not shown'}>"

    def __enter__(self) -> Self:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[parts]}", markup=False),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(self._title, total=None, parts="")
        self._bar.start()
        self._next_line_at = 0.0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def __call__(self, progress: BatchProgress) -> None:
        """Show it. Raises UsageError outside of the ``with``."""
        if self._bar is None or self._task is None:
            raise UsageError("enter it first: `with RichProgress(…) as progress:` around run_batch(…, progress=progress)")
        done = progress.total - progress.remaining
        parts = f"{progress.completed_here} here, {progress.completed_elsewhere} elsewhere"
        if progress.failed:
            parts += f", {progress.failed} failed"
        if self._console.is_terminal:
            self._bar.update(self._task, total=progress.total, completed=done, parts=parts)
        elif progress.seconds >= self._next_line_at or progress.remaining == 0:
            self._next_line_at = progress.seconds + _LINE_EVERY_SEC
            line = f"{self._title}: {done} of {progress.total}, {parts}, {progress.seconds:.1f} s"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
