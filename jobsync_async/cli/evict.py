"""``jobsync-async evict``: put a worker out that does not listen."""

from __future__ import annotations

import time
from typing import Annotated, Any

import anyio
import typer
from rich.text import Text

from jobsync_async.cli.app import By, Json, Reason, app, complain, emit, on_cluster, opened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.ids import require_storable
from jobsync_async.observer import Observer
from jobsync_async.postgres.store import Store
from jobsync_async.runtime.cluster_status import plain, silent
from jobsync_async.types import NodeInfo

# A look at the workers while nothing is announced: whether there is anybody to take the tokens.
_LOOK_SEC = 1.0


@app.command()
@on_cluster
async def evict(
    config: CoordinationConfig,
    node: Annotated[str, typer.Argument(help="The worker's name.", metavar="NODE")],
    by: By = None,
    reason: Reason = None,
    allow: Annotated[
        bool, typer.Option("--allow", help="Let workers of this name join again.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until others have its tokens.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Put a worker out that does not listen. It may not act any more, and others get its tokens as
    soon as its lease must be over. No worker of this name joins until --allow.

    Also for a name that no worker has now. Exits with 1 when there are no others to get the tokens,
    and with --allow when the name was not evicted.
    """
    async with opened(config, by) as store:
        for name, text in (("NODE", node), ("--reason", reason)):
            if text is not None:
                require_storable(name, text, store.codec)
        if allow:
            allowed = await store.steering.allow(node, store.context.by)
            text = f"{node} may join again" if allowed else f"{node} was not evicted"
            emit({"node": node, "allowed": allowed}, Text(text), as_json)
            return 0 if allowed else 1
        return await _evict(config, store, node, reason, no_wait, as_json)


async def _evict(
    config: CoordinationConfig,
    store: Store,
    name: str,
    reason: str | None,
    no_wait: bool,
    as_json: bool,
) -> int:
    done = await store.steering.evict(name, store.context.by, reason)
    began = time.monotonic()
    there = await _row(store, done.row)
    answer: dict[str, Any] = {
        "node": name,
        "changed": done.changed,
        **plain({"at": done.at, "by": done.by, "reason": done.reason}),
        "row": done.row,
        "older": done.older,
        "tokens": 0 if there is None else there.tokens,
        "tokens_left": 0 if there is None else there.tokens,
        "seconds": 0.0,
    }
    if done.changed and done.row is None:
        complain(f"no worker is named {name!r} now; none may join under it from now on")
    if done.older:
        complain(
            f"{name!r} is a worker of 0.1.0, which knows no eviction: it joins again under its "
            "name. End its process"
        )
    if there is not None and there.tokens and not no_wait:
        within = f", within about {there.timeout_sec:g} s" if there.timeout_sec else ""
        complain(
            f"{name} is evicted; {there.tokens:,} tokens go to others when its lease must be over"
            f"{within}"
        )
        answer["tokens_left"] = await _gone(config, store, done.row)
        answer["seconds"] = round(time.monotonic() - began, 3)
    emit(answer, Text(_said(answer, no_wait)), as_json)
    return 1 if answer["tokens_left"] and not no_wait else 0


def _said(answer: dict[str, Any], no_wait: bool) -> str:
    tokens, left = answer["tokens"], answer["tokens_left"]
    head = f"{answer['node']} is evicted"
    if not answer["changed"]:
        head = f"{answer['node']} was evicted already, by {answer['by']}"
    if answer["row"] is None:
        return head
    if left == 0:
        return f"{head}; others have its {tokens:,} tokens, after {answer['seconds']:.1f} s"
    why = "" if no_wait else ": no other worker is there that takes tokens"
    return f"{head}; {left:,} tokens wait, as {answer['row']!r}{why}"


async def _row(store: Store, row: str | None) -> NodeInfo | None:
    return next((one for one in await store.status.nodes() if one.name == row), None)


async def _gone(config: CoordinationConfig, store: Store, row: str | None) -> int:
    """Wait, told by push, until others have the tokens of this row, or there are no others; how
    many it still has."""
    async with Observer(config, name="command") as cluster:
        changes = cluster.changes()
        while True:
            nodes = await store.status.nodes()
            here = next((node for node in nodes if node.name == row), None)
            takers = [n for n in nodes if n.state == "active" and not silent(n)]
            if here is None or not here.tokens or not takers:
                return 0 if here is None else here.tokens
            with anyio.move_on_after(_LOOK_SEC):
                await changes.__anext__()
