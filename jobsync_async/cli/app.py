"""What the commands share: options, errors as text, and the exit status."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import inspect
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, NoReturn

import anyio
import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from jobsync_async import __version__
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.ids import require_storable
from jobsync_async.core.server_profile import NAMES
from jobsync_async.errors import ConfigError, JobSyncError, StoreError
from jobsync_async.host.person import person
from jobsync_async.host.task_groups import task_group
from jobsync_async.operations.places import HOW, placed
from jobsync_async.postgres.store import Store

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look after a cluster of jobsync_async workers.",
)

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jobsync-async {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


_CONNECTION = "Which cluster"
Dsn = Annotated[
    str | None,
    typer.Option(
        help="PostgreSQL, as a URI or key=value pairs. Default: JOBSYNC_DSN, then libpq's "
        "environment and files (PGHOST, PGDATABASE, …).",
        rich_help_panel=_CONNECTION,
    ),
]
Appname = Annotated[
    str | None,
    typer.Option(
        help="Prefix of the cluster's tables. Default: JOBSYNC_APPNAME, then sync_.",
        rich_help_panel=_CONNECTION,
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(
        help="Schema of the tables. Default: JOBSYNC_SCHEMA, then the first one on the search "
        "path.",
        rich_help_panel=_CONNECTION,
    ),
]
TheirInterval = Annotated[
    float | None,
    typer.Option(
        help="heartbeat_interval_sec of the workers. Default: JOBSYNC_HEARTBEAT_INTERVAL_SEC, "
        "then 5."
    ),
]
TheirTimeout = Annotated[
    float | None,
    typer.Option(
        help="heartbeat_timeout_sec of the workers. Default: JOBSYNC_HEARTBEAT_TIMEOUT_SEC, "
        "then 15."
    ),
]
ServerProfile = Annotated[
    str | None,
    typer.Option(
        "--server-profile",
        metavar="|".join(NAMES),
        help="How the server is recognised, as in the workers' configuration, where it does not "
        "show it by itself. Default: JOBSYNC_SERVER_PROFILE.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, as docs/command-line.md describes it.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Seconds without a heartbeat after which a worker is shown as silent. Default: its "
        "own timeout.",
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        "--by", help="Who does it, for the history. Default: whoever types.", show_default=False
    ),
]
Reason = Annotated[str | None, typer.Option(help="Why, for the history.")]
_WIDTH_OF_A_PIPE = 240  # where lines are searched, not looked at, they should not be folded


class Output(Console):
    """Standard output, for people. That its reader has seen enough is an error like any other,
    which `run` knows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _WIDTH_OF_A_PIPE

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def on_cluster(work: Callable[..., Coroutine[Any, Any, int]]) -> Callable[..., None]:
    """Make a command of `work`, which takes the configuration of a cluster first, then the
    command's own arguments and options. The options that name a cluster are added. The command
    exits with the status that `work` returns."""
    return _command(work, _named)


def on_server(work: Callable[..., Coroutine[Any, Any, int]]) -> Callable[..., None]:
    """The same for a command that is about no cluster: there is no --appname."""
    return _command(work, _reached)


def _command(
    work: Callable[..., Coroutine[Any, Any, int]], named: Callable[..., CoordinationConfig]
) -> Callable[..., None]:
    own, which = (
        inspect.signature(function, eval_str=True).parameters for function in (work, named)
    )

    @functools.wraps(work)
    def command(**options: Any) -> None:
        cluster = {name: options.pop(name) for name in which}
        run(lambda: _placed(functools.partial(work, **options), named, cluster))

    shown = [*list(own.values())[1:], *which.values()]
    signature = inspect.Signature(
        [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in shown]
    )
    command.__signature__ = signature  # type: ignore[attr-defined]
    return command


async def _placed(
    work: Callable[[CoordinationConfig], Coroutine[Any, Any, int]],
    named: Callable[..., CoordinationConfig],
    cluster: dict[str, Any],
) -> int:
    """What does not work at the server is told with where that is, and how to name another."""
    try:
        config = named(**cluster)
    except ConfigError as error:
        if cluster["dsn"] is not None and "dsn" in str(error):
            raise ConfigError(f"{error}: {HOW}") from error
        raise
    try:
        return await work(config)
    except StoreError as error:
        tell(placed(config, error))
        return 1


def _named(dsn: Dsn = None, appname: Appname = None, schema: Schema = None) -> CoordinationConfig:
    return CoordinationConfig.from_env(**given(dsn=dsn, appname=appname, schema=schema))


def given(**options: Any) -> dict[str, Any]:
    """Those of the options that win over the environment: those that are there."""
    return {name: value for name, value in options.items() if value is not None}


def _reached(dsn: Dsn = None, schema: Schema = None) -> CoordinationConfig:
    return CoordinationConfig.from_env(**given(dsn=dsn, schema=schema))


@asynccontextmanager
async def opened(config: CoordinationConfig, by: str | None = None) -> AsyncIterator[Store]:
    """The cluster's statements. The tables must be there; nothing joins.

    Args:
        by: whom the history names for what is done; None for whoever types.
    """
    store = await Store.open(config, "command", observe=True)
    try:
        if by is not None:
            require_storable("--by", by, store.codec)
        store.context.by = person(store.codec) if by is None else by
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def ended_by_signals() -> AsyncIterator[None]:
    """SIGTERM and SIGHUP end the block in order, and the program goes on after it."""
    async with task_group() as group:
        group.start_soon(_end_on_signal, group.cancel_scope)
        yield
        group.cancel_scope.cancel()


async def _end_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            scope.cancel()


def emit(data: Any, rendered: RenderableType, as_json: bool) -> None:
    """Print the answer, for programs or for people."""
    if as_json:
        typer.echo(json.dumps(data, indent=2))
    else:
        Output().print(rendered)


def titled(title: str, shown: Table) -> RenderableType:
    """A table under a line that may be longer than it."""
    return Group(Text(title, style="italic"), shown)


class _Table(Table):
    """Where its longest words do not fit, a terminal gets each row as lines of name and value
    instead of columns of scraps."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if (
            not self.show_header
            or self.__rich_measure__(console, options).minimum <= options.max_width
        ):
            yield from super().__rich_console__(console, options)
            return
        names = [column.header for column in self.columns]
        for number, cells in enumerate(
            zip(*(column.cells for column in self.columns), strict=True)
        ):
            if number:
                yield Text()
            lines = Table(box=None, pad_edge=False, show_header=False)
            lines.add_column()
            lines.add_column(overflow="fold")
            for name, cell in zip(names, cells, strict=True):
                if str(cell):
                    lines.add_row(name, cell)
            yield lines


def table(*columns: str) -> Table:
    """A table without lines; columns that begin with ``>`` are of numbers. Folds on narrow
    terminals."""
    made = _Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(
            column.removeprefix(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
        )
    return made


def moment(iso: str) -> str:
    """A time of an answer, in the reader's own time zone."""
    return f"{dt.datetime.fromisoformat(iso).astimezone():%Y-%m-%d %H:%M:%S}"


def duration(seconds: float) -> str:
    """About how long, in the largest unit of which there is at least one."""
    unit, length = next(((unit, length) for unit, length in _UNITS if seconds >= length), ("s", 1))
    return f"{seconds / length:.0f} {unit}"


def complain(message: str) -> None:
    """Say on standard error what is not so."""
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)


def run(work: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command to its end and exit with the status that it returns; an error of this library
    is printed, not traced."""

    async def awaited() -> int:
        return await work()

    try:
        status = anyio.run(awaited)
        sys.stdout.flush()
    except JobSyncError as error:
        fail(error)
    except asyncio.CancelledError:  # before Python 3.11, this is how anyio tells of an interrupt
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # Whoever read our output has seen enough. Nothing more may be written, not even by the
        # interpreter at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    raise typer.Exit(status)


def fail(error: JobSyncError) -> NoReturn:
    """Print an error and exit: with 2 when what was given cannot work, with 1 when it did not."""
    tell(str(error))
    raise typer.Exit(2 if isinstance(error, ConfigError) else 1)


def tell(error: str) -> None:
    """Print an error."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text("error: ", style="bold red"), end="")
    console.print(error, markup=False, highlight=False)
