"""What is logged reads well as text, and as JSON."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import re
from pathlib import Path

import anyio
import pytest

import jobsync_async
from jobsync_async import OwnershipLost
from jobsync_async.host.logs import WorkerLog
from jobsync_async.testing import Cluster

PACKAGE = Path(jobsync_async.__file__).parent
GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
WRITER = re.compile(r"logger|(self\._\w*|)log|WorkerLog\(__name__, .*\)")
# Where a worker speaks. The handler of signals speaks for the process.
ROOMS = ("api", "runtime", "tasks", "work")
FOR_THE_PROCESS = "runtime/signals.py"


def documented() -> set[str]:
    """Read when it is compared, as the code is: what is edited while the tests run is read whole,
    or not at all."""
    table = re.search(
        r"\| field \| what \|\n\| --- \| --- \|\n((?:\|.*\n)+)", GUIDE.read_text("utf-8")
    )
    assert table is not None
    return {
        name for row in table[1].splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }


def modules() -> list[tuple[str, ast.Module]]:
    """All but the one that writes in the name of others."""
    paths = ((path.relative_to(PACKAGE).as_posix(), path) for path in sorted(PACKAGE.rglob("*.py")))
    return [
        (name, ast.parse(path.read_text("utf-8"))) for name, path in paths if name != "host/logs.py"
    ]


def calls() -> list[tuple[str, str, ast.Call]]:
    """Every line that is written: where, by what, and the call."""
    found = []
    for name, module in modules():
        called = {node.func: node for node in ast.walk(module) if isinstance(node, ast.Call)}
        for node in ast.walk(module):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in LEVELS
                and WRITER.fullmatch(ast.unparse(node.value))
            ):
                where = f"{name}:{node.lineno}"
                assert node in called, (
                    f"{where}: call it where it stands, so that its fields are seen here"
                )
                found.append((where, ast.unparse(node.value), called[node]))
    return found


def test_every_record_says_who_says_it_with_the_documented_fields():
    used: set[str] = set()
    fields = documented()
    for where, writer, call in calls():
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        if writer == "logger":
            extra = keywords.get("extra")
            assert isinstance(extra, ast.Dict), (
                f"{where}: a record needs extra={{…}} with fields that docs/operations.md lists"
            )
            names = {key.value for key in extra.keys if isinstance(key, ast.Constant)}
            speaker = "signal" if where.startswith(FOR_THE_PROCESS) else "channel"
            assert speaker in names, f"{where}: the extra fields do not say who says it"
        else:
            names = {name or "**" for name in keywords} - {"exc_info"} | {"node"}
        assert names <= fields, f"{where}: docs/operations.md does not list {names - fields}"
        used |= names
    assert used == fields


def test_a_worker_writes_by_a_worker_log_alone_under_a_name_by_which_it_is_known_here():
    for name, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and node.attr == "getLogger":
                bare = name.split("/")[0] in ROOMS and name != FOR_THE_PROCESS
                assert not bare, (
                    f"{name}:{node.lineno}: use WorkerLog, which says the worker's name"
                )
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(
                ("WorkerLog(", "logging.getLogger(")
            ):
                (target,) = node.targets
                assert WRITER.fullmatch(ast.unparse(target)), (
                    f"{name}:{node.lineno}: the test above does not know this name"
                )


def by_a_log(log: WorkerLog) -> None:
    log.info("a %s", "word", failures=1)
    log.warning("100 %%")
    log.error("it raised", exc_info=ZeroDivisionError())
    log.log(logging.DEBUG, "level")


def test_a_worker_log_names_the_worker_and_the_place_that_calls_it(caplog):
    caplog.set_level(logging.DEBUG, "there")
    by_a_log(WorkerLog("there", "100 %s"))
    info, warning, error, debug = records = caplog.records
    assert {(record.name, record.node, record.funcName, record.module) for record in records} == {
        ("there", "100 %s", "by_a_log", "test_logs")
    }
    first = by_a_log.__code__.co_firstlineno
    assert [record.lineno for record in records] == [first + 1, first + 2, first + 3, first + 4]
    assert [record.levelname for record in records] == ["INFO", "WARNING", "ERROR", "DEBUG"]
    assert (info.getMessage(), info.failures) == ("100 %s: a word", 1)
    assert warning.getMessage() == "100 %s: 100 %"
    assert error.exc_info[0] is ZeroDivisionError and debug.exc_info is None


@pytest.fixture
def formatter() -> logging.Formatter:
    (block,) = re.findall(
        r"```python\n(import json\n.*?)\n\n\nhandler = ", GUIDE.read_text("utf-8"), re.DOTALL
    )
    names: dict[str, type[logging.Formatter]] = {}
    exec(block, names)
    return names["JsonLines"]()


@pytest.mark.needs("timeline")
async def test_the_documented_formatter_writes_every_record_of_an_eventful_cluster(
    quick, caplog, formatter
):
    async def handle(claim) -> None:
        raise ZeroDivisionError

    caplog.set_level(logging.DEBUG, "jobsync_async")
    async with Cluster(quick) as cluster:
        (anna,) = await cluster.start("anna")
        (berta,) = await cluster.start("berta")
        await cluster.even()
        await anna.register_lock(("a", 1), "nobody-%")
        await cluster.settled(unowned=1)
        both = (job.run_batch([("a", 2), "b"], handle, attempts=1) for job in (anna, berta))
        await asyncio.gather(*both)
        with anyio.fail_after(10):
            # Her lease may have ended on a busy machine.
            while not (tasks := berta.filter_owned(range(1000))):
                await asyncio.sleep(0.01)
        with pytest.raises(OwnershipLost):
            async with berta.claim(tasks[0]):
                await cluster.expire(berta)
                await asyncio.sleep(10)
        with cluster.partition(anna, silent=False):
            await cluster.settled(workers=[berta], unowned=1)
    records = [record for record in caplog.records if record.name.startswith("jobsync_async")]
    lines = [json.loads(formatter.format(record)) for record in records]
    for line in lines:
        assert line["text"].startswith(f"{line['node']}: "), line
    told = {line["text"].partition(" ")[2].split(" ")[0] for line in lines}
    assert {"joined", "rebalanced", "left", "heartbeat"} <= told
    assert any(
        line.get("task_id") == "('a', 2)" and "ZeroDivisionError" in line["traceback"]
        for line in lines
    )
    assert any("patterns" in line for line in lines)
    assert any(line.get("tokens_lost") for line in lines)
