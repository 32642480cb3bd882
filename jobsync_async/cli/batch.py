"""``jobsync-async batch``: how far batches are, what has failed in them, and to try that again."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from jobsync_async.cli.app import (
    By,
    Json,
    app,
    complain,
    duration,
    emit,
    moment,
    on_cluster,
    opened,
    table,
    titled,
)
from jobsync_async.cli.status import shortened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import task_text
from jobsync_async.core.runs import date_of
from jobsync_async.operations import batches
from jobsync_async.postgres.batch_runs import MOST_FAILED

_MOST_ROWS = 30


@app.command()
@on_cluster
async def batch(
    config: CoordinationConfig,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A batch's name, or its key if it has none. Default: a table of all.",
            metavar="NAME",
        ),
    ] = None,
    date: Annotated[
        dt.datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            help="The run of this date. Default: the open one, else the newest.",
        ),
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Show what has failed in the run, by error.")
    ] = False,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="Open the run anew, and forget what was given up in it. The next run_batch that "
            "continues it tries these ids again. Refused while a worker runs it: that would not.",
        ),
    ] = False,
    last: Annotated[int, typer.Option(min=1, help="How many in the table.")] = batches.MOST_RUNS,
    over: Annotated[
        float,
        typer.Option(
            min=0.1, help="For how many seconds the rate of an open run is measured, with NAME."
        ),
    ] = 1.0,
    by: By = None,
    as_json: Json = False,
) -> int:
    """Show the runs of batches: how far each is, and how much has failed. With NAME, one run in
    depth: its rate, the time left, and its workers.

    --failed and --retry without NAME are about the first run of the table. Exits with 1 when there
    is no such batch, or nothing is to be tried again. Reads only, but for --retry.
    """
    if failed and retry:
        raise typer.BadParameter("give either --failed or --retry")
    wanted, text = date_of(date), None if name is None else task_text(name)
    async with opened(config, by) as store:
        if text is None and not (failed or retry):
            told = await batches.list_runs(store, wanted, last)
            emit(told, rendered_runs(told), as_json)
            return 0
        run = await batches.find_run(store, text, wanted)
        if run is None:
            complain(
                f"there is no run{'' if text is None else f' of a batch {text!r}'}"
                f"{'' if wanted is None else f' on {wanted}'}; `jobsync-async batch` lists them"
            )
            return 1
        if failed:
            told = await batches.failures(store, run)
            emit(told, rendered_failures(told), as_json)
            return 0
        if retry:
            told = await batches.retry(store, run, store.context.by)
            if told["refused"] is not None:
                complain(f"{batches.title(told)}: {told['refused']}")
            emit(told, rendered_retry(told), as_json)
            return 0 if told["reopened"] else 1
        told = await batches.look(store, run, over)
    emit(told, rendered_run(told), as_json)
    return 0


def rendered_runs(told: dict[str, Any]) -> RenderableType:
    """The runs, for people."""
    if not told["runs"]:
        return Text("no batch was run")
    shown = table(
        "batch", "date", ">total", ">done", ">failed", ">remaining", "started", "by", "finished"
    )
    for run in told["runs"]:
        shown.add_row(
            Text(run["key"][:12], style="italic") if run["name"] is None else _text(run["name"]),
            run["date"],
            _number(run["total"]),
            _number(run["done"]),
            _failed(run),
            _number(run["remaining"]),
            moment(run["started_at"]),
            _text(run["started_by"]),
            Text("open", style="bold")
            if run["finished_at"] is None
            else moment(run["finished_at"]),
        )
    more = told["more"]
    return Group(shown, Text(f"and {more:,} more: --last or --date shows them")) if more else shown


def rendered_run(told: dict[str, Any]) -> RenderableType:
    """One run in depth, for people."""
    total = "" if told["total"] is None else f" of {told['total']:,}"
    left = "" if told["remaining"] is None else f", {told['remaining']:,} remaining"
    head = f"{batches.title(told)}: {told['done']:,}{total} done, {_failed(told)} failed{left}"
    rate, left_sec = told["rate_per_sec"], told["left_sec"]
    if rate is not None:
        head += f"; {rate:,.1f} a second"
    if told["finished_at"] is None and left_sec is not None:
        head += f", about {duration(left_sec)} left"
    ended = "open" if told["finished_at"] is None else f"finished {moment(told['finished_at'])}"
    began = f"started {moment(told['started_at'])} by {told['started_by']}, {ended}"
    parts: list[RenderableType] = [_text(head, style="bold"), _text(began)]
    if told["unnamed_beside"]:
        parts.append(
            Text(
                f"{told['unnamed_beside']:,} other batches without a name have this date: what "
                "failed in them is counted here, too",
                style="yellow",
            )
        )
    if told["workers"]:
        workers = table("worker", ">completed", ">done otherwise", "runs it now")
        for one in told["workers"][:_MOST_ROWS]:
            runs = "yes" if one["runs_it"] else "no"
            counts = _number(one["completed"]), _number(one["otherwise"])
            workers.add_row(_text(one["node"]), *counts, runs)
        parts.append(workers)
    if (more := len(told["workers"]) - _MOST_ROWS) > 0:
        parts.append(Text(f"and {more:,} more workers"))
    return Group(*parts)


def rendered_failures(told: dict[str, Any]) -> RenderableType:
    """What has failed, for people."""
    if not told["errors"]:
        return _text(f"{batches.title(told)}: nothing has failed")
    shown = table(">how often", "error", "ids")
    for one in told["errors"][:_MOST_ROWS]:
        ids = ", ".join(map(shortened, one["ids"]))
        more = f" and {one['more_ids']:,} more" if one["more_ids"] else ""
        error = Text("set aside: " if one["set_aside"] else "", style="yellow")
        shown.add_row(_number(one["count"]), error.append(shortened(one["error"])), ids + more)
    head = titled(f"{batches.title(told)}: {_failed(told)} failed", shown)
    more_errors = len(told["errors"]) - _MOST_ROWS
    return Group(head, Text(f"and {more_errors:,} more errors")) if more_errors > 0 else head


def rendered_retry(told: dict[str, Any]) -> RenderableType:
    """What became of --retry, for people."""
    said = []
    if told["reopened"]:
        said.append(
            f"{batches.title(told)} is open again, and {told['forgotten']:,} ids are to be tried "
            "again. The next run_batch of it does that, if it gives no date or this one."
        )
    else:
        said.append("nothing changed")
    if told["set_aside"]:
        said.append(
            f"{told['set_aside']:,} ids are set aside and stay so: `jobsync-async release` lets "
            "them be begun again."
        )
    return _text("\n".join(said))


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _failed(told: dict[str, Any]) -> str:
    """How many; more are not counted."""
    return f"{told['failed']:,}{'+' if told['failed'] >= MOST_FAILED else ''}"


def _text(text: str, style: str = "") -> Text:
    return Text("\n".join(map(shortened, text.split("\n"))), style=style)
