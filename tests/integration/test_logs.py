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
from jobsync_async.testing import Cluster

PACKAGE = Path(jobsync_async.__file__).parent
GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"
LEVELS = {f"logger.{level}" for level in ("debug", "info", "warning", "error", "exception")}


def documented() -> set[str]:
    """Read when it is compared, as the code is: what is edited while the tests run is read whole, or not at all."""
    table = re.search(r"\| field \| what \|\n\| --- \| --- \|\n((?:\|.*\n)+)", GUIDE.read_text("utf-8"))
    assert table is not None
    return {name for row in table[1].splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def calls() -> list[tuple[str, ast.Call]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in LEVELS:
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node))
    return found


def test_every_record_says_who_says_it_with_the_documented_fields():
    used: set[str] = set()
    fields = documented()
    for where, call in calls():
        extra = {keyword.arg: keyword.value for keyword in call.keywords}.get("extra")
        assert isinstance(extra, ast.Dict), f"{where}: a record needs extra={{…}} with fields that docs/operations.md lists"
        names = {key.value for key in extra.keys if isinstance(key, ast.Constant)}
        assert names & {"node", "channel"}, f"{where}: the extra fields do not say who says it"
        assert names <= fields, f"{where}: docs/operations.md does not list {names - fields}"
        used |= names
    assert used == fields


@pytest.fixture
def formatter() -> logging.Formatter:
    (block,) = re.findall(r"```python\n(import json\n.*?)\n\n\nhandler = ", GUIDE.read_text("utf-8"), re.DOTALL)
    names: dict[str, type[logging.Formatter]] = {}
    exec(block, names)
    return names["JsonLines"]()


async def test_the_documented_formatter_writes_every_record_of_an_eventful_cluster(quick, caplog, formatter):
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
            while not (tasks := berta.filter_owned(range(1000))):  # her lease may have ended on a busy machine
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
        assert line["text"].startswith(f"{line['node']} ") or line["text"].startswith(f"{line['node']}: "), line
    told = {line["text"].partition(" ")[2].split(" ")[0] for line in lines}
    assert {"joined", "rebalanced", "left", "heartbeat"} <= told
    assert any(line.get("task_id") == "('a', 2)" and "ZeroDivisionError" in line["traceback"] for line in lines)
    assert any("patterns" in line for line in lines)
    assert any(line.get("tokens_lost") for line in lines)
