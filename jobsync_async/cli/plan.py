"""``jobsync-async plan``: what the next rebalance would move."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from jobsync_async.cli.app import Json, app, emit, on_cluster, opened, table, titled
from jobsync_async.config import CoordinationConfig
from jobsync_async.operations.planning import plan_ahead

_MOST_ROWS = 30


@app.command()
@on_cluster
async def plan(
    config: CoordinationConfig,
    without: Annotated[
        list[str] | None, typer.Option(help="As if this worker were gone. May be repeated.")
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(help="As if a worker of this name had joined. May be repeated."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Show what the next rebalance would move, now or with other workers. Writes nothing."""
    async with opened(config) as store:
        planned = await plan_ahead(store, without=without or [], adding=add or [])
    emit(planned, rendered(planned), as_json)
    return 0


def rendered(planned: dict[str, Any]) -> RenderableType:
    """The plan, for people."""
    head = f"{planned['moved']:,} tokens would move" if planned["moved"] else "nothing would move"
    if planned["under_way"]:
        head += f"; {planned['under_way']:,} are being handed on already"
    parts: list[RenderableType] = [Text(f"{head} (at version {planned['version']})", style="bold")]
    if planned["moves"]:
        moves = table("from", "to", ">tokens")
        for move in planned["moves"][:_MOST_ROWS]:
            moves.add_row(
                Text(move["from"] or "nobody"), Text(move["to"] or "nobody"), f"{move['tokens']:,}"
            )
        parts.append(moves)
    if planned["nodes"]:
        nodes = table("worker", "state", ">weight", ">tokens now", ">then")
        for node in planned["nodes"]:
            counts = f"{node['tokens']:,}", f"{node['tokens_planned']:,}"
            nodes.add_row(Text(node["name"]), node["state"], f"{node['weight']:g}", *counts)
        parts.append(nodes)
    if planned["unmatched"]:
        unmatched = table(">token", "pinned to")
        for pin in planned["unmatched"][:_MOST_ROWS]:
            unmatched.add_row(str(pin["token_id"]), Text(", ".join(pin["node_patterns"])))
        parts.append(titled("tokens that stay without an owner, for no worker matches", unmatched))
    return Group(*parts)
