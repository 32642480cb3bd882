"""``jobsync-async watch``: the cluster at a glance, live."""

from __future__ import annotations

import datetime as dt
import json
import select
import signal
import sys
from typing import Annotated, Any, Protocol

import anyio
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from jobsync_async.cli.app import Json, Output, Timeout, app, complain, on_cluster
from jobsync_async.cli.news import news
from jobsync_async.cli.status import headline, rendered
from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import StoreUnavailable
from jobsync_async.host.task_groups import task_group
from jobsync_async.observer import Observer

# Changes this close together are shown as one.
_GATHER_SEC = 0.05


@app.command()
@on_cluster
async def watch(
    config: CoordinationConfig,
    timeout: Timeout = None,
    every: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds between looks at heartbeats, which nothing announces."),
    ] = 2,
    as_json: Json = False,
) -> int:
    """Show what `status` shows, live: changes at once, by push. In a pipe, a line for each change.

    Ends with 0 on Ctrl-C and SIGTERM, and when its reader goes away.
    """
    console = Output()
    async with task_group() as group:
        group.start_soon(_end_on_signal, group.cancel_scope)
        async with Observer(config, name="watch") as cluster:
            if as_json or not console.is_terminal:
                group.start_soon(_look_for_reader)
                await _follow(cluster, Lines(console, timeout, as_json), every)
            else:
                with Live(
                    console=console, auto_refresh=False, vertical_overflow="ellipsis"
                ) as live:
                    await _follow(cluster, Picture(live, timeout), every)
    return 0


class Screen(Protocol):
    """Where the cluster is shown."""

    def show(self, seen: dict[str, Any]) -> None:
        """Show what `describe` returned."""

    def unavailable(self, error: StoreUnavailable) -> None:
        """The server cannot be reached; what is shown is old."""


async def _follow(cluster: Observer, screen: Screen, every: float) -> None:
    changed = anyio.Event()

    async def listen() -> None:
        async for _ in cluster.changes():
            changed.set()

    async with task_group() as group:
        group.start_soon(listen)
        while True:
            try:
                screen.show(await cluster.status())
            except StoreUnavailable as error:
                screen.unavailable(error)
            with anyio.move_on_after(every):
                await changed.wait()
                await anyio.sleep(_GATHER_SEC)
            changed = anyio.Event()


async def _end_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            scope.cancel()


async def _look_for_reader() -> None:
    """End when nobody reads what is printed any more, even if nothing is to be printed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    while True:
        await anyio.sleep(0.5)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            raise BrokenPipeError


class Picture:
    """On a terminal: redrawn in place."""

    def __init__(self, live: Live, timeout: float | None) -> None:
        self._live = live
        self._timeout = timeout
        self._seen: dict[str, Any] | None = None

    def show(self, seen: dict[str, Any]) -> None:
        self._seen = seen
        self._live.update(rendered(seen, self._timeout), refresh=True)

    def unavailable(self, error: StoreUnavailable) -> None:
        old = [] if self._seen is None else [rendered(self._seen, self._timeout)]
        self._live.update(
            Group(Text(f"this is old: {error}", style="bold red"), *old), refresh=True
        )


class Lines:
    """In a pipe: a line for each change."""

    def __init__(self, console: Console, timeout: float | None, as_json: bool) -> None:
        self._console = console
        self._timeout = timeout
        self._as_json = as_json
        self._seen: dict[str, Any] | None = None
        self._cut_off = False

    def show(self, seen: dict[str, Any]) -> None:
        before, self._seen = self._seen, seen
        told = [] if before is None else news(before, seen, self._timeout)
        if self._cut_off:
            self._cut_off = False
            complain("PostgreSQL can be reached again")
        if before is not None and not told:
            return
        if self._as_json:
            typer.echo(json.dumps(seen))
        else:
            # for people here
            line = f"{dt.datetime.now():%H:%M:%S}  {'; '.join([*told, headline(seen)])}"  # noqa: DTZ005
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def unavailable(self, error: StoreUnavailable) -> None:
        if not self._cut_off:
            self._cut_off = True
            complain(str(error))
