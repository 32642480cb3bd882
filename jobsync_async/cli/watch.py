"""``jobsync-async watch``: the cluster at a glance, live."""

from __future__ import annotations

import datetime as dt
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Protocol

import anyio
import typer
from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live

from jobsync_async.cli.app import Json, Output, Timeout, app, complain, on_cluster
from jobsync_async.cli.keyboard import Keyboard
from jobsync_async.cli.news import news
from jobsync_async.cli.picture import Scroll, draw, frame
from jobsync_async.cli.status import headline, printable
from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import StoreUnavailable
from jobsync_async.host.task_groups import task_group
from jobsync_async.observer import Observer, store_of
from jobsync_async.operations.places import placed
from jobsync_async.operations.problems import Problem, changed, problems
from jobsync_async.operations.survey import Stillness, survey

# Changes this close together are shown as one.
_GATHER_SEC = 0.05


@app.command()
@on_cluster
async def watch(
    config: CoordinationConfig,
    timeout: Timeout = None,
    every: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds between looks at heartbeats and batches, which nothing announces.",
        ),
    ] = 2,
    as_json: Json = False,
) -> int:
    """Show live what is wrong, the worst first, and the workers, a line each: changes at once, by
    push. In a pipe, a line for each change.

    On a terminal the arrows, Page Up and Page Down scroll, and q ends it. Ends with 0 on Ctrl-C and
    SIGTERM, too, and when its reader goes away.
    """
    console = Output()
    async with task_group() as group:
        group.start_soon(_end_on_signal, group.cancel_scope)
        async with Observer(config, name="watch") as cluster:
            if as_json or not console.is_terminal or console.is_dumb_terminal:
                group.start_soon(_look_for_reader)
                await _follow(cluster, Lines(console, config, timeout, as_json), every)
            else:
                with TerminalScreen(console, config, timeout) as screen:
                    group.start_soon(screen.follow_terminal)
                    group.start_soon(screen.follow_keys, group.cancel_scope)
                    await _follow(cluster, screen, every)
    return 0


class Screen(Protocol):
    """Where the cluster is shown."""

    def show(self, seen: dict[str, Any]) -> None:
        """Show what `survey` returned."""

    def unavailable(self, error: StoreUnavailable) -> None:
        """The server cannot be reached; what is shown is old."""


async def _follow(cluster: Observer, screen: Screen, every: float) -> None:
    news_came = anyio.Event()
    still = Stillness()
    known: dict[str, Any] | None = None
    due = 0.0  # when batches are looked at again

    async def listen() -> None:
        async for _ in cluster.changes():
            news_came.set()

    async with task_group() as group:
        group.start_soon(listen)
        while True:
            if time.monotonic() >= due:
                known, due = None, time.monotonic() + every
            try:
                known = await survey(store_of(cluster), known=known)
                still.note(known, time.monotonic())
                screen.show(known)
            except StoreUnavailable as error:
                screen.unavailable(error)
            with anyio.move_on_after(every):
                await news_came.wait()
                await anyio.sleep(_GATHER_SEC)
            news_came = anyio.Event()


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


class TerminalScreen:
    """On a terminal: a screen of its own, which is drawn anew and scrolled with keys."""

    def __init__(self, console: Console, config: CoordinationConfig, timeout: float | None) -> None:
        self._console = console
        self._config = config
        self._timeout = timeout
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._keyboard = Keyboard()
        self._scroll = Scroll()
        self._seen: tuple[dict[str, Any], Sequence[Problem]] | None = None
        self._alarm: str | None = None

    def __enter__(self) -> TerminalScreen:
        self._keyboard.open()
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with _gone_is_closed():
                self._live.stop()
        finally:
            self._keyboard.close()

    def show(self, seen: dict[str, Any]) -> None:
        self._seen, self._alarm = (seen, problems(seen, self._timeout)), None
        self._draw()

    def unavailable(self, error: StoreUnavailable) -> None:
        self._alarm = f"this is old: {placed(self._config, error)}"
        self._draw()

    async def follow_keys(self, scope: anyio.CancelScope) -> None:
        """Scroll; a key that ends the command cancels `scope`, and so does the end of all keys."""

        def press(key: str) -> None:
            if key == "quit":
                scope.cancel()
            else:
                self._scroll.press(key)
                self._draw()

        if self._keyboard.there:
            await self._keyboard.read(press)
            scope.cancel()

    async def follow_terminal(self) -> None:
        """Draw anew when its size changes, and give it back while Ctrl-Z stops this process."""
        with anyio.open_signal_receiver(signal.SIGWINCH, signal.SIGTSTP) as signals:
            async for number in signals:
                if number == signal.SIGTSTP:
                    self.__exit__()
                    os.kill(os.getpid(), signal.SIGSTOP)
                    self.__enter__()
                self._draw()

    def _follow_size(self) -> None:
        """Take the terminal's own size: shells that export COLUMNS and LINES say what was once."""
        with suppress(OSError):  # it is gone, which the next line that is written finds
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
            if columns and lines:
                self._console.size = ConsoleDimensions(columns, lines)

    def _draw(self) -> None:
        if self._seen is None:
            return
        self._follow_size()
        drawn = draw(*self._seen, self._console)
        lines = frame(
            drawn, self._scroll, self._console, alarm=self._alarm, keyboard=self._keyboard.there
        )
        with _gone_is_closed():
            self._live.update(Group(*lines), refresh=True)


@contextmanager
def _gone_is_closed() -> Iterator[None]:
    """A terminal that is gone is as a pipe that nobody reads any more."""
    try:
        yield
    except OSError as error:
        raise BrokenPipeError from error


class Lines:
    """In a pipe: a line for each change."""

    def __init__(
        self, console: Console, config: CoordinationConfig, timeout: float | None, as_json: bool
    ) -> None:
        self._console = console
        self._config = config
        self._timeout = timeout
        self._as_json = as_json
        self._before: tuple[dict[str, Any], Sequence[Problem]] | None = None
        self._cut_off = False

    def show(self, seen: dict[str, Any]) -> None:
        found = problems(seen, self._timeout)
        before, self._before = self._before, (seen, found)
        told = [] if before is None else news(before[0], seen)
        trouble = changed(() if before is None else before[1], found)
        if self._cut_off:
            self._cut_off = False
            complain("PostgreSQL can be reached again")
        if before is not None and not told and not trouble:
            return
        if self._as_json:
            plain = [problem.plain() for problem in found]
            typer.echo(json.dumps({**seen, "problems": plain}))
            return
        if told or before is None:
            self._print("; ".join([*told, headline(seen)]))
        for line in trouble:
            self._print(line)

    def unavailable(self, error: StoreUnavailable) -> None:
        if not self._cut_off:
            self._cut_off = True
            complain(placed(self._config, error))

    def _print(self, text: str) -> None:
        # for people here
        line = f"{dt.datetime.now():%H:%M:%S}  {printable(text)}"  # noqa: DTZ005
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
