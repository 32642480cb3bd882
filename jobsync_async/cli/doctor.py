"""``jobsync-async doctor``: looks for what would keep a cluster from working."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from jobsync_async.cli.app import Json, app, emit, given, on_cluster, table
from jobsync_async.config import CoordinationConfig
from jobsync_async.operations.doctor import examine
from jobsync_async.operations.judgements import Check

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@app.command()
@on_cluster
async def doctor(
    config: CoordinationConfig,
    interval: Annotated[
        float | None,
        typer.Option(
            help="heartbeat_interval_sec of the workers. Default: JOBSYNC_HEARTBEAT_INTERVAL_SEC, "
            "then 5."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="heartbeat_timeout_sec of the workers. Default: JOBSYNC_HEARTBEAT_TIMEOUT_SEC, "
            "then 15."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Look for what would keep workers from working here, and say what to do about it. Writes
    nothing.

    Run it as the workers' role, from a worker's machine. Exits with 1 when a check fails.
    """
    times = given(heartbeat_interval_sec=interval, heartbeat_timeout_sec=timeout)
    checks = await examine(replace(config, **times))
    emit({"checks": [check.plain() for check in checks]}, rendered(checks), as_json)
    return 1 if any(check.status == "fail" for check in checks) else 0


def rendered(checks: Sequence[Check]) -> RenderableType:
    """The findings, for people."""
    shown = table("check", "status", "found")
    for check in checks:
        found = Text(check.found)
        if check.advice:
            found.append(f"\n→ {check.advice}", style="italic")
        shown.add_row(check.name, Text(check.status, style=_STYLES[check.status]), found)
    return shown
