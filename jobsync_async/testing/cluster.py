"""A cluster of jobs in one event loop, and what can happen to its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID
from weakref import WeakKeyDictionary

import anyio

from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import StoreUnavailable, UsageError
from jobsync_async.host.waiting import ended
from jobsync_async.job import Job
from jobsync_async.postgres.store import Store
from jobsync_async.runtime.coordinator import Coordinator
from jobsync_async.testing.detector import OwnerWatch
from jobsync_async.testing.proxy import Proxy, endpoint, through

if TYPE_CHECKING:
    from typing_extensions import Self

_LOOK_EVERY_SEC = 0.002
_clusters: WeakKeyDictionary[Job, Cluster] = WeakKeyDictionary()


class Cluster:
    """Jobs by name: ``async with Cluster(config) as cluster``. At every turn of the event loop it
    looks that no token has two owners, and raises `TwoOwners` when the block ends; it stops the
    jobs that are left.

    All its methods take a worker as `Job` or by name.

    Args:
        config: the cluster's settings; short heartbeats (`jobsync_config` has them) make short
            tests.
        partitionable: connect each job through a proxy of its own, which `partition` needs.

    Attributes:
        jobs: the jobs that run, by name.
        watch: what looks for two owners; `OwnerWatch.working` marks work of your own that must not
            overlap.
    """

    def __init__(self, config: CoordinationConfig, *, partitionable: bool = True) -> None:
        self.config = config
        self.jobs: dict[str, Job] = {}
        self.watch: OwnerWatch = OwnerWatch(self.jobs.values)
        self._partitionable = partitionable
        self._endpoint: tuple[str, int] | None = None
        self._proxies: dict[str, Proxy] = {}
        self._watching: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return (
            f"<Cluster {self.config.appname!r} "
            f"{', '.join(f'{name}: {count}' for name, count in self.counts().items())}>"
        )

    def __getitem__(self, worker: Job | str) -> Job:
        name = _name(worker)
        if name not in self.jobs:
            there = ", ".join(sorted(self.jobs)) or "none"
            raise UsageError(
                f"no worker {name!r} runs in this cluster (running: {there}); start() or add() "
                "it first"
            )
        return self.jobs[name]

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self.watch.run(), name="jobsync_async OwnerWatch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._watching is not None, "entered before"
        self.watch.look()
        self._watching.cancel()
        await asyncio.wait([self._watching])
        for proxy in self._proxies.values():
            proxy.heal()
        ends = await asyncio.gather(
            *(job.stop() for job in self.jobs.values()), return_exceptions=True
        )
        self.jobs.clear()
        for proxy in self._proxies.values():
            await proxy.stop()
        self.watch.check()
        if not self._watching.cancelled():
            self._watching.result()  # raises what ended it
        for end in ends:
            if isinstance(end, BaseException) and error is None:
                raise end

    @property
    def watched(self) -> bool:
        """Whether two owners are looked for. Set it to False while a test breaks the rule on
        purpose."""
        return not self.watch.paused

    @watched.setter
    def watched(self, watched: bool) -> None:
        self.watch.paused = not watched

    # -- workers -----------------------------------------------------------------------------------

    async def start(self, *names: str, **options: Any) -> list[Job]:
        """Start jobs, all at once, and return them in order. `options` are arguments of `Job`."""
        configs = [await self.config_for(name) for name in names]
        options = {"wait_on_enter": 20, **options}
        jobs = [Job(name, config, **options) for name, config in zip(names, configs, strict=True)]
        try:
            await asyncio.gather(*(job.start() for job in jobs))
        finally:
            for job in jobs:
                self.add(job)
        return jobs

    async def config_for(self, name: str) -> CoordinationConfig:
        """The configuration for a job that your application makes under this name; give the job to
        `add`."""
        if not self._partitionable:
            return self.config
        if name not in self._proxies:
            if self._endpoint is None:
                self._endpoint = await anyio.to_thread.run_sync(endpoint, self.config)
            proxy = self._proxies[name] = Proxy(*self._endpoint)
            await proxy.start()
        return through(self.config, self._proxies[name])

    def add(self, job: Job) -> None:
        """Take in a job that was started elsewhere."""
        self.jobs[job.node_name] = job
        _clusters[job] = self

    async def stop(self, worker: Job | str) -> None:
        """Leave in order, as a process that is told to end."""
        await self.jobs.pop(self[worker].node_name).stop()

    async def crash(self, worker: Job | str) -> None:
        """End a job without a word to anybody, as if its process had died by SIGKILL. The others
        expire it after ``heartbeat_timeout_sec``.

        Its connections break and no more are opened, its lease is over, and no fence of it holds
        any more. What runs in this process cannot be kept from running: handlers and the bodies of
        claims are cancelled, and their cleanup runs, with a claim that is lost. See
        docs/testing-your-app.md for what of a death this does not show.
        """
        job = self[worker]
        coordinator = _coordinator(job)
        del self.jobs[job.node_name]
        # Who calls this in a claim of the job is about to be cancelled.
        with anyio.CancelScope(shield=True):
            _cut(job, coordinator)
            await _refuse_fences(self.config, coordinator.worker.identity.incarnation)
            await _die(job, coordinator)

    async def expire(self, worker: Job | str) -> None:
        """Make the cluster take the worker for dead now, as after ``heartbeat_timeout_sec`` without
        a heartbeat.

        Its lease is over, its claims are cancelled, its streams say `lost`, and its tokens are free
        for the others. It joins anew by itself, at once, or as soon as it is not cut off any more.
        """
        await _expire(self[worker], self.config)

    @contextmanager
    def partition(self, worker: Job | str, *, silent: bool = True) -> Iterator[None]:
        """``with cluster.partition("anna"):`` cuts the worker off from PostgreSQL until the block
        ends.

        Args:
            silent: nothing gets through and nothing says so, as when a network is down; what was
                sent arrives later. False: connections break and new ones are refused.
        """
        name = self[worker].node_name
        if name not in self._proxies:
            raise UsageError(
                f"{name!r} has no proxy to cut: use Cluster(config, partitionable=True), and make "
                "the job with cluster.start(name) or with the configuration that "
                "cluster.config_for(name) gives"
            )
        self._proxies[name].cut(silent=silent)
        try:
            yield
        finally:
            self._proxies[name].heal()

    # -- what is owned -----------------------------------------------------------------------------

    def owners(self) -> dict[int, str]:
        """Token to worker, at this moment. Raises TwoOwners."""
        return self.watch.owners()

    def counts(self) -> dict[str, int]:
        """How many tokens each worker owns."""
        return {name: len(job.my_tokens) for name, job in self.jobs.items()}

    async def settled(
        self, seconds: float = 10, *, workers: Iterable[Job | str] | None = None, unowned: int = 0
    ) -> dict[str, int]:
        """Wait until every token is owned; how many each worker has. Raises TimeoutError.

        Args:
            workers: until every token is owned by one of these.
            unowned: until all but so many are.
        """
        names = None if workers is None else {_name(worker) for worker in workers}
        with anyio.fail_after(seconds):
            # the jobs share no event
            while self._owned_by(names) != self.config.total_tokens - unowned:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_EVERY_SEC)
        return self.counts()

    def _owned_by(self, names: set[str] | None) -> int:
        owners = self.owners()
        return len(owners) if names is None else sum(owner in names for owner in owners.values())

    async def even(self, seconds: float = 10) -> dict[str, int]:
        """Wait until every token is owned and nobody has more than one more than another: equal
        weights, no pins."""
        with anyio.fail_after(seconds):
            # the same
            while max((await self.settled(seconds)).values()) - min(self.counts().values()) > 1:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_EVERY_SEC)
        return self.counts()


async def expire(job: Job) -> None:
    """`Cluster.expire` for a job of any cluster, or of none."""
    cluster = _clusters.get(job)
    await _expire(job, _coordinator(job).worker.config if cluster is None else cluster.config)


@contextmanager
def partition(job: Job, *, silent: bool = True) -> Iterator[None]:
    """`Cluster.partition` for a job of any cluster."""
    cluster = _clusters.get(job)
    if cluster is None:
        raise UsageError(f"{job!r} is in no Cluster: start it with cluster.start(name)")
    with cluster.partition(job, silent=silent):
        yield


def _cut(job: Job, coordinator: Coordinator) -> None:
    """No connection and no lease, at one moment."""
    assert coordinator.store is not None, "it was started"
    coordinator.failure = coordinator.failure or UsageError(f"the test crashed {job.node_name!r}")
    coordinator.store.cut()
    coordinator.worker.lease.void()


async def _die(job: Job, coordinator: Coordinator) -> None:
    """End what runs in this process. What is cancelled finds nothing left."""
    life, supervisor = job._task, coordinator._supervisor
    assert life is not None
    assert supervisor is not None, "it was started"
    coordinator.worker.end()
    supervisor.cancel()
    on_end, job._on_end = job._on_end, None
    try:
        await ended(life)
    finally:
        job._on_end, job._untold = on_end, None


async def _refuse_fences(config: CoordinationConfig, incarnation: UUID) -> None:
    """Let no fence hold that the cleanup of a dead worker's code asks for: in a real death there is
    no such code. Its epochs are raised, as they will be once more when its tokens are given to
    others."""
    try:
        store = await Store.open(config, "test kit", observe=True)
    except StoreUnavailable:
        return  # then whoever asks for a fence gets no answer either
    try:
        table = store.queries.table("token")
        query = f"UPDATE {table} SET epoch = epoch + 1 WHERE incarnation = %s"  # noqa: S608
        await store._pool.run(lambda connection: connection.execute(query.encode(), [incarnation]))
    finally:
        await store.close()


async def _expire(job: Job, config: CoordinationConfig) -> None:
    # A worker is expired when its lease is over. So the lease must be over before its row goes, and
    # must not be extended by a heartbeat that is under way.
    worker = _coordinator(job).worker
    length = worker.lease.length
    worker.lease.void()
    worker.stop_acting("expired by the test")
    try:
        # Who calls this in a claim of the job has just been cancelled.
        with anyio.CancelScope(shield=True):
            store = await Store.open(config, "test kit", observe=True)
            try:
                await store.membership.leave(worker.identity)
            finally:
                await store.close()
    finally:
        worker.lease.length = length
        worker.beat_wanted.set()  # it finds its row gone, and joins anew


def _coordinator(job: Job) -> Coordinator:
    if not isinstance(job._engine, Coordinator):
        raise UsageError(
            f"{job!r} is standalone: nothing can happen to it; give the Job a coordination_config"
        )
    return job._engine


def _name(worker: Job | str) -> str:
    return worker if isinstance(worker, str) else worker.node_name
