"""``jobsync-async history``: what the rebalances did."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from jobsync_async.cli.app import Json, app, emit, moment, on_cluster, opened, table
from jobsync_async.config import CoordinationConfig
from jobsync_async.runtime.cluster_status import plain


@app.command()
@on_cluster
async def history(
    config: CoordinationConfig,
    last: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    as_json: Json = False,
) -> int:
    """Show the latest rebalances, the newest first: when, why, who led, how many tokens moved, how
    long it took."""
    async with opened(config) as store:
        rebalances = [plain(row) for row in await store.status.rebalances(last)]
    emit({"rebalances": rebalances}, rendered(rebalances), as_json)
    return 0


def rendered(rebalances: list[dict[str, Any]]) -> RenderableType:
    """The rebalances, for people."""
    if not rebalances:
        return Text("no tokens were ever distributed")
    shown = table("when", "why", "led by", ">workers", ">moved", ">took")
    for one in rebalances:
        shown.add_row(
            moment(one["at"]),
            Text(one["reason"]),
            Text(one["leader"]),
            f"{one['nodes_before']} → {one['nodes_after']}",
            f"{one['tokens_moved']:,}",
            f"{one['duration_ms']:.1f} ms",
        )
    return shown
