"""What the demo shows: a live table on a terminal, a line a second in a pipe, and the result."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobsync_async.demo.conductor import DemoProgress
from jobsync_async.host.task_groups import task_group

_LINE_EVERY_SEC = 1.0
_FRAME_EVERY_SEC = 0.1
_NEWS_SHOWN = 8


@asynccontextmanager
async def shown(progress: DemoProgress, console: Console) -> AsyncIterator[None]:
    """Show the progress while the body runs."""
    async with task_group() as group:
        group.start_soon(_animate if console.is_terminal else _print_lines, progress, console)
        yield
        group.cancel_scope.cancel()


async def _animate(progress: DemoProgress, console: Console) -> None:
    with Live(_frame(progress), console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_frame(progress), refresh=True)
            await anyio.sleep(_FRAME_EVERY_SEC)


async def _print_lines(progress: DemoProgress, console: Console) -> None:
    told = 0
    seconds = 0.0
    while True:
        for at, what in progress.news[told:]:
            console.print(f"{at:6.1f} s  {what}", highlight=False, soft_wrap=True)
        told = len(progress.news)
        if progress.seconds >= seconds and progress.completed:
            seconds = progress.seconds + _LINE_EVERY_SEC
            by_worker = ", ".join(
                f"{name} {count:,}" for name, count in sorted(progress.completed.items())
            )
            line = (
                f"{progress.seconds:6.1f} s  {progress.done:,} of {progress.total:,} files: "
                f"{by_worker}"
            )
            console.print(line, highlight=False, soft_wrap=True)
        await anyio.sleep(_FRAME_EVERY_SEC)


def _frame(progress: DemoProgress) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("worker", "left"),
        ("tokens", "right"),
        ("files", "right"),
        ("", "left"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for name in sorted(progress.completed.keys() | progress.tokens.keys()):
        files, tokens = progress.completed.get(name, 0), progress.tokens.get(name)
        bar = ProgressBar(total=progress.total, completed=files, width=30)
        table.add_row(name, "gone" if tokens is None else f"{tokens:,}", f"{files:,}", bar)
    news = [Text(f"{at:6.1f} s  {what}", style="dim") for at, what in progress.news[-_NEWS_SHOWN:]]
    head = Text(
        f"{progress.done:,} of {progress.total:,} files, {progress.seconds:.1f} s", style="bold"
    )
    return Group(head, table, *news)


def result(progress: DemoProgress) -> RenderableType:
    """The tables in the end."""
    workers = Table(title="Who did what", title_justify="left")
    workers.add_column("worker")
    workers.add_column("files completed", justify="right")
    for name, files in sorted(progress.completed.items()):
        workers.add_row(name, f"{files:,}")
    workers.add_section()
    workers.add_row("all", f"{progress.done:,} of {progress.total:,}")

    takeovers = Table(
        title="How long until every token had a live owner and shares were even",
        title_justify="left",
    )
    takeovers.add_column("change")
    takeovers.add_column("seconds", justify="right")
    takeovers.add_column("tokens moved", justify="right")
    for takeover in progress.takeovers:
        seconds = "the files ended first" if takeover.seconds is None else f"{takeover.seconds:.2f}"
        takeovers.add_row(takeover.what, seconds, f"{takeover.tokens_moved:,}")

    checks = Table(title="Checked against the database", title_justify="left")
    for title in ("promise", "", "found"):
        checks.add_column(title)
    for check in progress.checks:
        checks.add_row(check.promise, "[green]yes[/]" if check.kept else "[red]NO[/]", check.found)
    return Group(workers, takeovers, checks)
