"""``jobsync-async release``: let ids be begun again that were set aside because their workers ended
at work on them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer
from rich.text import Text

from jobsync_async.cli.app import By, Json, app, emit, on_cluster, opened, table, titled
from jobsync_async.cli.status import shortened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import task_text
from jobsync_async.core.runs import date_of
from jobsync_async.runtime.cluster_status import plain


@app.command()
@on_cluster
async def release(
    config: CoordinationConfig,
    ids: Annotated[list[str] | None, typer.Argument(help="Task ids.", metavar="[ID…]")] = None,
    batch: Annotated[str | None, typer.Option(help="Only in the batch of this name.")] = None,
    date: Annotated[
        dt.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only of the run of this date.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are set aside.")] = False,
    by: By = None,
    as_json: Json = False,
) -> int:
    """Let ids be begun again that are set aside because one worker after the other ended while it
    was at work on them.

    The next run of their batch tries them anew. Exits with 1 when none was set aside.
    """
    if bool(ids) == everything:
        raise typer.BadParameter("give either task ids, or --all")
    texts = [task_text(task_id) for task_id in ids] if ids else None
    async with opened(config, by) as store:
        rows = await store.inspection.release(texts, batch, date_of(date), store.context.by)
    released = [plain(row) for row in rows]
    shown = table("task", "batch", "date")
    for one in released:
        shown.add_row(Text(shortened(one["task_id"])), Text(one["batch"] or ""), one["date"])
    emit(
        {"released": released},
        titled("released", shown) if released else Text("nothing is set aside"),
        as_json,
    )
    return 0 if released else 1
