"""Jobs and forks: each program here forks for real."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from jobsync_async import Job

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

COMMON = """
import asyncio, gc, json, multiprocessing, os, signal, sys, warnings
from jobsync_async import CoordinationConfig, Job, NodeNameTaken, UsageError
from jobsync_async.host.process import started

config = CoordinationConfig(dsn=sys.argv[1], total_tokens=120, heartbeat_interval_sec=0.3, heartbeat_timeout_sec=1.5)

def tell(**what):
    os.write(1, (json.dumps(what) + "\\n").encode())

def in_child(function, *, exit=os._exit):
    warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: what these children do is what is tested
    if (pid := os.fork()) == 0:
        try:
            function()
        except BaseException as error:
            tell(error=repr(error))
        exit(0)
    return pid
"""


@pytest.fixture
def run(dsn) -> Callable[..., list[dict]]:
    """Run a program to its end; what it and its children told, in order."""

    def run(program: str, *arguments: str) -> list[dict]:
        command = [sys.executable, "-c", COMMON + program, dsn, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


async def test_a_job_made_before_a_fork_works_in_the_child_as_a_worker_of_its_own(run, admin):
    (told,) = await asyncio.to_thread(
        run,
        """
job = Job("web", config)
before = str(job._worker.identity.incarnation)

async def work():
    async with job:
        row = await job._engine.store._pool.run(lambda c: c.execute(
            f"SELECT incarnation::text, pid, process_started, session_tag FROM {job._engine.store.queries.table('node')}"))
        incarnation, pid, since, tag = await row.fetchone()
        result = await job.run_batch(range(20), handle)
        tell(tokens=len(job.my_tokens), done=len(result.completed_here), tag=tag == job._engine.store.tag,
             pid=(pid, since) == (os.getpid(), started(os.getpid())), fresh=incarnation != before)

async def handle(claim): pass

os.waitpid(in_child(lambda: asyncio.run(work())), 0)
""",
    )
    assert told == {"tokens": 120, "done": 20, "pid": True, "tag": True, "fresh": True}
    assert (await (await admin.execute("SELECT count(*) FROM sync_node")).fetchone()) == (0,)


async def test_children_of_one_process_share_the_work_when_each_has_a_name_of_its_own(run):
    told = await asyncio.to_thread(
        run,
        """
jobs = {name: Job(name, config) for name in ("web-1", "web-2", "web-3")}  # gunicorn --preload

async def work(name, up, done):
    async with jobs[name] as job:
        up.release()
        while len(job.my_tokens) != 40:
            await asyncio.sleep(0.01)
        tell(name=name, tokens=sorted(job.my_tokens), incarnation=str(job._worker.identity.incarnation))
        up.release()
        while not done.is_set():
            await asyncio.sleep(0.01)

context = multiprocessing.get_context("fork")
up, done = context.Semaphore(0), context.Event()
children = [context.Process(target=lambda name=name: asyncio.run(work(name, up, done))) for name in jobs]
for child in children: child.start()
for _ in range(2 * len(children)): assert up.acquire(timeout=20)
done.set()
for child in children: child.join(20)
""",
    )
    assert sorted(child["name"] for child in told) == ["web-1", "web-2", "web-3"]
    assert sorted(token for child in told for token in child["tokens"]) == list(range(120))
    assert len({child["incarnation"] for child in told}) == 3


async def test_two_children_of_one_job_are_two_incarnations_and_the_second_is_told_that_its_name_is_taken(
    run,
):
    told = await asyncio.to_thread(
        run,
        """
job = Job("web", config)

async def first(up, done):
    async with job:
        tell(incarnation=str(job._worker.identity.incarnation))
        up.set()
        while not done.is_set():
            await asyncio.sleep(0.01)

async def second():
    try:
        await job.start()
    except NodeNameTaken as error:
        tell(incarnation=str(job._worker.identity.incarnation), error=str(error))

context = multiprocessing.get_context("fork")
up, done = context.Event(), context.Event()
one = context.Process(target=lambda: asyncio.run(first(up, done)))
one.start()
assert up.wait(20)
two = context.Process(target=lambda: asyncio.run(second()))
two.start(); two.join(20)
done.set(); one.join(20)
""",
    )
    assert len({child["incarnation"] for child in told}) == 2
    assert "process id" in told[1]["error"]


async def test_a_job_that_was_started_before_a_fork_is_void_in_the_child_and_says_so_at_every_call(
    run,
):
    told = await asyncio.to_thread(
        run,
        """
async def main():
    async with Job("parent", config, handle_signals=True) as job, job.claim("x") as claim, job.token_changes() as changes:
        await changes.__anext__()

        def child():
            calls = dict(owns=lambda: job.owns("x"), can=lambda: job.can_claim_task("x"), claim=lambda: job.claim("x"),
                         filter=lambda: job.filter_owned(["x"]), changes=job.token_changes)
            later = dict(start=job.start, stop=job.stop, drain=job.drain, undrain=job.undrain, owner=lambda: job.owner_of("x"),
                         add=lambda: job.add_task("x"), audit=job.write_audit, nodes=job.get_active_nodes, locks=job.list_locks,
                         batch=lambda: job.run_batch(["x"], print), owned=lambda: job.run_owned(["x"], print),
                         fence=lambda: job.fence(None, claim), next=changes.__anext__,
                         exit=lambda: job.__aexit__(None, None, None))
            said = {}
            async def call(function):
                await function()
            for name, function in calls.items():
                try: said[name] = str(function())
                except UsageError as error: said[name] = "forked" in str(error)
            for name, function in later.items():
                try: said[name] = str(asyncio.run(call(function)))
                except UsageError as error: said[name] = "forked" in str(error)
            tell(said=said, tokens=len(job.my_tokens), valid=claim.valid, healthy=job.am_i_healthy(), leads=job.am_i_leader(),
                 lease=job.lease_remaining_sec, repr=repr(job))
        pid = in_child(child)
        await asyncio.to_thread(os.waitpid, pid, 0)
        beats, readings = job.metrics.heartbeats, job.metrics.listener_reconnects
        while job.metrics.heartbeats < beats + 2:
            await asyncio.sleep(0.01)
        tell(tokens=len(job.my_tokens), valid=claim.valid, reconnects=readings, failed=job.metrics.heartbeats_failed)
asyncio.run(main())
""",
    )
    child, parent = told
    assert set(child.pop("said").values()) == {True}
    assert child.pop("repr").startswith("<Job 'parent' void")
    assert child == {"tokens": 0, "valid": False, "healthy": False, "leads": False, "lease": 0.0}
    assert parent == {"tokens": 120, "valid": True, "reconnects": 0, "failed": 0}


@pytest.mark.parametrize(
    "ending", ["os._exit", "sys.exit", "collected", "its own job", "leaves the block"]
)
async def test_however_a_child_ends_it_does_not_touch_its_parents_sessions(run, ending):
    told = await asyncio.to_thread(
        run,
        "ending = sys.argv[2]"
        """
import io
async def other():
    async with Job("child", config) as job:
        while len(job.my_tokens) != 60:
            await asyncio.sleep(0.01)
        tell(child=60)

async def main():
    job = Job("parent", config)
    async with job:
        await job.get_audit()  # a pooled connection is there, too
        backends = await sessions(job)
        if (pid := os.fork()) == 0:
            sys.stderr = io.StringIO()  # a loop that goes on in a child complains
            if ending == "os._exit": os._exit(0)
            if ending == "collected":
                job._engine = job._worker = job._task = None
                gc.collect()
                os._exit(0)
            if ending == "its own job":
                import threading
                thread = threading.Thread(target=lambda: asyncio.run(other()))
                thread.start(); thread.join()
                os._exit(0)
            if ending == "leaves the block": return
            sys.exit(0)
        await asyncio.to_thread(os.waitpid, pid, 0)
        beats = job.metrics.heartbeats
        while job.metrics.heartbeats < beats + 2:
            await asyncio.sleep(0.01)
        await job.get_audit()
        tell(same=backends <= await sessions(job), failed=job.metrics.heartbeats_failed, again=job.metrics.listener_reconnects)
    os._exit(0)  # a child whose event loop ended in order has taken the parent's loop its means to be woken by threads

async def sessions(job):
    cursor = await job._engine.store._pool.run(lambda c: c.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s", [f"%{job._engine.store.tag}%"]))
    return {pid for (pid,) in await cursor.fetchall()}

warnings.simplefilter("ignore", DeprecationWarning)
asyncio.run(main())
""",
        ending,
    )
    assert told[-1] == {"same": True, "failed": 0, "again": 0}
    assert told[:-1] == ([{"child": 60}] if ending == "its own job" else [])


async def test_a_child_ends_by_a_signal_that_its_parent_handles(run):
    told = await asyncio.to_thread(
        run,
        """
import time
async def main():
    async with Job("parent", config, handle_signals=True) as job:
        up, child_up = os.pipe()
        pid = in_child(lambda: (os.write(child_up, b"."), time.sleep(30)))
        await asyncio.to_thread(os.read, up, 1)
        os.kill(pid, signal.SIGTERM)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        tell(ended_by=os.WTERMSIG(status), parent=job.am_i_healthy())
asyncio.run(main())
""",
    )
    assert told == [{"ended_by": 15, "parent": True}]


async def test_a_job_that_has_stopped_before_a_fork_starts_again_in_the_child(run):
    told = await asyncio.to_thread(
        run,
        """
job = Job("a", config)
async def use():
    async with job:
        tell(tokens=len(job.my_tokens))
asyncio.run(use())
os.waitpid(in_child(lambda: asyncio.run(use())), 0)
asyncio.run(use())
""",
    )
    assert told == [{"tokens": 120}] * 3


def test_a_job_made_here_names_this_process():
    assert Job("a")._worker.announcement.pid == os.getpid()
