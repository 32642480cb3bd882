"""The commands, run in this process on running clusters: what they answer, in which shape, and what
they change."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio.to_thread
import pytest
from psycopg import sql

from jobsync_async import Job
from jobsync_async.cli import app
from tests.integration.test_observer import read_only_role
from tests.integration.test_versions import old_row

COMMAND_LINE = Path(__file__).parents[2] / "docs" / "command-line.md"


def documented() -> dict[str, Any]:
    """The JSON examples of the page, by command."""
    found = {}
    for section in COMMAND_LINE.read_text("utf-8").split("\n### ")[1:]:
        title, _, text = section.partition("\n")
        example = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
        found.update(dict.fromkeys(title.split(", "), example))
    return found


def fits(example: Any, value: Any, where: str = "$") -> list[str]:
    """Where a value is not of the example's shape. Null fits everything, a list fits one with the
    same kind of items."""
    if example is None or value is None:
        return []
    if isinstance(example, dict) and isinstance(value, dict):
        if where.endswith(".completed"):  # by worker
            return []
        wrong = (
            [f"{where}: {sorted(example.keys() ^ value.keys())}"]
            if example.keys() != value.keys()
            else []
        )
        return wrong + [
            w
            for key in example.keys() & value.keys()
            for w in fits(example[key], value[key], f"{where}.{key}")
        ]
    if isinstance(example, list) and isinstance(value, list):
        return [w for item in value for w in fits(example[0], item, f"{where}[]")]
    return [] if type(example) is type(value) else [f"{where}: {example!r} and {value!r}"]


class Commands:
    """Runs commands against one cluster, and holds every JSON answer against the page."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.shapes = documented()
        self.seen: set[str] = set()

    async def __call__(
        self, *arguments: str, status: int | None = 0, columns: int = 200
    ) -> subprocess.CompletedProcess[str]:
        """What came of it; with None it may end with any status."""
        done = await anyio.to_thread.run_sync(self._run, arguments, columns)
        assert status is None or done.returncode == status, done
        return done

    def _run(self, arguments: tuple[str, ...], columns: int) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        environment = {"JOBSYNC_DSN": self.dsn, "COLUMNS": str(columns)}
        with patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
            with pytest.raises(SystemExit) as ended:
                app(list(arguments), prog_name="jobsync-async")
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    async def json(self, *arguments: str, status: int = 0, shape: str | None = None) -> Any:
        """The answer; `shape` is the heading of its example where that is not the command's."""
        result = await self(*arguments, "--json", status=status)
        answer = json.loads(result.stdout)
        command = shape or next(
            name
            for name in sorted(self.shapes, key=len, reverse=True)
            if " ".join(arguments).startswith(name)
        )
        assert fits(self.shapes[command], answer) == []
        self.seen.add(command)
        return answer


@pytest.fixture
def commands(dsn) -> Commands:
    return Commands(dsn)


LOOKING = {"status", "owner-of", "history", "leader", "plan", "doctor"}
CHANGING = {
    "locks add",
    "locks list",
    "locks clear",
    "explain",
    "release",
    "drain",
    "undrain",
    "init",
    "contract",
    "bound",
}
# Those are held in test_steering_from_outside.py and test_batches_from_outside.py.
STEERING = {"pause", "resume", "evict", "evict --allow"}
BATCHES = {"batch", "batch NAME", "batch NAME --failed", "batch NAME --retry", "prune"}


def test_every_shape_on_the_page_is_held_against_an_answer():
    # The rest are run as processes.
    assert set(documented()) == LOOKING | CHANGING | BATCHES | STEERING | {
        "watch",
        "demo",
        "init --clone",
        "certify",
    }


async def test_what_commands_show_is_so_and_of_the_documented_shape(commands, jobs, admin):
    for name in ("anna", "berta"):
        await jobs.start(name, address=f"{name}:80")
    await jobs.even()

    status = await commands.json("status")
    assert {node["name"]: (node["tokens"], node["address"]) for node in status["nodes"]} == {
        "anna": (60, "anna:80"),
        "berta": (60, "berta:80"),
    }

    before = {node["name"]: node["age_sec"] for node in status["nodes"]}
    assert before["anna"] > before["berta"] > 0, "the oldest first"
    assert (await commands.json("status"))["nodes"][1]["age_sec"] > before["berta"]
    await admin.execute(
        "UPDATE sync_node SET created_on = now() - interval '3 hours' WHERE name = 'anna'"
    )
    assert re.search(r"^anna +3 h ", (await commands("status", columns=200)).stdout, re.MULTILINE)

    owners = (await commands.json("owner-of", "a", "b", "c"))["owners"]
    for owner in owners:
        job = jobs[owner["node"]]
        assert job.owns(owner["task_id"])
        assert job.task_to_token(owner["task_id"]) == owner["token_id"]
        assert owner["address"] == f"{owner['node']}:80"

    rebalances = (await commands.json("history"))["rebalances"]
    assert [(one["reason"], one["tokens_moved"]) for one in rebalances] == [
        ("berta joined", 60),
        ("first look; anna joined", 120),
    ]
    assert [one["moves"] for one in rebalances] == [
        [{"from": "anna", "to": "berta", "tokens": 60}],
        [{"from": None, "to": "anna", "tokens": 120}],
    ]
    assert len((await commands.json("history", "--last", "1"))["rebalances"]) == 1
    told = await commands.json("history", "--since", "1h", "--node", "berta")
    assert [(one["kind"], one["node"]) for one in told["events"]] == [("joined", "berta")]
    assert [one["causes"] for one in told["rebalances"]] == [[told["events"][0]["id"]]]
    await admin.execute("UPDATE sync_history SET at = at - interval '2 hours'")
    assert (await commands.json("history", "--since", "90min"))["events"] == []
    assert "nothing is told" in (await commands("history", "--node", "nobody")).stdout
    assert "'soon' is no length" in (await commands("history", "--since", "soon", status=2)).stderr

    leader = await commands.json("leader")
    assert (leader["leader"], leader["term"], leader["present"]) == ("anna", 1, True)
    assert [(one["node"], one["until"]) for one in leader["terms"]] == [("anna", None)]

    before = await (await admin.execute("SELECT * FROM sync_token ORDER BY 1")).fetchall()
    plan = await commands.json("plan")
    assert (plan["moved"], plan["moves"]) == (0, [])
    ahead = await commands.json("plan", "--without", "anna", "--add", "carla")
    assert await (await admin.execute("SELECT * FROM sync_token ORDER BY 1")).fetchall() == before
    assert [(m["from"], m["to"], m["tokens"]) for m in ahead["moves"]] == [("anna", "carla", 60)]
    assert {n["name"]: (n["tokens"], n["tokens_planned"]) for n in ahead["nodes"]} == {
        "berta": (60, 60),
        "carla": (0, 60),
    }
    await commands("plan", "--without", "nobody", status=2)
    await commands("plan", "--add", "anna", status=2)

    checks = {check["name"]: check for check in (await commands.json("doctor"))["checks"]}
    assert {name for name, check in checks.items() if check["status"] == "fail"} == set()
    assert (
        checks["push"]["status"]
        == checks["rights"]["status"]
        == checks["table version"]["status"]
        == "ok"
    )
    await commands("doctor", "--interval", "7", status=2)  # breaks the lease's rule
    assert commands.seen == LOOKING


async def test_pins_are_made_explained_and_cleared_from_outside(commands, jobs):
    anna, berta = [(await jobs.start(name))[0] for name in ("anna", "berta")]
    await jobs.even()
    added = await commands.json(
        "locks",
        "add",
        "model",
        "nobody-%",
        "berta",
        "--reason",
        "large",
        "--by",
        "ops",
        "--days",
        "3",
    )
    assert added["added"]
    with anyio.fail_after(5):
        while not berta.owns("model"):
            await asyncio.sleep(0.01)
    other = next(
        f"t{n}" for n in range(100_000) if anna.task_to_token(f"t{n}") == added["token_id"]
    )
    refused = await commands.json("locks", "add", other, "anna", status=1)
    assert (refused["added"], refused["holder_task_id"]) == (False, "model")
    (pin,) = (await commands.json("locks", "list"))["locks"]
    assert (pin["task_id"], pin["created_by"], pin["node_patterns"]) == (
        "model",
        "ops",
        ["nobody-%", "berta"],
    )

    await berta.add_task("model")
    told = await commands.json("explain", "model")
    assert told["owner"]["node"] == "berta"
    assert told["eligible"] == ["berta"]
    assert told["pin"]["reason"] == "large"
    assert told["begun_by"] == "berta"
    assert "berta matches" in told["why"]
    assert (await commands.json("explain", other))["pin"][
        "task_id"
    ] == "model"  # the one that decides

    assert (await commands.json("locks", "clear", "model", "never pinned"))["cleared"] == 1
    assert (await commands.json("locks", "clear", "model", status=1))["cleared"] == 0
    for _ in range(2):
        await commands.json("locks", "add", "x", "%", "--by", "ops")
        assert (await commands.json("locks", "clear", "--by", "ops"))["cleared"] == 1
    await commands("locks", "clear", status=2)
    await commands("locks", "clear", "x", "--all", status=2)
    assert commands.seen == {"locks add", "locks list", "locks clear", "explain"}


async def test_a_worker_is_drained_from_anywhere_and_sees_it_at_once(commands, jobs):
    anna, berta = [(await jobs.start(name))[0] for name in ("anna", "berta")]
    await jobs.even()
    drained = await commands.json("drain", "anna", "--wait", "10")
    assert drained == {"node": "anna", "state": "draining", "changed": True, "tokens": 0}
    with anyio.fail_after(2):  # by push, far sooner than a heartbeat
        while anna.my_tokens or len(berta.my_tokens) < 120:
            await asyncio.sleep(0.01)
    assert not (await commands.json("drain", "anna"))["changed"]
    await commands.json("drain", "nobody", status=1)
    assert (await commands.json("undrain", "anna"))["state"] == "active"
    await jobs.even()

    assert commands.seen == {"drain", "undrain"}


async def test_the_history_names_who_typed_a_drain_or_who_is_given_and_why(
    commands, jobs, admin, monkeypatch
):
    monkeypatch.setenv("LOGNAME", "ada")
    await jobs.start("anna")
    await commands("drain", "anna", "--reason", "for the night")
    await commands("undrain", "anna", "--by", "the night shift")
    rows = "SELECT kind, node, by, reason FROM sync_history WHERE kind LIKE '%drained' ORDER BY id"
    assert await (await admin.execute(rows)).fetchall() == [
        ("drained", "anna", "ada", "for the night"),
        ("undrained", "anna", "the night shift", None),
    ]
    text = (await commands("history")).stdout
    assert re.search(r" anna drained +ada +for the night *$", text, re.MULTILINE)
    for option in ("--by", "--reason"):
        refused = await commands("drain", "anna", option, "half \udcff", status=2)
        assert f"{option} must be text" in refused.stderr


async def test_init_tells_what_it_made(commands):
    await commands.json("init", "--total-tokens", "120")
    script = json.loads((await commands("init", "--sql", "--json")).stdout)
    assert "CREATE TABLE" in script["sql"]


@pytest.mark.needs("timeline")
async def test_contract_is_done_once_and_status_and_doctor_warn_of_versions_that_differ(
    commands, jobs, admin
):
    await jobs.start("anna")
    await old_row(admin, "bert")
    status = await commands.json("status", status=0)
    assert [one["nodes"] for one in status["versions"]] == [["bert"], ["anna"]]
    assert "0.1.0 (bert)" in status["warnings"][0]
    assert "workers have different versions" in (await commands("status")).stdout
    checks = {check["name"]: check for check in (await commands.json("doctor"))["checks"]}
    assert (checks["versions"]["status"], "0.1.0: 1 workers" in checks["versions"]["found"]) == (
        "warn",
        True,
    )
    assert "bert (0.1.0)" in (await commands("contract", status=1)).stderr
    await admin.execute("DELETE FROM sync_node WHERE name = 'bert'")
    assert (await commands.json("contract"))["changed"]
    assert not (await commands.json("contract"))["changed"]
    checks = {check["name"]: check for check in (await commands.json("doctor"))["checks"]}
    assert (checks["versions"]["status"], checks["table version"]["status"]) == ("ok", "ok")


async def test_the_plan_says_what_the_leader_then_does(commands, jobs):
    await jobs.start("anna")
    await jobs.start("berta")
    await jobs.even()
    ahead = await commands.json("plan", "--add", "carla")
    await jobs.start("carla")
    await jobs.even()
    ((done, *_),) = [(await commands.json("history"))["rebalances"]]
    assert ahead["moved"] == done["tokens_moved"] == 40
    assert {n["name"]: n["tokens_planned"] for n in ahead["nodes"]} == jobs.counts()


async def test_what_nobody_may_have_is_explained_and_fails(commands, config):
    async with Job("anna", config) as job:
        await job.register_lock("model", "gpu-%", "large")
        with anyio.fail_after(5):
            while len(job.my_tokens) == 120:
                await asyncio.sleep(0.01)
        told = await commands.json("explain", "model", status=1)
        assert told["owner"] is None
        assert "has no owner" in told["why"]
        assert "gpu-%" in told["why"]
        assert (await commands.json("owner-of", "model", status=1))["owners"][0]["node"] is None
        plan = await commands.json("plan")
        assert plan["unmatched"] == [{"token_id": told["token_id"], "node_patterns": ["gpu-%"]}]
        text = (await commands("status", status=1)).stdout
        assert "1 owned by nobody" in text
        assert "gpu-%" in text
    assert "no worker takes tokens" in (await commands.json("explain", "model", status=1))["why"]
    assert (await commands.json("plan"))["moves"] == []


async def test_a_stuck_handoff_is_shown_with_its_task(commands, jobs, admin):
    await jobs.start("anna")
    await jobs.start("berta")
    await jobs.even()
    token = min(jobs["anna"].my_tokens)
    await admin.execute(
        "UPDATE sync_node SET stuck = %s::jsonb WHERE name = 'anna'",
        [f'[{{"token_id": {token}, "task_id": "7"}}]'],
    )
    await admin.execute(
        "UPDATE sync_token SET next_node = 'berta', revoked_at = now() - interval '90 seconds' "
        "WHERE token_id = %s",
        [token],
    )
    status = await commands.json("status", status=1)
    assert [(s["node"], s["token_id"], s["task_id"]) for s in status["stuck_handoffs"]] == [
        ("anna", token, "7")
    ]
    (problem,) = status["problems"]
    assert (problem["kind"], problem["severity"], problem["nodes"]) == ("stuck", "wrong", ["anna"])
    text = (await commands("status", status=1)).stdout
    assert "anna does not let go of task '7' for 9" in text.splitlines()[2]
    assert "stuck" in text
    assert re.search(r"\b[9]\d s ago", text)


async def test_what_is_only_to_be_known_is_told_and_is_no_failure(commands, jobs, admin):
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()

    async def failing(claim) -> None:
        raise ValueError("no such file")

    async with anyio.create_task_group() as group:
        for job in (anna, berta):
            group.start_soon(partial(job.run_batch, range(9), failing, name="b", attempts=1))
    await admin.execute(
        "INSERT INTO sync_set_aside (task_key, task_id, date, owners_lost, reason) "
        "VALUES ('x', 'x', '2026-01-01', 3, 'lost')"
    )
    await berta.drain()
    await jobs.settled(workers=["anna"])
    status = await commands.json("status")
    assert [(one["kind"], one["severity"]) for one in status["problems"]] == [
        ("failed", "notice"),
        ("set aside", "notice"),
        ("drained", "notice"),
    ]
    ((run,), aside) = status["batches"], status["set_aside"]
    assert (run["failed"], run["all_counted"], run["run_by"], aside) == (9, True, [], 1)


@pytest.mark.needs("names")
async def test_of_a_worker_that_is_late_it_is_told_whether_it_is_connected(commands, jobs, admin):
    await jobs.start("anna", "berta")
    await jobs.even()
    await jobs.crash("berta")
    late = "UPDATE sync_node SET last_heartbeat = now() - interval '13 seconds'"
    await admin.execute(f"{late}, session_tag = NULL WHERE name = 'anna'")
    await admin.execute(f"{late} WHERE name = 'berta'")
    status = await commands.json("status", status=1)
    assert {one["name"]: one["connected"] for one in status["nodes"]} == {
        "anna": None,
        "berta": False,
    }
    await admin.execute(
        "UPDATE sync_node SET session_tag = %s WHERE name = 'anna'",
        [jobs["anna"]._engine.store.tag],
    )
    told = (await commands("status", status=1)).stdout
    assert re.search("anna is silent for 1. s, but connected; nobody works on its 60 tokens", told)
    assert re.search("berta is silent for 1. s and not connected", told)


async def test_a_role_that_may_only_select_can_look_but_not_write(commands, jobs, dsn, dsn_with):
    await jobs.start("anna")
    with read_only_role(dsn, "jobsync_test_reader") as login:
        commands.dsn = dsn_with(**login)
        for command in (
            ["status"],
            ["owner-of", "x"],
            ["explain", "x"],
            ["history"],
            ["leader"],
            ["locks", "list"],
            ["plan"],
        ):
            await commands.json(*command)
        checks = {check["name"]: check for check in (await commands.json("doctor"))["checks"]}
        assert checks["rights"]["status"] == checks["writable"]["status"] == "warn"
        for command in (["drain", "anna"], ["locks", "add", "x", "%"], ["locks", "clear", "--all"]):
            result = await commands(*command, status=1)
            assert result.stderr.startswith("error:")


@pytest.mark.parametrize("columns", [30, 200])
async def test_people_get_tables_that_fit(commands, jobs, columns):
    await jobs.start("a-worker-with-a-rather-long-name", "another")
    await jobs["another"].register_lock("t\x1b[31mask" * 50, ["another", "%"], "because\nof")
    for command in (
        ["status"], ["owner-of", "x", "y" * 500], ["explain", "x"], ["history"], ["leader"],
        ["locks", "list"], ["plan", "--without", "another"], ["doctor"],
    ):  # fmt: skip
        text = (await commands(*command, columns=columns)).stdout
        assert text.strip()
        assert (
            columns == 200
            or command[0] != "status"
            or re.search(r"^worker +another *$", text, re.MULTILINE)
        ), "scraps"
        assert max(map(len, text.splitlines())) <= columns, command
        assert "\x1b" not in text


async def test_the_doctor_finds_what_is_wrong(commands, empty_dsn, dsn, dsn_with, admin):
    def failing(answer):
        return {
            check["name"]: check["found"] for check in answer["checks"] if check["status"] == "fail"
        }

    # No tables, no schema, no server.
    commands.dsn = empty_dsn
    assert "none in schema 'public'" in failing(await commands.json("doctor", status=1))["tables"]
    assert (
        "there is no schema"
        in failing(await commands.json("doctor", "--schema", "nowhere", status=1))["tables"]
    )
    commands.dsn = "host=127.0.0.1 port=1 dbname=x user=x connect_timeout=2"
    assert set(failing(await commands.json("doctor", status=1))) == {"connection"}
    # Tables of another version, and one that is missing.
    commands.dsn = dsn
    await admin.execute(
        "INSERT INTO sync_cluster (schema_version, total_tokens, hash_function) VALUES (99, 10, "
        "'md5')"
    )
    assert "at least layout 99" in failing(await commands.json("doctor", status=1))["table version"]
    await admin.execute("DROP TABLE sync_audit")
    assert failing(await commands.json("doctor", status=1))["tables"] == "missing: sync_audit"
    # A role that may write some of it.
    with read_only_role(dsn, "jobsync_test_partial") as login:
        await admin.execute("ALTER TABLE sync_claim RENAME TO sync_audit")
        await admin.execute("CREATE TABLE sync_claim ()")
        await admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO jobsync_test_partial")
        await admin.execute("GRANT INSERT, UPDATE ON sync_node TO jobsync_test_partial")
        commands.dsn = dsn_with(**login)
        assert "sync_node" in failing(await commands.json("doctor", status=1))["rights"]
        await admin.execute("REVOKE SELECT ON sync_token FROM jobsync_test_partial")
        assert (
            failing(await commands.json("doctor", status=1))["rights"] == "may not read sync_token"
        )
        await admin.execute("DROP TABLE sync_claim")


@pytest.mark.needs("sessions")
async def test_a_setting_that_ends_idle_sessions_is_a_warning(commands, jobs, admin):
    if admin.info.server_version < 140000:
        pytest.skip("PostgreSQL 13 has no setting that ends idle sessions")
    await jobs.start("anna")
    ((name,),) = await (await admin.execute("SELECT current_database()")).fetchall()
    await admin.execute(
        sql.SQL("ALTER DATABASE {} SET idle_session_timeout = '5min'").format(sql.Identifier(name))
    )
    checks = {check["name"]: check for check in (await commands.json("doctor"))["checks"]}
    assert (checks["idle sessions"]["status"], checks["idle sessions"]["found"]) == (
        "warn",
        "ended after 5min",
    )
