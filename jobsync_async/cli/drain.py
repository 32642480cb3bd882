"""``jobsync-async drain`` and ``undrain``: take a worker's tokens away, or let it have some again,
from anywhere."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import anyio
import typer
from rich.text import Text

from jobsync_async.cli.app import By, Json, Reason, app, complain, emit, on_cluster, opened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.ids import require_storable
from jobsync_async.observer import Observer
from jobsync_async.postgres.store import Store

Node = Annotated[str, typer.Argument(help="The worker's name.", metavar="NODE")]
Wait = Annotated[
    float,
    typer.Option(
        min=0, help="Seconds to wait at most until it has no tokens any more. 0 does not wait."
    ),
]


class StateChange(NamedTuple):
    """Which state a worker is to have; who wants it, None for whoever types; and why."""

    node: str
    state: str
    by: str | None
    reason: str | None


@app.command()
@on_cluster
async def drain(
    config: CoordinationConfig,
    node: Node,
    wait: Wait = 0,
    by: By = None,
    reason: Reason = None,
    as_json: Json = False,
) -> int:
    """Let a worker hand on every token and stay without any. It hears of it at once; a restart of
    it ends that.

    Exits with 1 when there is no such worker, or it still has tokens after --wait.
    """
    return await _set(config, StateChange(node, "draining", by, reason), wait, as_json)


@app.command()
@on_cluster
async def undrain(
    config: CoordinationConfig,
    node: Node,
    by: By = None,
    reason: Reason = None,
    as_json: Json = False,
) -> int:
    """Let a worker have tokens again. Exits with 1 when there is no such worker."""
    return await _set(config, StateChange(node, "active", by, reason), 0, as_json)


async def _set(
    config: CoordinationConfig, change: StateChange, wait_sec: float, as_json: bool
) -> int:
    name, state, by, reason = change
    async with opened(config, by) as store:
        if reason is not None:
            require_storable("--reason", reason, store.codec)
        tokens = await _tokens(store, name)
        if tokens is None:
            complain(f"there is no worker named {name!r}; `jobsync-async status` lists them")
            emit(
                {"node": name, "state": None, "changed": False, "tokens": None},
                Text("nothing changed"),
                as_json,
            )
            return 1
        changed = await store.membership.set_state(name, state, reason=reason)
        if wait_sec:
            await _emptied(config, store, name, wait_sec)
        tokens = await _tokens(store, name)
    if tokens is None:  # it left meanwhile
        state, tokens = "gone", 0
    was = "is now" if changed else "was already"
    rendered = Text(f"{name} {was} {state}; it has {tokens:,} tokens")
    emit({"node": name, "state": state, "changed": changed, "tokens": tokens}, rendered, as_json)
    return 1 if wait_sec and tokens else 0


async def _tokens(store: Store, name: str) -> int | None:
    nodes = {node.name: node.tokens for node in await store.status.nodes()}
    return nodes.get(name)


async def _emptied(config: CoordinationConfig, store: Store, name: str, wait_sec: float) -> None:
    """Wait, told by push, until the worker has no tokens, for so long at most."""
    async with Observer(config, name="command") as cluster:
        with anyio.move_on_after(wait_sec):
            async for _ in cluster.changes():
                if not await _tokens(store, name):
                    return
