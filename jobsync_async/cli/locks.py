"""``jobsync-async locks``: pins, listed, made and cleared from outside."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from jobsync_async.cli.app import Json, app, complain, emit, moment, on_cluster, opened, table
from jobsync_async.cli.status import shortened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import task_text, token_hasher
from jobsync_async.runtime.cluster_status import plain
from jobsync_async.work.pins import PinRegistry

locks = typer.Typer(no_args_is_help=True, help="Pins: which tasks must run on which workers.")
app.add_typer(locks, name="locks")


@locks.command("list")
@on_cluster
async def list_locks(config: CoordinationConfig, as_json: Json = False) -> int:
    """Show the pins in force, oldest first."""
    async with opened(config) as store:
        pins = [plain(pin) for pin in await store.pins.list()]
    emit({"locks": pins}, rendered(pins), as_json)
    return 0


def rendered(pins: list[dict[str, Any]]) -> RenderableType:
    """The pins, for people."""
    if not pins:
        return Text("no pins")
    shown = table("task", ">token", "pinned to", "reason", "by", "until")
    for pin in pins:
        patterns, reason = (
            Text(", ".join(pin["node_patterns"])),
            Text(shortened(pin["reason"] or "")),
        )
        until = moment(pin["expires_at"]) if pin["expires_at"] else "for ever"
        shown.add_row(
            Text(shortened(pin["task_id"])),
            str(pin["token_id"]),
            patterns,
            reason,
            Text(pin["created_by"] or "?"),
            until,
        )
    return shown


@locks.command("add")
@on_cluster
async def add_lock(
    config: CoordinationConfig,
    task_id: Annotated[str, typer.Argument(help="A task's id.", metavar="ID")],
    patterns: Annotated[
        list[str],
        typer.Argument(
            help="SQL LIKE patterns of workers' names, in order of preference.", metavar="PATTERN…"
        ),
    ],
    reason: Annotated[str | None, typer.Option(help="For people.")] = None,
    days: Annotated[
        float | None, typer.Option(help="Days until it expires. Default: never.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="In whose name; `locks clear --by` finds it by that. Default: whoever types.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Pin a task to the workers that match; its token moves at once.

    Exits with 1 when another task on the same token is pinned elsewhere: that pin stays.
    """
    async with opened(config, by) as store:
        settings = await store.inspection.settings()
        token_of = token_hasher(settings.total_tokens, settings.hash_function)
        refused = await PinRegistry(store.pins, token_of, store.context.by, store.codec).register(
            [(task_id, patterns, reason)], days
        )
    token = token_of(task_id)
    answer = {
        "task_id": task_id,
        "token_id": token,
        "node_patterns": patterns,
        "added": not refused,
        "holder_task_id": refused[0].holder_task_id if refused else None,
        "holder_node_patterns": list(refused[0].node_patterns) if refused else None,
    }
    if refused:
        complain(str(refused[0]))
    emit(answer, Text(f"{'not ' if refused else ''}pinned, token {token}"), as_json)
    return 1 if refused else 0


@locks.command("clear")
@on_cluster
async def clear_locks(
    config: CoordinationConfig,
    ids: Annotated[list[str] | None, typer.Argument(help="Task ids.", metavar="[ID…]")] = None,
    by: Annotated[str | None, typer.Option(help="All that were made in this name.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All pins.")] = False,
    as_json: Json = False,
) -> int:
    """Delete the pins of tasks, or those that somebody made, or all; their tokens move at once.

    Exits with 1 when there were none.
    """
    if bool(ids) + (by is not None) + everything != 1:
        raise typer.BadParameter("give either task ids, or --by NAME, or --all")
    async with opened(config) as store:
        texts = [task_text(task_id) for task_id in ids or ()]
        cleared = await (store.pins.clear_tasks(texts) if texts else store.pins.clear(by))
    emit({"cleared": cleared}, Text(f"{cleared} pin{'' if cleared == 1 else 's'} cleared"), as_json)
    return 0 if cleared else 1
