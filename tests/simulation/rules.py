"""The rules that safety rests on, each with a switch that turns it off, and faults that show that
it is missed.

A rule of the tables is switched off in the model's WHERE clauses (`Asked.keeps`), one of the
workers by replacing one small piece of the real code. Where two rules guard the same door, both
must be open before anything happens: `also` names the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager as Context
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from jobsync_async.core.heartbeat_schedule import LookSchedule
from jobsync_async.core.lease import Beat, BeatWatch, Lease, Times
from jobsync_async.core.ownership import UNKNOWN, Change, Ownership
from jobsync_async.core.rows import Identity
from jobsync_async.core.server_history import OldLeasesWait, ServerReading
from jobsync_async.postgres.membership import Membership
from jobsync_async.postgres.statement_context import StatementContext
from jobsync_async.runtime.coordinator import Coordinator
from jobsync_async.tasks import heartbeat
from jobsync_async.tasks.worker import Worker
from jobsync_async.work.holding import Holding
from tests.simulation import batches, scripts, timing
from tests.simulation.faults import GOOD, Profile
from tests.simulation.mixes import QUICK, SLOW, USUAL
from tests.simulation.network import Weather
from tests.simulation.simulation import Report, run

Switch = Callable[[], Context[Any]]

_SEEDS = 200
"""Where to look for a violation; most are in the first few."""


@dataclass(frozen=True)
class Rule:
    """Attributes:
    name: as in the design, and for a rule of the tables as `Asked.keeps` is asked.
    switch: turns off a rule of the workers; None for one of the tables.
    profile: faults that make it likely.
    shows: part of the violation that is seen.
    also: rules that guard the same, which are off too.
    """

    name: str
    shows: str
    profile: Profile
    switch: Switch | None = None
    also: tuple[str, ...] = ()

    def violation(self, seeds: Sequence[int] | None = None) -> Report | None:
        """The first run that shows that the rule is off; None if no seed does."""
        off = [self, *(RULES[name] for name in self.also)]
        with ExitStack() as stack:
            for rule in off:
                stack.enter_context(rule.switch() if rule.switch else nullcontext())
            for seed in range(_SEEDS) if seeds is None else seeds:
                report = run(
                    seed, self.profile, broken=[rule.name for rule in off if rule.switch is None]
                )
                if report.failure is not None and self.shows in report.failure:
                    return report
        return None


# == switches of the workers' rules ================================================================


def _lease_from_the_answer() -> Context[Any]:
    """The lease counts from when the answer arrived."""
    original = Worker.beat_answered

    def beat_answered(self: Worker, sent_at: float, *args: Any, **options: Any) -> None:
        original(self, self.clock(), *args, **options)

    return patch.object(Worker, "beat_answered", beat_answered)


@contextmanager
def _held_without_a_lease() -> Iterator[None]:
    """A worker that has joined may hold tokens before its first heartbeat was acknowledged."""
    original = Lease.extend

    def init(self: Lease, length: float) -> None:
        self.length, self.deadline, self._sent_at = length, 1e12, float("-inf")

    def extend(self: Lease, sent_at: float, length: float = float("inf")) -> None:
        if self.deadline == 1e12:
            self.deadline = float("-inf")
        original(self, sent_at, length)

    with patch.object(Lease, "__init__", init), patch.object(Lease, "extend", extend):
        yield


def _long_lease() -> Context[Any]:
    """A lease is longer than the timeout."""
    return patch.object(
        Lease,
        "extend",
        lambda self, sent_at, length: setattr(self, "deadline", sent_at + 1.75 * length),
    )


def _short_observation() -> Context[Any]:
    """A beat is watched for less than the timeout."""
    return patch.object(
        BeatWatch,
        "stalled",
        lambda self, now: [
            b for b, s in self._seen.items() if now - s.since >= s.times.timeout_sec / 3
        ],
    )


def _zero_rows_are_fine() -> Context[Any]:
    """A heartbeat that finds no row changes nothing."""
    original = heartbeat.beat_once

    async def beat_once(worker: Worker, *args: Any) -> bool:
        await original(worker, *args)
        return True

    return patch.object(heartbeat, "beat_once", beat_once)


def _snapshot_kept() -> Context[Any]:
    """A worker that was expired joins anew and goes on with what it knew."""

    def begin_incarnation(self: Worker, why: str) -> None:
        self.identity = Identity(self.identity.name, heartbeat_uuid())
        self.ownership.incarnation = self.identity.incarnation
        self.watch.forget()

    def heartbeat_uuid() -> Any:
        from jobsync_async.tasks import worker

        return worker.uuid4()

    return patch.object(Worker, "begin_incarnation", begin_incarnation)


def _nothing_forgotten() -> Context[Any]:
    """The end of a lease makes nobody forget anything."""
    return patch.object(Worker, "check_lease", lambda self: None)


def _no_waiting_for_claims() -> Context[Any]:
    return patch.object(Ownership, "_in_use", lambda self, tokens: set())


def _handed_on_for_certain() -> Context[Any]:
    """What the leader gives away by its plan is read again before that plan's outcome is known."""
    original = Ownership.hand_on

    def hand_on(self: Ownership[Any], tokens: Sequence[int], version: int, now: float) -> Change:
        return original(self, tokens, UNKNOWN, now)

    return patch.object(Ownership, "hand_on", hand_on)


def _written_is_not_seen() -> Context[Any]:
    """That the cluster is older than what was handed on here is not noticed."""
    read = property(lambda self: self.version, lambda self, version: None)
    return patch.object(Worker, "seen", read, create=True)


def _any_reading_applied() -> Context[Any]:
    """What was read is applied, whatever happened meanwhile."""
    original = Ownership.apply

    def apply(self: Ownership[Any], snapshot: Any, now: float) -> Any:
        return original(
            self, snapshot._replace(incarnation=self.incarnation, since=self.version), now
        )

    return patch.object(Ownership, "apply", apply)


def _any_server() -> Context[Any]:
    """A connection may lead anywhere."""
    return patch.object(StatementContext, "check", lambda self, server: None)


def _begun_at_once() -> Context[Any]:
    """Whoever finds another server begins anew there."""
    return patch.object(OldLeasesWait, "remaining", lambda self, now: 0.0)


def _others_go_on() -> Context[Any]:
    """Whoever has been beyond the cluster's history waits, while others act on it."""
    return patch.object(ServerReading, "agreed", False)


def _watched(how: Callable[[Worker, Times], Times]) -> Context[Any]:
    """Whoever watches puts other times in the place of those that came with a beat."""
    original = Worker.beats_seen

    def beats_seen(self: Worker, beats: Mapping[Beat, Times], arrived: float) -> None:
        original(self, {beat: how(self, times) for beat, times in beats.items()}, arrived)

    return patch.object(Worker, "beats_seen", beats_seen)


def _by_the_watchers_timeout() -> Context[Any]:
    return _watched(lambda worker, times: worker.config.times)


def _by_the_watchers_gap() -> Context[Any]:
    """A gap in the readings is judged by the watcher's own times."""

    def how(worker: Worker, times: Times) -> Times:
        kind = type("Times", (Times,), {"gap_sec": worker.config.times.gap_sec})
        return kind(*times)  # type: ignore[no-any-return]

    return _watched(how)


def _name_by_the_newcomers_timeout() -> Context[Any]:
    original = Membership.join

    async def join(self: Membership, *args: Any, **options: Any) -> Any:
        refusal = await original(self, *args, **options)
        return refusal and refusal._replace(times=self._times)

    return patch.object(Membership, "join", join)


def _own_lease() -> Context[Any]:
    """A lease is as long as the own settings say, whatever the row does."""
    original = Lease.extend
    return patch.object(Lease, "extend", lambda self, sent_at, length: original(self, sent_at))


def _old_readings_count() -> Context[Any]:
    """Somebody may be expired by a reading of any age."""
    return patch.object(
        BeatWatch,
        "stalls_at",
        lambda self, beat, now: self._seen[beat].since + self._seen[beat].times.timeout_sec,
    )


def _reads_with_its_own_beats() -> Context[Any]:
    return patch.object(LookSchedule, "late_at", lambda self, most_sec: float("inf"))


def _waits_for_its_own_timeout() -> Context[Any]:
    return patch.object(
        OldLeasesWait, "remaining", lambda self, now: self._since + self._timeout_sec - now
    )


def _forgets_the_bound() -> Context[Any]:
    original = OldLeasesWait.__init__
    return patch.object(
        OldLeasesWait, "__init__", lambda self, timeout_sec, bound: original(self, timeout_sec)
    )


@contextmanager
def _observed_from_the_question() -> Iterator[None]:
    """What an answer shows counts from when it was asked for."""
    seen = Worker.beats_seen
    asked: dict[Worker, float] = {}

    def from_asking(original: Any) -> Any:
        async def ask(self: Membership, *args: Any, **options: Any) -> Any:
            worker = asyncio.get_running_loop().process.worker  # type: ignore[attr-defined]
            asked[worker] = worker.clock()
            return await original(self, *args, **options)

        return ask

    def beats_seen(self: Worker, beats: Mapping[Beat, Times], arrived: float) -> None:
        seen(self, beats, asked.get(self, arrived))

    with (
        patch.object(Membership, "heartbeat", from_asking(Membership.heartbeat)),
        patch.object(Membership, "read_beats", from_asking(Membership.read_beats)),
        patch.object(Worker, "beats_seen", beats_seen),
    ):
        yield


@contextmanager
def _signs_off_while_it_beats() -> Iterator[None]:
    """A worker deletes its row before its heartbeats have ended."""
    original = Coordinator._let_go

    async def let_go(self: Coordinator, store: Any) -> bool:
        idle = await original(self, store)
        if idle:
            await self._sign_off(store, self.worker.identity)
        return idle

    with patch.object(Coordinator, "_let_go", let_go):
        yield


# == the table =====================================================================================

_HOLDS, _FENCE, _LATER, _ONE_EPOCH = (
    "holds token",
    "through the fence",
    "after the last fault",
    "under one epoch",
)
_USUAL = replace(Profile().but(failover=0, bound=0), hosts=(), polling=(0,), mixes=((USUAL,),))
_CUT = _USUAL.but(partition=8, pause=5, impostor=2)
_SLUGGISH = replace(_CUT, weathers=(GOOD, Weather(slow=0.15, slow_sec=0.35)))
_FENCES = _USUAL.but(use=30, drain=4)
_EVICTED, _BACK = _CUT.but(evict=8), "was evicted and has a row"


def _script(script: Callable[[Any], None]) -> Profile:
    usual = replace(_USUAL, names=("a", "b"), first=2, weathers=(GOOD,), rates=(0.9, 1.1))
    return replace(usual, script=script, settles_within_sec=10)


_MOVED = _USUAL.but(failover=6, partition=4)
_POLLED = replace(_MOVED, polling=(1,))
_DIED = replace(_script(scripts.killed_in_a_transaction), names=("a", "b", "c"), hosts=("here",))
_TWICE = replace(_script(scripts.begun_twice), names=("a", "b", "c"))
# For two of one name keep each other busy.
_IMPOSTOR = replace(_script(scripts.impostor), settles_within_sec=3)
_LATE_WORD = replace(_script(scripts.reported_late), hosts=("here",))
_LATE = _script(scripts.late_acknowledgement)
_GATE, _HISTORY = "the row's identity is the server's", "the history is the adopted one"
_FLOOR, _CONNECT = (
    "the cluster is no older than what was seen of it",
    "the server is known at every connect",
)
_FORGETTING = "forgetting at the end of the lease"
_BOUND = "the bound is the one that was waited on"


def _times(script: Callable[[Any], None], a: Times, b: Times) -> Profile:
    return replace(_script(script), times={"a": a, "b": b})


_MIXED = replace(_CUT, mixes=((QUICK, SLOW),))
_HASTY = _times(timing.replaced_by_a_hasty_one, SLOW, SLOW)
_OLDER = _times(timing.taken_over_by_an_older_library, USUAL, QUICK)
_OUTAGE = _times(timing.short_outage, SLOW, QUICK)
_KILLED = _times(timing.killed, SLOW, QUICK)
_FAILED_OVER = _times(timing.cut_off_after_a_failover, QUICK, SLOW)
_RAISED = replace(_script(timing.raise_is_lost), names=("a", "b", "c"))
_NEWCOMER = replace(_script(timing.newcomer_after_a_raise), names=("a", "b", "c", "d"))
_UNALLOWED = replace(_script(timing.joined_above_the_bound), names=("a", "b", "c"))

_TABLE = (
    Rule(
        "lease counted from before sending",
        _HOLDS,
        _script(scripts.late_answer),
        _lease_from_the_answer,
    ),
    Rule(
        "lease needed before the first hold",
        _HOLDS,
        _script(scripts.joined_without_a_heartbeat),
        _held_without_a_lease,
    ),
    Rule("L < T", _HOLDS, _CUT, _long_lease),
    Rule("observation for a full T", _HOLDS, _CUT, _short_observation),
    Rule("the beat is read again under the lock", _HOLDS, _CUT),
    Rule("incarnation in the heartbeat", _LATER, _IMPOSTOR),
    Rule("self-fencing on zero rows", _LATER, _CUT, _zero_rows_are_fine),
    Rule(
        "dropping the snapshot before rejoining", _HOLDS, _SLUGGISH, _snapshot_kept, (_FORGETTING,)
    ),
    Rule(_FORGETTING, _HOLDS, _SLUGGISH, _nothing_forgotten),
    Rule("the revocation's version in the acknowledgement", _HOLDS, _LATE),
    Rule("waiting for open claims", _HOLDS, _USUAL, _no_waiting_for_claims),
    Rule(
        "ignoring readings older than a forgetting",
        _LATER,
        _script(scripts.lease_lost_and_found_while_reading),
        _any_reading_applied,
    ),
    Rule(
        "no reading from before a plan that hands on",
        _HOLDS,
        _script(scripts.late_plan),
        _handed_on_for_certain,
    ),
    Rule("one atomic read", _LATER, _USUAL),
    Rule("a version for every acknowledgement", _LATER, _USUAL),
    Rule("owner by incarnation", _HOLDS, _script(scripts.rejoined_before_its_tokens_went)),
    Rule("epoch raised by expiry", _ONE_EPOCH, _FENCES),
    Rule("epoch raised by take-over", _ONE_EPOCH, _FENCES.but(restart=4)),
    Rule("the fence's lock", _FENCE, _FENCES),
    Rule("the fence's epoch", _FENCE, _script(scripts.stale_fence)),
    Rule("reassignment respects the fence", _FENCE, _FENCES),
    Rule("a death is that of one start in one process", _HOLDS, _LATE_WORD),
    Rule("ending the sessions of the dead", "is known dead", _DIED),
    Rule("the wait of T", _HOLDS, _MOVED, _begun_at_once),
    Rule("raising the generation", _ONE_EPOCH, _MOVED),
    Rule("recording the identity", _LATER, _MOVED),
    Rule("nobody acts on what somebody has been beyond", _HOLDS, _TWICE, _others_go_on),
    Rule(_GATE, _HOLDS, _POLLED),
    Rule("what can lose commits is not taken for shared storage", _ONE_EPOCH, _MOVED),
    Rule(_HISTORY, _HOLDS, _POLLED),
    Rule(_FLOOR, _HOLDS, _script(scripts.set_back)),
    Rule(
        "what was handed on here counts as seen",
        _HOLDS,
        replace(_script(scripts.set_back_before_the_leader_reads), names=("a", "b", "c")),
        _written_is_not_seen,
    ),
    Rule(_CONNECT, _HOLDS, _MOVED, _any_server),
    Rule("each worker is judged by its own timeout", _HOLDS, _MIXED, _by_the_watchers_timeout),
    Rule(
        "a name is taken over by its holder's timeout",
        _HOLDS,
        _HASTY,
        _name_by_the_newcomers_timeout,
    ),
    Rule(
        "a lease is extended by the timeout that the heartbeat left in the row",
        _HOLDS,
        _script(timing.row_edited),
        _own_lease,
    ),
    Rule("a row that an older library made counts as the bound", _HOLDS, _OLDER),
    Rule(
        "a gap is judged by the times of whom it hides",
        "expired after an outage",
        _OUTAGE,
        _by_the_watchers_gap,
    ),
    Rule(
        "a reading older than the gap expires nobody",
        "expired after an outage",
        _OUTAGE,
        _old_readings_count,
    ),
    Rule(
        "beats are read in time for the shortest timeout",
        _LATER,
        _KILLED,
        _reads_with_its_own_beats,
    ),
    Rule("the wait of the greatest bound", _HOLDS, _FAILED_OVER, _waits_for_its_own_timeout),
    Rule("the last bound known is waited for", _HOLDS, _RAISED, _forgets_the_bound),
    Rule("no worker joins above the bound", _HOLDS, _UNALLOWED),
    Rule("the bound is raised in two steps", _HOLDS, _NEWCOMER),
    Rule(_BOUND, _HOLDS, _NEWCOMER),
    Rule(
        "beats are observed from when a heartbeat was answered",
        _HOLDS,
        _script(timing.late_heartbeat),
        _observed_from_the_question,
    ),
    Rule(
        "beats are observed from when a look was answered",
        _HOLDS,
        _script(timing.late_look),
        _observed_from_the_question,
    ),
    Rule(
        "heartbeats have ended before the sign-off",
        "joined anew",
        _script(timing.beats_while_it_leaves),
        _signs_off_while_it_beats,
    ),
    Rule("whoever goes is written down", "in the history", _USUAL),
    Rule("an evicted worker's tokens wait for its lease", _HOLDS, _EVICTED),
    Rule("no heartbeat of an evicted worker counts", _BACK, _EVICTED),
    Rule("who was evicted does not come back", _BACK, _EVICTED),
    Rule(
        "nothing starts once a pause is known",
        "begins while the cluster is paused",
        _USUAL.but(use=30, halt=8),
        lambda: patch.object(Holding, "_held_up", False),
    ),
    Rule("a claim left open is an owner lost", batches.LOST, _script(batches.killed_at_work)),
    Rule(
        "an orderly end is said before the token goes",
        batches.LOST,
        _script(batches.left_at_work),
        batches.ends_in_silence,
    ),
    Rule(
        "what was complete before is not counted",
        batches.NOT_ALL,
        _script(batches.answers_lost),
    ),
    Rule(
        "what came before a portion is not counted in it",
        batches.NOT_ALL,
        _script(batches.a_stream_with_a_crash),
        batches.nothing_came_before,
    ),
    Rule(
        "who works elsewhere says so before",
        batches.NOT_ALL,
        _script(batches.a_stream_after_other_ids),
    ),
    Rule(
        "a batch is a name and a date",
        batches.NOT_ALL,
        _script(batches.two_over_the_same_ids),
        batches.named_as_others,
    ),
)
RULES = {rule.name: rule for rule in _TABLE}

# Rules whose absence alone shows nothing, and why. Where another row has them off too, what covers
# for them is off there.
HIDDEN = {
    _FORGETTING: "a worker whose row is gone also drops its snapshot before it joins anew: "
    "either of the two is enough",
    _HISTORY: "whoever begins a generation deletes every worker's row, so that nothing of a "
    "history of before is found again",
    _BOUND: "nobody writes a bound on a history that is not sound, so only another beginning "
    "changes one that is waited upon",
    _CONNECT: "no statement acts on another server; this makes a worker stop at once, instead of "
    "at its next heartbeat",
}
