"""The page over HTTP, on running clusters: what it shows, keeps out, costs and survives."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import anyio
import httpx
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from jobsync_async import CoordinationConfig, Job
from jobsync_async.testing.proxy import Proxy, endpoint, through
from jobsync_async.web import cluster_page, hub
from tests.integration.test_observer import (
    read_only_role,
    sessions_named,
    until_no_session_is_named,
)
from tests.pages import served
from tests.unit.test_page import HOSTILE, Tags

PAGES = ("", "task?id=7", "batches", "history")


@pytest.fixture(autouse=True)
def pulse(monkeypatch) -> None:
    """A look at heartbeats as often as tests like it."""
    monkeypatch.setattr(hub, "PULSE_SEC", 0.2)


def person(request) -> str | None:
    return request.headers.get("x-person")


@asynccontextmanager
async def looked_at(config, steer=None, **options) -> AsyncIterator[httpx.AsyncClient]:
    page = cluster_page(config, steer)
    async with served(page, **options) as url, httpx.AsyncClient(base_url=url, timeout=10) as asks:
        asks.page = page  # type: ignore[attr-defined]
        yield asks


class Viewer:
    """A stream of events, from a page that was loaded."""

    def __init__(self, client: httpx.AsyncClient, page: str = "") -> None:
        self._client = client
        self._page = page
        self.told: list[dict] = []

    async def __aenter__(self) -> Viewer:
        text = (await self._client.get(self._page)).text
        channel, since = re.search(r'data-channel="(\w+)" data-since="([\w.]+)"', text).groups()
        self._stream = self._client.stream("GET", f"events?channel={channel}&since={since}")
        self._lines = (await self._stream.__aenter__()).aiter_lines()
        return self

    async def __aexit__(self, *error: object) -> None:
        async with aclosing(self._lines):
            await self._stream.__aexit__(*error)

    async def until(self, condition, seconds: float = 5) -> dict:
        """The first message of which the condition holds."""
        with anyio.fail_after(seconds):
            async for line in self._lines:
                if line.startswith("data: {") and (told := json.loads(line[6:])):
                    self.told.append(told)
                    if condition(told):
                        return told
        raise AssertionError("the stream has ended")


def rows(told: dict) -> str:
    return "".join(told.get("lists", {}).get("workers", {}).get("items", {}).values())


# -- what it shows ---------------------------------------------------------------------------------


async def test_a_role_that_may_only_select_sees_everything_and_cannot_steer(
    jobs, config, dsn, dsn_with
):
    await jobs.start("anna", "berta", address="10.0.0.1:80")
    await jobs.even()

    async def handle(claim) -> None:
        if claim.task_id == 3:
            raise ValueError("three is <bad>")

    await asyncio.gather(
        *(job.run_batch(range(20), handle, name="n", attempts=1) for job in jobs.jobs.values())
    )
    with read_only_role(dsn, "jobsync_test_page") as login:
        looking = CoordinationConfig(dsn=dsn_with(**login))
        async with looked_at(looking, lambda request: "me") as asks:
            overview = Tags((await asks.get("")).text).text
            assert "Nothing is wrong" in overview or "failed" in overview
            assert re.search(r"Live workers2 of 2Tokens120Without an owner0", overview)
            assert overview.count("50.0 %") == 2
            assert "10.0.0.1:80" in overview

            task = Tags((await asks.get("task?id=3")).text).text
            owner = jobs.owners()[jobs["anna"].task_to_token("3")]
            assert re.search(rf"Owner{owner} at 10\.0\.0\.1:80, active", task)
            assert "has its token as a part of its share" in task
            assert "In batch n" in task
            assert "ValueError: three is <bad>" in task
            assert "Running nowno" in task

            assert re.search(r"n20\d\d-\d\d-\d\d2020", Tags((await asks.get("batches")).text).text)
            run = Tags((await asks.get("batch?batch=n")).text)
            assert "1 times: ValueError: three is <bad>3" in run.text
            assert "./task?id=3" in run.addresses
            history = Tags((await asks.get("history")).text).text
            assert re.search("tokens move, [01] → 2 workers", history)
            assert "anna joined" in history

            values = {"act": "drain", "node": "anna", **await token_for(asks, "drain", node="anna")}
            refused = await asks.post("ask", data=values)
            assert refused.status_code == 503
    assert len(jobs["anna"].my_tokens) == 60


async def test_what_is_not_there_is_said(jobs, config):
    await jobs.start("anna")
    async with looked_at(config) as asks:
        for path, status in (
            ("nothing", 404),
            ("batch?batch=x", 404),
            ("batch?batch=x&date=soon", 404),
            ("batch", 404),
            ("events?channel=x", 404),
            ("ask?act=drain&node=anna", 404),
            ("ask?act=none", 404),
            ("task?id=" + "x" * 60_000, 200),
        ):
            got = await asks.get(path)
            assert got.status_code == status, path
            assert "<!doctype html>" in got.text


async def test_hostile_names_ids_reasons_and_errors_stay_text(config, admin):
    """Through the tables: what a worker may be named is not what protects the page."""

    async def handle(claim) -> None:
        raise ValueError(HOSTILE[0])

    def elements(text: str) -> set[tuple]:
        return {*Tags(text).made}

    hostile = "<script>alert(1)</script>'\"><img src=x onerror=alert(1)>"
    async with Job("anna", config, address="plain") as job:
        await job.register_lock("pinned", "anna", "plain")
        await job.run_batch(["id"], handle, name="plain", attempts=1)
        async with looked_at(config, lambda request: "me") as asks:
            paths = (
                "", "task?id={}", "batches", "history", "ask?act=pin&task={}",
                "ask?act=drain&node={}", "task?id=pinned", "batch?batch={}", "nothing?{}",
            )  # fmt: skip
            plain = [elements((await asks.get(path.format("plain"))).text) for path in paths]
            for statement in (
                "UPDATE sync_node SET name = %s, address = %s, host = %s, library = %s",
                "UPDATE sync_lock SET reason = %s, node_patterns = jsonb_build_array(%s::text)",
                "UPDATE sync_rebalance SET reason = %s, leader = %s",
                "UPDATE sync_history SET node = %s, by = %s, reason = %s",
                "UPDATE sync_batch SET name = %s, started_by = %s",
                "UPDATE sync_claim SET error = %s, batch = %s, node = %s",
            ):
                await admin.execute(statement, [hostile] * statement.count("%s"))
            await admin.execute("UPDATE sync_batch SET batch_key = sha256(name::bytea)")
            await admin.execute("SELECT pg_notify('sync_changes', '')")
            quoted = str(httpx.QueryParams({"x": hostile}))[2:]
            for path, before in zip(paths, plain, strict=True):
                got = await asks.get(path.format(quoted))
                made = elements(got.text)
                assert not {name for name, _ in made - before} & {"script", "img", "iframe"}, path
                assert not [a for _, names in made for a in names if a.startswith("on")], path
                assert hostile[:20] not in got.text, path
            stream = await asks.get("events?channel=overview&since=0.0")
            assert stream.text.endswith("event: reload\ndata: {}\n\n")
        await admin.execute("UPDATE sync_node SET name = 'anna'")


# -- whom it keeps out -----------------------------------------------------------------------------


async def test_every_answer_forbids_framing_and_foreign_scripts(jobs, config):
    await jobs.start("anna")
    async with looked_at(config, person) as asks:
        answers = [await asks.get(path) for path in (*PAGES, "page.css", "page.js", "none")]
        answers.append(await asks.post("ask", data={"act": "drain"}))
        answers.append(await asks.get("events?channel=overview"))
        answers.append(await asks.post("batches"))
        for got in answers:
            policy = dict(
                rule.split(" ", 1) for rule in got.headers["content-security-policy"].split("; ")
            )
            assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == "'self'"
            assert got.headers["x-frame-options"] == "DENY"
            assert got.headers["x-content-type-options"] == "nosniff"


async def token_for(asks: httpx.AsyncClient, act: str, **about: str) -> dict[str, str]:
    """The hidden value of the form that asks, whose cookie the client keeps."""
    got = await asks.get("ask", params={"act": act, **about})
    assert got.status_code == 200, got.text
    cookie = got.headers["set-cookie"]
    assert "HttpOnly; SameSite=Strict" in cookie
    assert "content-encoding" not in got.headers, "a secret beside what a visitor chose"
    return {"token": re.search(r'name="token" value="([\w-]+)"', got.text)[1]}


async def test_an_act_is_asked_once_and_done_in_the_name_of_the_person(jobs, config, admin, caplog):
    await jobs.start("anna", "berta")
    await jobs.even()

    async def act(act: str, **values: str) -> httpx.Response:
        about = {name: values[name] for name in ("node", "task", "batch", "date") if name in values}
        token = await token_for(asks, act, **about)
        return await asks.post("ask", data={"act": act, **values, **token})

    async with looked_at(config, person) as asks:
        asks.headers["x-person"] = "eve <eve@example.com>"
        question = (await asks.get("ask?act=drain&node=anna")).text
        assert "Drain anna?" in Tags(question).text
        assert "eve <eve@example.com> did it" in Tags(question).text
        assert len(jobs["anna"].my_tokens) == 60, "asked, not done"

        assert "anna is now draining" in (await act("drain", node="anna")).text
        await jobs.settled(workers=["berta"])
        assert 'href="./ask?act=undrain&amp;node=anna"' in (await asks.get("")).text
        assert "anna is now active" in (await act("undrain", node="anna")).text
        await jobs.even()
        assert (await act("drain", node="nobody")).status_code == 422

        assert "is now paused" in (await act("pause", reason="why")).text
        assert "Paused" in (await asks.get("")).text
        assert "goes on" in (await act("resume")).text
        assert "was not paused" in (await act("resume")).text
        assert "is evicted" in (await act("evict", node="gone")).text
        overview = (await asks.get("")).text
        assert "gone was evicted by eve" in Tags(overview).text
        assert 'href="./ask?act=allow&amp;node=gone"' in overview
        assert "may join again" in (await act("allow", node="gone")).text

        assert (await act("pin", task="7", patterns=" berta \n\n", reason="r")).status_code == 200
        (pin,) = await jobs["anna"].list_locks()
        assert (pin.task_id, pin.node_patterns, pin.reason) == ("7", ("berta",), "r")
        assert pin.created_by == "eve <eve@example.com>"
        for wrong in ({"patterns": ""}, {"patterns": "a\\"}, {"patterns": "a", "days": "x"}):
            again = await act("pin", task="8", **wrong)
            assert again.status_code == 422
            assert 'role="alert"' in again.text
        assert "is gone" in (await act("unpin", task="7")).text
        assert await jobs["anna"].list_locks() == []

        async def fails(claim) -> None:
            raise ValueError

        date = (await jobs["anna"].run_batch([1], fails, name="n", attempts=1)).date
        assert "open again; 1 ids" in (await act("retry", batch="n", date=f"{date}")).text
        assert "nothing changed" in (await act("retry", batch="n", date=f"{date}")).text
        assert (await act("retry", batch="n", date="x")).status_code == 422
    done = [record for record in caplog.records if record.name == "jobsync_async.web.app"]
    assert [record.act for record in done] == [
        "drain", "undrain", "pause", "resume", "resume", "evict", "allow", "pin", "unpin", "retry",
    ]  # fmt: skip
    assert {record.by for record in done} == {"eve <eve@example.com>"}
    rows = await admin.execute("SELECT kind FROM sync_history WHERE by LIKE 'eve %' ORDER BY id")
    assert [kind for (kind,) in await rows.fetchall()] == [
        "drained", "undrained", "paused", "resumed", "evicted", "allowed", "pinned", "unpinned",
        "retried",
    ]  # fmt: skip


async def test_a_forged_form_and_somebody_who_may_not_change_nothing(jobs, config):
    await jobs.start("anna", "berta")
    await jobs.even()
    async with looked_at(config, person) as asks:
        asks.headers["x-person"] = "eve"
        values = {"act": "drain", "node": "anna", **await token_for(asks, "drain", node="anna")}
        site = str(asks.base_url).rstrip("/")
        for headers, data in (
            ({}, {**values, "token": "x"}),
            ({}, {**values, "token": "x" * 43}),
            ({}, {**values, "token": ""}),
            ({"cookie": ""}, values),
            ({"cookie": "jobsync_page="}, {**values, "token": ""}),
            ({"origin": "https://evil.example"}, values),
            ({"origin": "null"}, values),
            ({"sec-fetch-site": "cross-site", "origin": site}, values),
            ({"sec-fetch-site": "same-site"}, values),
            ({"x-person": ""}, values),
        ):
            refused = await asks.post("ask", data=data, headers=headers)
            assert refused.status_code == 403, (headers, data)
        for body in ("x" * 70_000, "&".join(f"a{n}=1" for n in range(100)), "\xff=1"):
            refused = await asks.post("ask", content=body.encode("latin-1"))
            assert refused.status_code in (400, 413)
        assert (await asks.get("ask", params=values, headers={"x-person": ""})).status_code == 403
        assert len(jobs["anna"].my_tokens) == 60
        for headers in ({"origin": site}, {"sec-fetch-site": "same-origin"}):
            assert (await asks.post("ask", data=values, headers=headers)).status_code == 200
    async with looked_at(config) as asks:
        assert (await asks.post("ask", data=values)).status_code == 404
        assert "act=drain" not in (await asks.get("")).text


@pytest.mark.parametrize("answer", ["coroutine", False, None, ""])
async def test_who_may_is_asked_of_a_function_or_a_coroutine_function(jobs, config, answer):
    async def later(request) -> str:
        return str(request.query_params["node"])

    await jobs.start("anna")
    steer = later if answer == "coroutine" else lambda request: answer
    async with looked_at(config, steer) as asks:
        got = await asks.get("ask?act=drain&node=anna")
        assert got.status_code == (200 if answer == "coroutine" else 403)


# -- where it stands -------------------------------------------------------------------------------


async def test_mounted_and_behind_a_prefix_every_address_is_beside_the_page(jobs, config):
    await jobs.start("anna")
    page = cluster_page(config, lambda request: "me")
    app = Starlette(routes=[Mount("/ops/cluster", app=page)])
    async with served(app) as url, httpx.AsyncClient(base_url=url) as asks:
        moved = await asks.get("ops/cluster")
        assert moved.headers["location"].endswith("/ops/cluster/")
        for path in ("", "page.css", "page.js", *PAGES):
            got = await asks.get(f"ops/cluster/{path}")
            assert got.status_code == 200
            assert all(a.startswith(("./", "#", "data:")) for a in Tags(got.text).addresses)
        asked = await asks.get("ops/cluster/ask?act=drain&node=anna")
        assert "Path=/ops/cluster/;" in asked.headers["set-cookie"]
        assert page.hub.overview is not None
    await page.aclose()
    # A proxy that takes the prefix off, as uvicorn's --root-path is told.
    async with looked_at(config, lambda request: "me", root_path="/x") as asks:
        asked = await asks.get("ask?act=drain&node=anna")
        assert "Path=/x/;" in asked.headers["set-cookie"]


async def command(*options: str, dsn: str):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobsync_async", "web", "--port", "0", *options,
        env={**os.environ, "JOBSYNC_DSN": dsn},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_the_command_serves_until_it_is_told_to_end_though_somebody_looks_on(jobs, dsn):
    await jobs.start("anna")
    process = await command("--steer", "--by", "eve", "--allow-host", "ops.example", dsn=dsn)
    url = (await process.stdout.readline()).decode().strip()
    async with httpx.AsyncClient(base_url=url) as asks:
        assert "anna" in (await asks.get("")).text
        assert "that eve did it" in Tags((await asks.get("ask?act=drain&node=anna")).text).text
        for host, status in (
            ("localhost:1", 200),
            ("[::1]", 200),
            ("ops.example", 200),
            ("evil.example", 421),
        ):
            got = await asks.get("", headers={"host": host})
            assert got.status_code == status, host
        async with Viewer(asks) as viewer:
            await viewer.until(lambda told: "beats" in told)
            process.send_signal(signal.SIGTERM)
            with anyio.fail_after(5):
                out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"", b"")


async def test_the_command_refuses_to_let_everybody_steer(dsn):
    process = await command("--steer", "--host", "0.0.0.0", dsn=dsn)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"--person-header" in err


# -- what it costs, and what it survives -----------------------------------------------------------


async def test_all_viewers_share_one_listener_and_nothing_is_connected_when_all_have_gone(
    jobs, config, admin
):
    await jobs.start("anna")
    async with looked_at(config) as asks:
        asks.page.hub._linger_sec = 0.1
        async with (
            Viewer(asks) as one,
            Viewer(asks) as two,
            Viewer(asks, "history") as three,
            Viewer(asks, "batches"),
        ):
            await jobs.start("berta")
            for viewer in (one, two):
                await viewer.until(lambda told: "berta" in rows(told))
            await three.until(lambda told: "berta" in json.dumps(told))
            cursor = await admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%page%' "
                "AND query LIKE '%LISTEN%'"
            )
            assert await sessions_named(admin, "page listener") or await cursor.fetchone()
            assert len(await sessions_named(admin, "page")) <= 3
        await until_no_session_is_named(admin, "page")
        assert "berta" in (await asks.get("")).text, "it begins anew"


@pytest.mark.needs("sessions")
async def test_when_nothing_happens_one_statement_a_second_is_enough(jobs, config, monkeypatch):
    monkeypatch.setattr(hub, "PULSE_SEC", 2.4)
    await jobs.start("anna", "berta")
    await jobs.even()
    sent = []

    def counted(plain):
        async def execute(self, query, *arguments, **options):
            if " page " in f"{self.connection.info.parameter_status('application_name')} ":
                sent.append(query)
            return await plain(self, query, *arguments, **options)

        return execute

    async with looked_at(config) as asks, Viewer(asks), Viewer(asks, "batches") as viewer:
        async with Viewer(asks) as other:
            await other.until(lambda told: "beats" in told)
            monkeypatch.setattr(
                psycopg.AsyncCursor, "execute", counted(psycopg.AsyncCursor.execute)
            )
            await asyncio.sleep(4)
            monkeypatch.undo()
        assert viewer.told == []
    assert 1 <= len(sent) <= 4, sent


async def test_while_the_server_is_away_the_page_keeps_its_picture_says_so_and_comes_back(
    jobs, config
):
    await jobs.start("anna")
    proxy = Proxy(*await anyio.to_thread.run_sync(endpoint, config))
    await proxy.start()
    try:
        async with looked_at(through(config, proxy)) as asks, Viewer(asks) as viewer:
            await viewer.until(lambda told: "beats" in told)
            proxy.cut(silent=False)
            told = await viewer.until(lambda told: "This is old" in json.dumps(told), 3)
            assert "workers" not in told.get("lists", {})
            text = (await asks.get("")).text
            assert "This is old" in text
            assert "anna" in text
            assert (await asks.get("task?id=1")).status_code == 503
            proxy.heal()
            told = await viewer.until(lambda told: told.get("parts", {}).get("banner") == "", 15)
            await jobs.start("berta")
            await viewer.until(lambda told: "berta" in rows(told))
    finally:
        await proxy.stop()


async def test_a_page_that_begins_while_the_server_is_away_says_so_and_comes_by_itself(
    jobs, config
):
    await jobs.start("anna")
    proxy = Proxy(*await anyio.to_thread.run_sync(endpoint, config))
    await proxy.start()
    proxy.cut(silent=False)
    try:
        async with looked_at(through(config, proxy)) as asks:
            first = await asks.get("")
            assert first.status_code == 503
            assert "This is old" in first.text
            async with Viewer(asks) as viewer:
                proxy.heal()
                await viewer.until(lambda told: "anna" in rows(told), 15)
            assert (await asks.get("")).status_code == 200
    finally:
        await proxy.stop()


async def test_a_cluster_that_is_not_there_is_said(config, empty_dsn):
    async with looked_at(replace(config, dsn=empty_dsn)) as asks:
        got = await asks.get("")
        assert got.status_code == 503
        assert "sync_" in got.text


async def test_a_hand_off_that_becomes_stuck_is_seen_though_nothing_announces_it(
    jobs, config, admin
):
    await jobs.start("anna", "berta")
    await jobs.even()
    token = min(jobs["anna"].my_tokens)
    async with looked_at(config) as asks, Viewer(asks) as viewer:
        await admin.execute(
            "UPDATE sync_token SET next_node = 'berta', revoked_at = now() - interval '90 seconds' "
            "WHERE token_id = %s",
            [token],
        )
        await admin.execute(
            "UPDATE sync_node SET stuck = %s::jsonb WHERE name = 'anna'",
            [json.dumps([{"token_id": token, "task_id": "job-7"}])],
        )
        await viewer.until(lambda told: "job-7" in told.get("parts", {}).get("problems", ""))
