"""``jobsync-async status``: the cluster at a glance."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobsync_async.cli.app import DEFAULT_APPNAME, Appname, Dsn, Json, Output, Schema, app, config_of, run
from jobsync_async.config import CoordinationConfig
from jobsync_async.description import describe
from jobsync_async.postgres.store import Store

_MOST_ROWS = 20


@app.command()
def status(
    dsn: Dsn = None,
    appname: Appname = DEFAULT_APPNAME,
    schema: Schema = None,
    timeout: Annotated[float, typer.Option(help="Seconds without a heartbeat after which a worker is shown as silent.")] = 15,
    as_json: Json = False,
) -> None:
    """Show the workers and their shares, the leader, hand-offs under way and pins that match nobody.

    Exits with 1 when a token has no live owner.
    """
    run(_status(config_of(dsn, appname, schema), timeout, as_json))


async def _status(config: CoordinationConfig, timeout: float, as_json: bool) -> int:
    store = await Store.open(config, "status", observe=True)
    try:
        seen = await describe(store, timeout)
    finally:
        await store.close()
    if as_json:
        typer.echo(json.dumps(seen, indent=2))
    else:
        Output().print(rendered(seen, timeout))
    return 0 if seen["active_nodes"] and _unowned(seen) == 0 else 1


def _unowned(seen: dict[str, Any]) -> int:
    return int(seen["total_tokens"] - seen["distributed"] + seen["unowned"])


def rendered(seen: dict[str, Any], timeout: float) -> RenderableType:
    """What `describe` tells, for people."""
    unowned = _unowned(seen)
    owned = "all owned" if unowned == 0 else f"{unowned:,} owned by nobody"
    leader = f"led by {seen['leader']} in term {seen['term']}" if seen["leader"] else "without a leader"
    head = f"{seen['active_nodes']} live workers, {seen['total_tokens']:,} tokens, {owned}; {leader}; version {seen['version']}"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if seen["nodes"]:
        parts.append(_nodes(seen, timeout))
    if seen["handoffs"]:
        parts.append(_handoffs(seen["handoffs"]))
    if seen["unmatched_pins"]:
        parts.append(_unmatched(seen["unmatched_pins"]))
    return Group(*parts)


def _nodes(seen: dict[str, Any], timeout: float) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("worker", "state"):
        table.add_column(title, overflow="fold")
    for title in ("tokens", "share", "weight", "beat", "last beat"):
        table.add_column(title, justify="right")
    table.add_column("where", overflow="fold")
    for node in seen["nodes"]:
        silent = node["heartbeat_age_sec"] >= timeout
        state = "silent" if silent else node["state"]
        table.add_row(
            Text(node["name"]),
            Text(f"{state}, leads" if node["is_leader"] else state, style="red" if silent else ""),
            f"{node['tokens']:,}",
            f"{100 * node['tokens'] / seen['total_tokens']:.1f} %",
            f"{node['weight']:g}",
            f"{node['beat']:,}",
            f"{node['heartbeat_age_sec']:.1f} s ago",
            Text(f"{node['host'] or '?'}, pid {node['pid'] or '?'}"),
        )
    return table


def _handoffs(handoffs: list[dict[str, Any]]) -> Table:
    table = Table(title="being handed on", title_justify="left", box=None, pad_edge=False)
    for title in ("from", "to", "tokens", "for"):
        table.add_column(title)
    for handoff in handoffs[:_MOST_ROWS]:
        receiver = handoff["receiver"] or "nobody"
        table.add_row(Text(handoff["node"] or "?"), Text(receiver), f"{handoff['tokens']:,}", f"{handoff['oldest_sec']:.1f} s")
    return table


def _unmatched(pins: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{len(pins)} pins that no live worker matches", title_justify="left", box=None, pad_edge=False)
    for title in ("task", "token", "pinned to"):
        table.add_column(title, overflow="fold")
    for pin in pins[:_MOST_ROWS]:
        table.add_row(Text(pin["task_id"][:200]), str(pin["token_id"]), Text(", ".join(pin["node_patterns"])))
    return table
