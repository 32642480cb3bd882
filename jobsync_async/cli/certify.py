"""``jobsync-async certify``: tries on a server what workers need, and measures it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobsync_async.cli.app import (
    Json,
    ServerProfile,
    TheirInterval,
    TheirTimeout,
    app,
    complain,
    emit,
    ended_by_signals,
    given,
    on_server,
    table,
    titled,
)
from jobsync_async.config import CoordinationConfig
from jobsync_async.operations.certify.certificate import Certificate, Wish
from jobsync_async.operations.certify.crew import CertifyFailed
from jobsync_async.operations.certify.figures import Statement
from jobsync_async.operations.certify.run import certify as run
from jobsync_async.operations.certify.verdicts import Verdict, ms
from jobsync_async.operations.judgements import Check

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@app.command()
@on_server
async def certify(
    config: CoordinationConfig,
    interval: TheirInterval = None,
    timeout: TheirTimeout = None,
    polling: Annotated[
        bool, typer.Option("--polling", help="The workers have notify=False.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many there are to be, for the last arithmetic.")
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Use the tables of this prefix, which begins with certify_: `init --appname "
            "certify_ --role ROLE` makes them for a role that may make none. Default: tables of "
            "its own, which are dropped."
        ),
    ] = None,
    server_profile: ServerProfile = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short times and few samples: for a first look.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Try on this server what workers need, measure it, and say what to change. Takes up to a
    minute and leaves nothing behind.

    Three workers join, leave, stand still and are killed, in tables of their own. With a timeout
    above 15 s, the trial takes 5 and 15. Run it as the workers' role, from a worker's machine.
    Exits with 1 when a check fails. A report of a fault should contain its output.
    """
    settings = given(
        heartbeat_interval_sec=interval,
        heartbeat_timeout_sec=timeout,
        notify=False if polling else None,
        server_profile=server_profile,
    )
    certificate = await certified(Wish(replace(config, **settings), prefix, quick, workers))
    emit(certificate.plain(), rendered(certificate), as_json)
    return 1 if certificate.status == "fail" else 0


async def certified(wish: Wish) -> Certificate:
    """Certify, and say on standard error how it goes on."""
    async with ended_by_signals():
        return await run(wish, _progress())
    raise CertifyFailed("it was ended before its end")


def _progress() -> Callable[[str], None]:
    began = time.monotonic()
    return lambda text: complain(f"{time.monotonic() - began:6.1f} s  {text}")


def rendered(certificate: Certificate) -> RenderableType:
    """The certificate, for people."""
    times = f"{certificate.timeout_sec:g} s/{certificate.interval_sec:g} s"
    how = ", by polling" if certificate.polling else ""
    head = f"{certificate.server}; heartbeats {times}{how}; {certificate.seconds:.0f} s"
    return Group(
        titled(head, _checks(certificate.checks)),
        Text(),
        titled(
            "What workers sent, from the call to the answer", _statements(certificate.statements)
        ),
    )


def _checks(checks: Sequence[Verdict]) -> Table:
    shown = table("check", "status", "measured", "limit")
    for check in checks:
        shown.add_row(check.name, *judged(check), check.limit)
    return shown


def judged(check: Check | Verdict) -> tuple[Text, Text]:
    """The status, and what was found with the advice below it: two cells of a table."""
    found = Text(check.found)
    if check.advice:
        found.append(f"\n→ {check.advice}", style="italic")
    return Text(check.status, style=_STYLES[check.status]), found


def _statements(statements: Sequence[Statement]) -> Table:
    shown = table("statement", ">times", ">p50", ">p99", ">bound")
    for one in sorted(statements, key=lambda one: -one.share):
        latency = one.latency
        shown.add_row(
            one.name, f"{latency.times:,}", ms(latency.p50), ms(latency.p99), ms(one.bound_sec)
        )
    return shown
