"""A display of how a batch proceeds, for `Job.run_batch(…, progress=…)`."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from jobsync_async.errors import UsageError
from jobsync_async.work.progress import BatchProgress, ProgressCallback

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from typing_extensions import Self

__all__ = ["BatchProgress", "ProgressCallback", "RichProgress"]

_LINE_EVERY_SEC = 5.0


class RichProgress:
    """A progress bar on a terminal, and a line every few seconds elsewhere; needs the extra
    ``cli``. While a stream of ids goes on, the bar shows how many are done, and not of how many.

        with RichProgress("invoices") as progress:
            result = await job.run_batch(ids, handle, progress=progress)

    Args:
        title: what is being done.
        console: where to draw; the default is standard error, which leaves standard output to
            results.

    Raises:
        UsageError: rich is not installed.
    """

    def __init__(self, title: str = "batch", *, console: Console | None = None) -> None:
        try:
            from rich.console import Console  # noqa: PLC0415 - an optional dependency
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "rich":
                raise
            raise UsageError(
                "RichProgress needs rich, which comes with an extra: pip install "
                "'jobsync-async[cli]'"
            ) from None
        self._title = title
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_line_at = 0.0

    def __repr__(self) -> str:
        return f"<RichProgress {self._title!r} {'shown' if self._bar is not None else 'not shown'}>"

    def __enter__(self) -> Self:
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def __call__(self, progress: BatchProgress) -> None:
        """Show it. Raises UsageError outside of the ``with``."""
        if self._bar is None or self._task is None:
            raise UsageError(
                "enter it first: `with RichProgress(…) as progress:` around run_batch(…, "
                "progress=progress)"
            )
        done = progress.total - progress.remaining
        parts = f"{progress.completed_here} here, {progress.completed_elsewhere} elsewhere"
        if progress.failed:
            parts += f", {progress.failed} failed"
        if self._console.is_terminal:
            total = None if progress.more else progress.total
            self._bar.update(self._task, total=total, completed=done, parts=parts)
        elif progress.seconds >= self._next_line_at or not (progress.remaining or progress.more):
            self._next_line_at = progress.seconds + _LINE_EVERY_SEC
            of = f"{progress.total}{' so far' if progress.more else ''}"
            line = f"{self._title}: {done} of {of}, {parts}, {progress.seconds:.1f} s"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
