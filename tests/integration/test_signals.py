"""`handle_signals=True`: SIGTERM and SIGINT make a worker hand on and leave."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import anyio
import pytest

from jobsync_async import CoordinationConfig, Job, StoreUnavailable, UsageError
from tests.processes import short_lived

PROGRAM = """
import asyncio, sys
from jobsync_async import CoordinationConfig, Job

seconds, minimum_nodes = float(sys.argv[2]), int(sys.argv[3])

async def handle(claim):
    print("begins", claim.task_id, flush=True)
    try:
        await asyncio.sleep(seconds)
    except BaseException as error:
        print("cut off", flush=True)
        raise
    print("done", claim.task_id, flush=True)

async def main():
    config = CoordinationConfig(dsn=sys.argv[1], total_tokens=120, minimum_nodes=minimum_nodes)
    print("joining", flush=True)
    async with Job("process", config, handle_signals=True) as job:
        await job.run_batch(range(1000), handle, concurrency=1)
    print("left because of", job.stop_signal.name, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def start(dsn) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    with short_lived() as start_process:

        def start(seconds: float, minimum_nodes: int = 1) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", PROGRAM, dsn, str(seconds), str(minimum_nodes)]
            return start_process(command, stderr=subprocess.PIPE)

        yield start


def until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"it ended without saying {words!r}: {process.communicate()[1]}")


async def rows(admin) -> list[tuple[str, str]]:
    return await (
        await admin.execute("SELECT name, state FROM sync_node ORDER BY joined")
    ).fetchall()


@pytest.mark.needs("names")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_that_is_told_to_end_finishes_its_work_hands_on_and_goes_on_after_the_block(
    number, start, admin
):
    process = start(0.3)
    begun = await asyncio.to_thread(until, process, "begins")
    process.send_signal(number)
    output, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, errors
    assert output.splitlines() == [
        begun.replace("begins", "done").strip(),
        f"left because of {number.name}",
    ]
    assert errors == ""
    assert await rows(admin) == []
    completed = await (await admin.execute("SELECT count(*) FROM sync_audit")).fetchone()
    assert completed == (1,)


async def test_work_under_way_holds_a_process_up_until_a_second_signal(start, admin, make_config):
    process = start(60)
    await asyncio.to_thread(until, process, "begins")
    async with Job("heir", make_config(total_tokens=120)) as heir:
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(5):
            while len(heir.my_tokens) < 119:  # all but the one that is worked on
                await asyncio.sleep(0.01)
        assert await rows(admin) == [("process", "draining"), ("heir", "active")]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        with anyio.fail_after(5):
            output, errors = await asyncio.to_thread(process.communicate)
            while len(heir.my_tokens) < 120:
                await asyncio.sleep(0.01)
    # Before, it may have said that the heir does not run the batch.
    assert (process.returncode, errors.splitlines()[-1]) == (
        0,
        "process: was told again, and leaves at once",
    )
    assert output.splitlines() == ["cut off", "left because of SIGTERM"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
async def test_a_process_that_is_told_to_end_while_it_joins_withdraws(number, status, start, admin):
    process = start(1, minimum_nodes=2)
    with anyio.fail_after(10):
        while not await rows(admin):
            await asyncio.sleep(0.01)
    process.send_signal(number)
    output, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == status
    assert output == "joining\n"
    assert await rows(admin) == []


STUBBORN = """
import asyncio, sys, threading, time
from jobsync_async import CoordinationConfig, Job

where = sys.argv[2]

async def stubborn(*args):
    print("at work", flush=True)
    while True:
        try:
            if where == "a handler that blocks":
                while True: time.sleep(0.01)
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def main():
    options = {"lock_provider": stubborn} if where == "lock_provider" else {}
    config = CoordinationConfig(dsn=sys.argv[1], total_tokens=12)
    async with Job("process", config, handle_signals=True, **options) as job:
        if "handler" in where:
            await job.run_owned(["x"], stubborn)
        elif where == "a claim":
            async with job.claim("x"):
                await stubborn()
        else:
            await stubborn()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "where", ["the body", "a claim", "a handler", "a handler that blocks", "lock_provider"]
)
async def test_a_second_signal_ends_the_process_although_its_code_ignores_the_cancellation(
    where, dsn
):
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, dsn, where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await asyncio.to_thread(until, process, "at work")
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):
            _, errors = await asyncio.to_thread(process.communicate)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGTERM, (
        "it died by the second signal, as far as shells can see"
    )
    line = errors.splitlines()[-1]
    assert line.startswith(
        "the process ends by SIGTERM: 2 s after the second signal these are still at work: the "
        "body of"
    )
    assert ("the work on task 'x'" in line) == (where not in ("the body", "lock_provider"))


async def test_a_third_signal_does_what_it_did_before(dsn):
    command = [sys.executable, "-c", STUBBORN, dsn, "the body"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        await asyncio.to_thread(until, process, "at work")
        began = asyncio.get_running_loop().time()
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
        with anyio.fail_after(20):
            await asyncio.to_thread(process.communicate)
        assert asyncio.get_running_loop().time() - began < 2
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGTERM


# -- in this process -------------------------------------------------------------------------------


def mine(number: int, frame: object) -> None:
    raise AssertionError("the handler from before was called")


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.signal(number, mine) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "ending", ["the body ends", "a signal", "two signals", "the body raises", "start fails"]
)
async def test_the_handlers_from_before_are_put_back(ending, handlers):
    config = CoordinationConfig(host="127.0.0.1", port=1) if ending == "start fails" else None
    error = {"the body raises": ZeroDivisionError, "start fails": StoreUnavailable}.get(ending)
    job = Job("anna", config, handle_signals=True)
    with nullcontext() if error is None else pytest.raises(error):
        async with job:
            assert signal.getsignal(signal.SIGTERM) is not mine
            if ending == "the body raises":
                raise ZeroDivisionError
            for _ in range({"a signal": 1, "two signals": 2}.get(ending, 0)):
                signal.raise_signal(signal.SIGTERM)
            if "signal" in ending:
                await asyncio.sleep(10)
                raise AssertionError("it was not cancelled")
    assert job.stop_signal == (signal.SIGTERM if "signal" in ending else None)
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is mine
    task = asyncio.current_task()
    assert task is not None
    assert not hasattr(task, "cancelling") or task.cancelling() == 0


async def test_a_claim_of_the_body_itself_may_finish_and_a_second_signal_cancels_it(
    config, handlers
):
    seen = []
    async with Job("anna", config, handle_signals=True) as job:
        async with job.claim("x") as claim:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.2)
            seen.append(claim.valid)
        await asyncio.sleep(10)
        seen.append("went on")
    assert seen == [True]
    async with Job("berta", config, handle_signals=True) as job:
        async with job.claim("x"):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.2)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(10)
            seen.append("went on")
    assert seen == [True]


def test_a_signal_that_no_job_is_there_for_any_more_does_what_it_did_before(handlers):
    async def abandon() -> None:
        job = Job("anna", handle_signals=True)
        await job.__aenter__()

    asyncio.run(abandon())  # the block was never left
    with pytest.raises(AssertionError, match="the handler from before was called"):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is mine


async def test_all_jobs_of_a_process_leave_and_the_last_puts_the_handlers_back(handlers):
    left: list[str] = []

    async def use(name: str, release: asyncio.Event) -> None:
        async with Job(name, handle_signals=True) as job:
            await release.wait()
        left.append(f"{name} {job.stop_signal}")

    first, never = asyncio.Event(), asyncio.Event()
    tasks = [
        asyncio.create_task(use(name, event))
        for name, event in [("anna", first), ("berta", never), ("carla", never)]
    ]
    await asyncio.sleep(0.01)
    first.set()
    await tasks[0]
    assert signal.getsignal(signal.SIGTERM) is not mine
    signal.raise_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    assert left[0] == "anna None"
    assert sorted(left[1:]) == [f"berta {signal.SIGTERM}", f"carla {signal.SIGTERM}"]
    assert signal.getsignal(signal.SIGTERM) is mine


def test_outside_the_main_thread_it_says_what_to_do():
    raised: list[BaseException] = []

    async def use() -> None:
        async with Job("anna", handle_signals=True):
            pass

    def run() -> None:
        try:
            asyncio.run(use())
        except UsageError as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="second")
    thread.start()
    thread.join(10)
    assert "main thread only" in str(raised[0])
    assert "'second'" in str(raised[0])
