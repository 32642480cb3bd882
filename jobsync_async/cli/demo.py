"""``jobsync-async demo``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobsync_async.cli.app import Json, Output, app, emit, ended_by_signals, run, tell
from jobsync_async.config import CoordinationConfig
from jobsync_async.demo.conductor import Demo, DemoFailed, server
from jobsync_async.demo.display import result, shown
from jobsync_async.operations.places import tried, why
from jobsync_async.postgres.schema import Unreachable


@app.command()
def demo(
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn",
            help="A server to run on, in tables that are dropped again. Default: an embedded one.",
        ),
    ] = None,
    files: Annotated[
        int | None, typer.Option(min=300, help="How many files at most. Default: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Checksum the files of the installed Python with three workers; kill one midway, add one, and
    check the promises.

    Exits with 1 when one of them was not kept.
    """
    run(lambda: _placed(dsn, files, as_json))


async def _placed(dsn: str | None, files: int | None, as_json: bool) -> int:
    try:
        return await _demo(dsn, files, as_json)
    except Unreachable as error:
        if dsn is None:
            raise
        tell(f"{why(error)}; tried {tried(CoordinationConfig(dsn=dsn))}: give another with --dsn")
        return 1


async def _demo(dsn: str | None, files: int | None, as_json: bool) -> int:
    console = Output(stderr=as_json)  # of the two, the progress gives way to the answer
    with server(dsn) as reached:
        conducted = Demo(reached, files)
        async with ended_by_signals(), shown(conducted.progress, console):
            await conducted.run()
    if not conducted.progress.checks:
        raise DemoFailed("the demo was ended before its end")
    progress = conducted.progress
    answer = {
        "files": progress.total,
        "completed": progress.completed,
        "takeovers": [asdict(takeover) for takeover in progress.takeovers],
        "checks": [asdict(check) for check in progress.checks],
    }
    emit(answer, result(progress), as_json)
    return 0 if all(check.kept for check in conducted.progress.checks) else 1
