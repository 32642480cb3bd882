"""``jobsync-async web``: the page."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from jobsync_async.cli.app import app, complain, on_cluster
from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import ConfigError
from jobsync_async.host.person import person

if TYPE_CHECKING:
    from jobsync_async.web import Steer

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


@app.command()
@on_cluster
async def web(
    config: CoordinationConfig,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    steer: Annotated[
        bool,
        typer.Option(
            "--steer", help="Let visitors drain, pin, retry and so on. Needs a worker's rights."
        ),
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(help="With --steer: in whose name. Default: who runs this command."),
    ] = None,
    person_header: Annotated[
        str | None,
        typer.Option(
            help="With --steer: the header in which a proxy, which alone reaches this port, names "
            "the visitor. Who has none may only look.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A further name under which browsers ask for the page. May be repeated."),
    ] = None,
) -> int:
    """Serve the page: what is wrong, workers, tokens, tasks, batches and history, live in a
    browser. Reads only, but for --steer.

    It asks for no password. On this machine alone it answers to this machine's names only, or to
    --allow-host behind a proxy. Ends with 0 on Ctrl-C and SIGTERM.
    """
    try:
        from jobsync_async.web.serving import serve  # noqa: PLC0415 - an optional dependency
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        complain("the page needs an extra: pip install 'jobsync-async[web]'")
        return 2
    if steer and host not in _THIS_MACHINE and person_header is None:
        raise ConfigError(
            f"with --steer on {host}, whoever reaches this port would steer the cluster: say by "
            "--person-header who it is, or listen on 127.0.0.1"
        )
    names = [*_THIS_MACHINE, *(allow_host or [])] if host in _THIS_MACHINE else None
    may = _steer(by or person(), person_header) if steer else None
    logging.basicConfig(level=logging.WARNING)
    await serve(config, may, host=host, port=port, names=names, say=typer.echo)
    return 0


def _steer(by: str, header: str | None) -> Steer:
    return lambda request: by if header is None else request.headers.get(header)
