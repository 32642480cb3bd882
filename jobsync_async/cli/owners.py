"""``jobsync-async owner-of`` and ``explain``: where tasks are, and why."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from jobsync_async.cli.app import Json, Timeout, app, emit, moment, on_cluster, opened, table
from jobsync_async.cli.status import shortened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import task_text, token_hasher
from jobsync_async.core.runs import date_of
from jobsync_async.operations.explaining import explain as explain_task


@app.command("owner-of")
@on_cluster
async def owner_of(
    config: CoordinationConfig,
    ids: Annotated[list[str], typer.Argument(help="Task ids.", metavar="ID…")],
    as_json: Json = False,
) -> int:
    """Show which worker owns each task, at which address, under which epoch.

    Exits with 1 when one of them has no live owner.
    """
    async with opened(config) as store:
        settings = await store.inspection.settings()
        token_of = token_hasher(settings.total_tokens, settings.hash_function)
        tokens = [token_of(task_text(task_id)) for task_id in ids]
        owned = await store.inspection.owners_of(tokens)
    owners = []
    for task_id, token in zip(ids, tokens, strict=True):
        owner = owned.get(token)
        parts = (owner.node, owner.address, owner.epoch) if owner else (None, None, None)
        owners.append(
            {
                "task_id": task_id,
                "token_id": token,
                **dict(zip(("node", "address", "epoch"), parts, strict=True)),
            }
        )
    emit({"owners": owners}, rendered_owners(owners), as_json)
    return 0 if len(owned) == len(set(tokens)) else 1


def rendered_owners(owners: list[dict[str, Any]]) -> RenderableType:
    """Whose each task is, for people."""
    shown = table("task", ">token", "owner", "address", ">epoch")
    for one in owners:
        owner = Text(one["node"]) if one["node"] is not None else Text("nobody", style="red")
        epoch = "" if one["epoch"] is None else str(one["epoch"])
        shown.add_row(
            Text(shortened(one["task_id"])),
            str(one["token_id"]),
            owner,
            Text(one["address"] or ""),
            epoch,
        )
    return shown


@app.command()
@on_cluster
async def explain(
    config: CoordinationConfig,
    task_id: Annotated[str, typer.Argument(help="A task's id.", metavar="ID")],
    date: Annotated[
        dt.datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Of claim and completion. Default: the cluster's date."
        ),
    ] = None,
    timeout: Timeout = None,
    as_json: Json = False,
) -> int:
    """Show a task's token, owner, epoch and pin, why it is there, and whether it was begun,
    completed or set aside.

    Exits with 1 when it has no live owner.
    """
    async with opened(config) as store:
        told = await explain_task(store, task_id, date_of(date), timeout)
    emit(told, rendered_explanation(told), as_json)
    return 0 if told["owner"] else 1


def rendered_explanation(told: dict[str, Any]) -> RenderableType:
    """One task, for people."""
    facts = table("", "")
    facts.show_header = False
    owner, pin, rebalance = told["owner"], told["pin"], told["rebalance"]
    rows = [
        ("task", shortened(told["task_id"])),
        ("token", f"{told['token_id']} of {told['total_tokens']:,}, by {told['hash_function']}"),
        (
            "owner",
            "nobody"
            if owner is None
            else " at ".join(filter(None, (owner["node"], owner["address"]))),
        ),
        ("epoch", told["epoch"]),
        ("there since", told["assigned_at"] and moment(told["assigned_at"])),
        ("runs there", "not told" if told["runs"] is None else ", ".join(told["runs"]) or "nothing")
        if owner
        else ("", None),
        ("going to", (told["next_node"] or "nobody") if told["revoked"] else None),
        (
            "pin",
            None
            if pin is None
            else f"{', '.join(pin['node_patterns'])}, by {pin['created_by'] or '?'}",
        ),
        ("may have it", ", ".join(told["eligible"]) or "nobody"),
        (
            "distribution",
            None
            if rebalance is None
            else f"version {rebalance['version']} at {moment(rebalance['at'])}",
        ),
        ("date", told["date"]),
        *_recorded(told),
    ]
    for one in told["batches"]:
        rows += [("in batch", one["batch"]), *_recorded(one)]
    for name, value in rows:
        if value is not None:
            facts.add_row(name, Text(str(value)))
    return Group(Text(told["why"], style="bold"), facts)


def _recorded(told: dict[str, Any]) -> list[tuple[str, Any]]:
    """What became of the task, on its own or in a batch."""
    aside = told["set_aside_at"]
    return [
        (
            "begun",
            None
            if told["begun_by"] is None
            else f"by {told['begun_by']} at {moment(told['claimed_at'])}",
        ),
        ("lost owners", told["owners_lost"] or None),
        (
            "set aside",
            aside
            and f"at {moment(aside)}, in the run of {told['set_aside_on']}, until it is released",
        ),
        ("gave up", told["error"]),
        ("failed attempts", told["failures"] or None),
        ("last error", told["last_error"] if told["last_error"] != told["error"] else None),
        (
            "completed",
            None
            if told["completed_by"] is None
            else f"by {told['completed_by']} at {moment(told['completed_at'])}",
        ),
    ]
