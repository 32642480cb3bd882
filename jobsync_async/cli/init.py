"""``jobsync-async init``: makes or upgrades the tables, or prints how."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, cast

import typer
from rich.text import Text

from jobsync_async.cli.app import Json, ServerProfile, app, emit, given, on_cluster, opened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.server_profile import Profile
from jobsync_async.errors import ConfigError
from jobsync_async.operations.cloning import begin_anew, stop_all
from jobsync_async.postgres.connection import Connector
from jobsync_async.postgres.expanding import contract as contract_tables
from jobsync_async.postgres.roles import Roles, open_roles
from jobsync_async.postgres.schema import creation_script, open_schema
from jobsync_async.postgres.sql import LAYOUT

_MAY = {"worker": "do what a worker does", "observer": "look", "pruner": "delete old days"}


@app.command()
@on_cluster
async def init(
    config: CoordinationConfig,
    total_tokens: Annotated[
        int | None,
        typer.Option(
            help="Fixed for the life of the cluster. Default: JOBSYNC_TOTAL_TOKENS, then 10000."
        ),
    ] = None,
    hash_function: Annotated[
        str | None,
        typer.Option(
            help="Fixed for the life of the cluster. Default: JOBSYNC_HASH_FUNCTION, then "
            "double_sha256."
        ),
    ] = None,
    sql: Annotated[
        bool,
        typer.Option(
            "--sql", help="Print the SQL for an administrator to run, and connect to nothing."
        ),
    ] = False,
    role: Annotated[
        str | None,
        typer.Option(
            help="Grant this role what a worker needs, and nothing more. Made, without a login, "
            "if it is missing."
        ),
    ] = None,
    observer_role: Annotated[
        str | None,
        typer.Option(
            help="Grant this role what an observer needs: to read. Made, without a login, if "
            "missing."
        ),
    ] = None,
    prune_role: Annotated[
        str | None,
        typer.Option(
            help="Grant this role what `prune` needs: to delete what was recorded on old days. "
            "Made, without a login, if missing."
        ),
    ] = None,
    clone: Annotated[
        bool,
        typer.Option(
            "--clone",
            help="This server is a copy of another's storage (a snapshot, a branch, a copied "
            "folder): give the cluster in it an identity of its own, before its workers start. "
            "Frees everything; nobody acts for the heartbeat timeout.",
        ),
    ] = False,
    server_profile: ServerProfile = None,
    as_json: Json = False,
) -> int:
    """Create the tables of a cluster, or upgrade them, and grant rights on them. Doing it again
    changes nothing.

    With --clone it does one other thing. Together with --server-profile, that also changes how the
    cluster recognises its server; stop all workers before.
    """
    profile = cast("Profile | None", server_profile)  # a ConfigError tells of another
    if clone:
        if sql or role or observer_role or prune_role:
            raise typer.BadParameter("--clone goes with none of --sql and the options for roles")
        return await _clone(config, profile, as_json)
    fixed = given(total_tokens=total_tokens, hash_function=hash_function, server_profile=profile)
    config = replace(config, **fixed)
    roles = Roles(role, observer_role, prune_role)
    if sql:
        script = creation_script(config, roles)
        typer.echo(json.dumps({"sql": script}) if as_json else script)
        return 0
    return await _init(config, roles, as_json)


async def _clone(config: CoordinationConfig, profile: Profile | None, as_json: bool) -> int:
    try:
        config = await _sized(config)
        if profile is not None:
            async with opened(config) as store:  # recognises the server as the cluster was begun
                await stop_all(store)
    except ConfigError:  # the server refuses that, and the profile says what it is
        if profile is None:
            raise
        config = await _sized(replace(config, server_profile=profile))
    async with opened(replace(config, server_profile=profile)) as store:
        before, generation = await begin_anew(store, config)
    answer = {"generation": generation, "generation_before": before}
    emit(
        answer,
        Text(f"generation {generation:,} has begun, after {before:,}: nobody owns anything yet"),
        as_json,
    )
    return 0


async def _sized(config: CoordinationConfig) -> CoordinationConfig:
    """With the cluster's number of tokens: freeing more takes longer."""
    async with opened(config) as store:
        return replace(config, total_tokens=(await store.status.cluster())["total_tokens"])


async def _init(config: CoordinationConfig, roles: Roles, as_json: bool) -> int:
    connector = Connector(config.conninfo, config.bulk_limit_sec)
    queries = await open_schema(connector, config, upgrade=True)
    if roles.given():
        await open_roles(connector, roles)
    answer = {
        "schema": queries.schema,
        "appname": config.appname,
        "table_version": LAYOUT,
        "total_tokens": config.total_tokens,
        "hash_function": config.hash_function,
    }
    told = [f"the tables {queries.schema}.{config.appname}* are there, version {LAYOUT}"]
    told += [f"{name} may {_MAY[kind]}" for kind, name in roles.given()]
    emit(answer, Text("; ".join(told)), as_json)
    return 0


@app.command()
@on_cluster
async def contract(config: CoordinationConfig, as_json: Json = False) -> int:
    """Refuse workers of older versions from now on, when none is left. After it there is no way
    back to them.

    Run it as the tables' owner, some days after every worker has this version. Exits with 1 while
    older workers are there.
    """
    connector = Connector(config.conninfo, config.bulk_limit_sec)
    queries = await open_schema(connector, config, observe=True)
    changed = await contract_tables(connector, config, LAYOUT)
    answer = {
        "schema": queries.schema,
        "appname": config.appname,
        "schema_version": LAYOUT,
        "changed": changed,
    }
    told = (
        "no worker that knows an older layout can join any more"
        if changed
        else "it was done before"
    )
    emit(
        answer,
        Text(
            f"the tables {queries.schema}.{config.appname}* are for layout {LAYOUT} and newer: "
            f"{told}"
        ),
        as_json,
    )
    return 0
