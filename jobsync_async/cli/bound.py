"""``jobsync-async bound``: shows or changes the longest heartbeat timeout that a worker of the
cluster may have."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import anyio
import typer
from rich.text import Text

from jobsync_async.cli.app import Json, app, complain, emit, on_cluster, opened
from jobsync_async.config import CoordinationConfig
from jobsync_async.postgres.bounds import Bounds

_LOOK_SEC = 0.2


@app.command()
@on_cluster
async def bound(
    config: CoordinationConfig,
    seconds: Annotated[
        float | None,
        typer.Argument(
            help="The longest heartbeat_timeout_sec from now on. Default: show it.",
            metavar="[SECONDS]",
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait at most for the replicas of the server.")
    ] = 60,
    replicated: Annotated[
        bool,
        typer.Option(
            "--replicated",
            help="Do not ask the server: you know that every replica has the last change.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Show or change the longest heartbeat_timeout_sec that a worker may have.

    Workers wait for so long when PostgreSQL was failed over. Raised, it counts for that at once,
    and a worker may join with it when every replica knows. It is lowered when no worker above it is
    left. Exits with 1 when that is not so yet: do it again.

    To see how far replicas are, the role needs pg_monitor.
    """
    if seconds is not None:
        config = replace(config, heartbeat_timeout_sec=seconds, heartbeat_interval_sec=seconds / 4)
    async with opened(config) as store:
        bounds = store.bounds
        above = () if seconds is None else await bounds.set(seconds)
        lagging: list[str] = []
        if seconds is not None and not above:
            if not replicated:
                lagging = await _lagging(bounds, wait)
            if not lagging:
                await bounds.allow(seconds)
                # Or a failover refuses them again.
                lagging = [] if replicated else await _lagging(bounds, wait)
        longest_wait, longest_allowed, _ = await bounds.read()
    if above:
        complain(
            f"workers may have a longer timeout than {seconds:g} s: {', '.join(above)}; replace "
            "them first"
        )
    if lagging:
        complain(
            f"workers wait for {seconds:g} s now, but {', '.join(lagging)} may not know of that "
            "yet: do it again"
        )
    answer = {
        "longest_wait_sec": longest_wait,
        "longest_allowed_sec": longest_allowed,
        "workers_above": list(above),
        "replicas_without": lagging,
    }
    if longest_wait is None:
        told = "there is no bound before the first worker"
    else:
        told = f"workers may have a heartbeat_timeout_sec of up to {longest_allowed or 0:g} s"
        told += (
            ""
            if longest_wait == longest_allowed
            else f"; after a failover they wait for {longest_wait:g} s"
        )
    emit(answer, Text(told), as_json)
    return 1 if above or lagging else 0


async def _lagging(bounds: Bounds, wait_sec: float) -> list[str]:
    """Replicas that do not have the present bound, after having waited for them for so long at
    most."""
    written = (await bounds.read()).written
    with anyio.move_on_after(wait_sec):
        while await bounds.lagging(written):  # noqa: ASYNC110 - the server tells nobody
            await anyio.sleep(_LOOK_SEC)
    return await bounds.lagging(written)
