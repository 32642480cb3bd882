"""Every block of code in the documents runs, or says why it does not."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

import jobsync_async
from jobsync_async import Claim, CoordinationConfig, Job
from tests.documents.blocks import PAGES, ROOT, TUTORIALS, Block, blocks, blocks_of

# Blocks in these are run here, in test_sql_cheatsheet.py, test_tutorials.py or tests/examples.
RUN = {"python", "bash", "sql"}
NOT_CODE = {"mermaid", "text", "", "json"}

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_every_block_is_run_or_says_why_not():
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in RUN | NOT_CODE or block.excuse, (
                f"{block} is not run and does not say why"
            )


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_what_a_tutorial_shows_stands_in_the_example(page):
    """A tutorial has whole files, which have a title, and explains parts of them."""
    python = [block for block in blocks_of(page) if block.language == "python"]
    files = [_bare(block.text) for block in python if block.title]
    quoted = [block for block in python if not block.title]
    assert quoted
    for quote in quoted:
        assert any(_bare(quote.text) in file for file in files), f"{quote}: {quote.text}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_stands_whole_in_a_page(example):
    shown = [block for block in blocks("python") if block.title == example.name]
    assert shown, f"no page has a block with the title {example.name}"
    for block in shown:
        assert block.text == example.read_text("utf-8"), f"{block} is not {example.name}"


def _bare(code: str) -> str:
    """Without indentation and empty lines: a formatter may have changed these in the page."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


def programs_and_fragments() -> list[Path]:
    return [page for page in PAGES if page not in TUTORIALS and any(_python(page))]


def _python(page: Path) -> list[Block]:
    """Those that are run here. tests/examples runs the examples."""
    examples = {path.name for path in EXAMPLES}
    blocks = [block for block in blocks_of(page) if block.language == "python"]
    return [block for block in blocks if block.excuse is None and block.title not in examples]


@pytest.mark.parametrize(
    "page", programs_and_fragments(), ids=lambda page: str(page.relative_to(ROOT))
)
async def test_the_python_of_a_page_runs_from_top_to_bottom(
    page, dsn, capsys, tmp_path, monkeypatch
):
    """Programs as processes; fragments one after the other, with a job, a configuration and the
    like in place."""
    monkeypatch.chdir(tmp_path)
    where = conninfo_to_dict(dsn)
    environment = {
        f"PG{name.upper()}": str(where[key]) for name, key in _LIBPQ.items() if key in where
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    blocks = _python(page)
    for block in blocks:
        if "asyncio.run(" in block.text:
            program = _reaching(block.text)
            arguments = [sys.executable, "-W", "error", "-c", program]
            done = await asyncio.to_thread(
                subprocess.run, arguments, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, f"{block}: {done.stderr}"
    fragments = [block for block in blocks if "asyncio.run(" not in block.text]
    if fragments:
        with anyio.fail_after(60):
            async with Surroundings(dsn, stale="stale" in page.read_text("utf-8")) as names:
                for block in fragments:
                    await _run(block, dict(names))
                    refused = capsys.readouterr().out.count("rolled back: task")
                    assert refused >= block.text.count(REFUSAL), f"{block}"


REFUSAL = 'print("rolled back:"'
_LIBPQ = {
    "host": "host",
    "port": "port",
    "database": "dbname",
    "user": "user",
    "password": "password",
}


def _reaching(program: str) -> str:
    """The program, with the made-up server's name taken out, so that libpq's environment counts;
    its stand-in for work, which is there for people to watch, is short."""
    program = program.replace("asyncio.sleep(0.5)  # the work", "asyncio.sleep(0.01)")
    return re.sub(r"(CoordinationConfig\(\s*)host=[^)]*?(, appname=[^)]*)?\)", r"\1)", program)


class Surroundings:
    """What a fragment may take for granted.

    Args:
        stale: whether it needs a claim whose token has another owner by now.
    """

    def __init__(self, dsn: str, *, stale: bool) -> None:
        self._stale = stale
        self._config = CoordinationConfig(dsn=dsn)
        self._job = Job("documented", self._config)
        self._pool = AsyncConnectionPool(dsn, open=False)
        self._dsn = dsn

    async def __aenter__(self) -> dict[str, Any]:
        await self._pool.open()
        self._connection = await psycopg.AsyncConnection.connect(self._dsn)
        await self._connection.execute("CREATE TABLE IF NOT EXISTS orders (id text, status text)")
        await self._connection.commit()
        stale = None
        if self._stale:
            async with Job("left", self._config) as left, left.claim("invoice-0") as stale:
                pass
        await self._job.start()
        ids = ["invoice-1", "invoice-2"]

        async def handle(claim: Claim) -> None:
            assert claim.valid

        public = {name: getattr(jobsync_async, name) for name in jobsync_async.__all__}
        more = {
            "handle": handle,
            "book": handle,
            "stream_symbol": handle,
            "ids": ids,
            "task_id": ids[0],
            "dsn": self._dsn,
            "stale": stale,
        }
        return {
            **public,
            **more,
            "asyncio": asyncio,
            "job": self._job,
            "config": self._config,
            "pool": self._pool,
            "connection": self._connection,
            "conn": self._connection,
        }

    async def __aexit__(self, *_: object) -> None:
        await self._job.stop()
        await self._connection.close()
        await self._pool.close()


async def _run(block: Block, names: dict[str, Any]) -> None:
    """Run a fragment that may await at its top level. What goes on for ever is looked at for a
    moment; what shows a refusal comes to its end."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(block.text, str(block), "exec", flags=flags, dont_inherit=True)
    try:
        with anyio.fail_after(30) if REFUSAL in block.text else anyio.move_on_after(2):
            result = eval(code, names)
            if inspect.iscoroutine(result):
                await result
    except Exception as error:
        raise AssertionError(f"{block}: {type(error).__name__}: {error}") from error


COMMANDS = [b for b in blocks("bash") if b.excuse is None and b.page not in TUTORIALS]


@pytest.mark.parametrize("block", COMMANDS, ids=str)
async def test_a_command_line_in_the_documents_works(block, dsn, tmp_path):
    """The README's own two commands are run by `.ci/run` and by
    tests/integration/test_command_line.py."""
    if block.page == ROOT / "README.md":
        assert block.text.strip() in (
            "pip install '.[demo]' && jobsync-async demo",
            "pip install uv && uv run pytest -n 3 --dist loadfile",
        )
        return
    async with Job("worker-1", CoordinationConfig(dsn=dsn)) as job:
        assert job.my_tokens
        script = block.text.replace("--dsn ...", "--dsn " + shlex.quote(dsn))
        bin_folder = Path(sys.executable).parent
        environment = {
            **os.environ,
            "JOBSYNC_DSN": dsn,
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
        }
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-e", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"
