"""Work in child processes: what they do when their worker is killed. Observed times are printed
(pytest -s)."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from jobsync_async import CoordinationConfig, Job
from jobsync_async.host.children import die_with_parent

PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[2]); from tests.integration.test_children import "
    "toil; toil(sys.argv[1])"
)
ROOT = Path(__file__).parents[2]


def toil(path: str) -> None:
    """Work: say again and again that it goes on."""
    ends = time.monotonic() + 10
    with open(path, "ab", buffering=0) as file:
        while time.monotonic() < ends:
            file.write(f"{os.getpid()} {time.monotonic()}\n".encode())
            time.sleep(0.001)


def said(path: Path) -> list[str]:
    return path.read_text("ascii").split() if path.exists() else []


def tied_as_on_other_systems() -> None:
    sys.platform = "darwin"
    die_with_parent()


async def worker(dsn: str, kind: str, path: str) -> None:
    async def in_pool(pool: ProcessPoolExecutor) -> None:
        await asyncio.get_running_loop().run_in_executor(pool, toil, path)

    async def handle(claim) -> None:
        if kind == "program":
            command = [sys.executable, "-c", PROGRAM, path, str(ROOT)]
            await (
                await asyncio.create_subprocess_exec(*command, preexec_fn=die_with_parent)
            ).wait()
        else:
            initializer = {"untied": None, "elsewhere": tied_as_on_other_systems}.get(
                kind, die_with_parent
            )
            method = "spawn" if kind == "spawn" else "fork"
            with ProcessPoolExecutor(1, multiprocessing.get_context(method), initializer) as pool:
                await in_pool(pool)

    async with Job("a", CoordinationConfig(dsn=dsn, total_tokens=1)) as job:
        await job.run_owned(["x"], handle)


async def outlived(config: CoordinationConfig, kind: str, path: Path) -> float:
    """For how many seconds a child went on after the next owner had the task, below 0 if it had
    ended before."""
    command = [sys.executable, "-m", "tests.integration.test_children", config.dsn, kind, str(path)]
    process = subprocess.Popen(command, cwd=ROOT)
    child = None
    try:
        with anyio.fail_after(30):
            while not (told := said(path)):
                await asyncio.sleep(0.01)
            child = int(told[0])
            async with Job("b", config, wait_on_enter=10) as job:
                while job.my_tokens or (await job.owner_of("x")).node != "a":
                    await asyncio.sleep(0.01)
                process.kill()
                while not job.my_tokens:
                    await asyncio.sleep(0.001)
                owned_at = time.monotonic()
                await asyncio.sleep(0.3)
        return float(said(path)[-1]) - owned_at
    finally:
        process.kill()
        process.wait()
        if child is not None:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only there the death of a worker is known at once"
)


@pytest.fixture
def config(make_config) -> CoordinationConfig:
    return make_config(total_tokens=1)


@pytest.mark.parametrize("kind", ["fork", "spawn", "program"])
async def test_a_child_that_is_tied_to_its_worker_has_ended_before_the_next_owner_begins(
    config, kind, tmp_path
):
    after = await outlived(config, kind, tmp_path / "toil")
    print(f"{kind}: the child's last sign was {-after * 1000:.0f} ms before the next owner")
    assert after < 0


async def test_a_child_that_is_tied_by_a_thread_of_its_own_ends_soon(config, tmp_path):
    assert await outlived(config, "elsewhere", tmp_path / "toil") < 0.2


async def test_a_child_that_is_not_goes_on_beside_the_next_owner(config, tmp_path):
    """The limit that the guarantees name."""
    assert await outlived(config, "untied", tmp_path / "toil") > 0


# Here a fork is what is wanted.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_whose_parent_ended_before_it_was_tied_ends(monkeypatch):
    parents = iter([4711, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    process = multiprocessing.get_context("fork").Process(target=die_with_parent)
    process.start()
    process.join(10)
    assert process.exitcode == 1


if __name__ == "__main__":
    asyncio.run(worker(*sys.argv[1:]))
