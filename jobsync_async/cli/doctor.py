"""``jobsync-async doctor``: looks for what would keep a cluster from working."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from jobsync_async.cli import certify as certifying
from jobsync_async.cli.app import (
    Json,
    ServerProfile,
    TheirInterval,
    TheirTimeout,
    app,
    emit,
    given,
    on_cluster,
    table,
)
from jobsync_async.config import CoordinationConfig
from jobsync_async.operations.certify.certificate import Wish
from jobsync_async.operations.doctor import examine
from jobsync_async.operations.judgements import Check


@app.command()
@on_cluster
async def doctor(
    config: CoordinationConfig,
    interval: TheirInterval = None,
    timeout: TheirTimeout = None,
    server_profile: ServerProfile = None,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify", help="Also try it, as `certify` does: in a minute, in tables of its own."
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Look for what would keep workers from working here, and say what to do about it. Writes
    nothing, without --certify.

    Run it as the workers' role, from a worker's machine. Exits with 1 when a check fails.
    """
    settings = given(
        heartbeat_interval_sec=interval,
        heartbeat_timeout_sec=timeout,
        server_profile=server_profile,
    )
    config = replace(config, **settings)
    checks = await examine(config)
    statuses: list[str] = [check.status for check in checks]
    answer: dict[str, Any] = {"checks": [check.plain() for check in checks]}
    shown = rendered(checks)
    if certify and statuses[0] != "fail":  # the first is about the connection
        certificate = await certifying.certified(Wish(config))
        statuses.append(certificate.status)
        answer["certificate"] = certificate.plain()
        shown = Group(shown, Text(), certifying.rendered(certificate))
    emit(answer, shown, as_json)
    return 1 if "fail" in statuses else 0


def rendered(checks: Sequence[Check]) -> RenderableType:
    """The findings, for people."""
    shown = table("check", "status", "found")
    for check in checks:
        shown.add_row(check.name, *certifying.judged(check))
    return shown
