"""The leader task: watches the leader, takes over when it must, and while it leads, keeps the
distribution right.

Leading is a hint. Each transaction locks the cluster's row and requires the term and the own row,
so a leader that was stopped and comes back writes nothing. A look without a lock finds out whether
anything is to be done; what is done is decided anew under the lock, on what is read there.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobsync_async.core.distribution import Distribution
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.leader_state import LeaderState, Reading
from jobsync_async.core.lease import Beat
from jobsync_async.core.retries import Retries
from jobsync_async.core.rows import HeartbeatAnswer
from jobsync_async.core.takeover import Pacing, Takeover
from jobsync_async.errors import StoreError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.waiting import signalled
from jobsync_async.postgres.leader import Leading, RebalanceOutcome
from jobsync_async.postgres.membership import Membership
from jobsync_async.tasks.outages import LEADING
from jobsync_async.tasks.rebalance import released
from jobsync_async.tasks.traces import traced
from jobsync_async.tasks.worker import Worker

# Every heartbeat's answer is checked against the picture. Once in so many check intervals the
# picture is read anew as a whole: the net under changes that took no version, such as those made by
# hand.
_CHECKS_PER_FULL_READING = 20
_MOST_SHOWN = 10


class LeaderMonitor:
    """The leader task's state. `run` is the task."""

    def __init__(self, worker: Worker, leading: Leading, membership: Membership) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._leading = leading
        self._membership = membership
        self._takeover = Takeover(worker.watch, worker.config.heartbeat_interval_sec)
        self._pacing = Pacing(worker.config.rebalance_delay_sec)
        self._full_reading_sec = (
            _CHECKS_PER_FULL_READING * worker.config.rebalance_check_interval_sec
        )
        self._answer: HeartbeatAnswer | None = None
        self._unmatched: dict[int, tuple[str, ...]] = {}
        self._forget_state()

    def _forget_state(self) -> None:
        config = self._worker.config
        token_of = token_hasher(config.total_tokens, config.hash_function)
        self._history = self._worker.history
        self._state = LeaderState(config.total_tokens, token_of, config.minimum_nodes)
        self._full_reading_at = self._worker.clock() + self._full_reading_sec
        self._pins_expire_at = float("inf")
        self._due_at = float("inf")
        self._retries = Retries()  # for tokens whose rows a fence locked

    async def run(self) -> None:
        """Lead when it is this worker's turn, for ever."""
        worker = self._worker
        failures = 0
        while True:
            try:
                wait_until = await self._step()
                if failures:
                    failures = 0
                    worker.outages.succeeded(LEADING)
            except StoreError as error:
                failures += 1
                wait_sec = worker.outages.wait_after(LEADING, error, failures, 0.5)
                # what was written is not known: read everything before deciding again
                self._forget_state()
                wait_until = worker.clock() + wait_sec
            await signalled(worker.lead_wanted, wait_until - worker.clock())

    async def _step(self) -> float:
        """Do what is due; when to look again at the latest."""
        worker = self._worker
        now = worker.clock()
        if worker.history != self._history:
            # another history: its versions cannot be compared with those that the state knows
            self._forget_state()
        if not worker.lease.valid(now):
            # A worker that may not act does not lead; a heartbeat that succeeds wakes this task.
            return float("inf")
        if worker.answer is None:
            return float("inf")
        read_at = worker.next_beat_reading()
        if read_at <= now:
            await self._read_beats()
            return now
        if worker.leads:
            return min(await self._lead(now), read_at)
        worker.metrics.tokens_unmatched = 0  # that is for the leader to tell
        self._unmatched = {}
        return min(await self._succeed(worker.answer, now), read_at)

    async def _read_beats(self) -> None:
        """See what others have sent since the own beat, to be sure of their silence an interval
        sooner."""
        worker, me = self._worker, self._worker.identity
        worker.look_schedule.done(worker.clock())
        try:
            beats = await self._membership.read_beats()
        except StoreError as error:
            self._log.debug("cannot look at the others' beats: %s", error)
            # a heartbeat tries again, and has a session again, which is watched where that matters
            worker.beat_wanted.set()
            return
        if beats is None or me != worker.identity:
            return  # what it watches begins anew, perhaps on another server
        if not worker.wants_all_beats():
            beats = {
                beat: times for beat, times in beats.items() if beat.incarnation == worker.leader
            }
        worker.beats_seen(beats, worker.clock())

    # -- following ---------------------------------------------------------------------------------

    async def _succeed(self, answer: HeartbeatAnswer, now: float) -> float:
        worker = self._worker
        due, expire = self._takeover.due(worker.leader, answer, now)
        if not due:
            return self._takeover.due_at_latest(worker.leader, answer, now)
        me = worker.identity
        term = await self._leading.take_over(me, worker.term, expire)
        if me != worker.identity:  # expired meanwhile: whoever led here is gone
            return now
        # It beats after all, or somebody else was first: the next heartbeat's answer tells.
        if term is None:
            return now + worker.config.heartbeat_interval_sec
        worker.metrics.takeovers += 1
        worker.metrics.nodes_expired += len(expire)
        for beat in expire:
            worker.metrics.takeover_duration.observe(worker.watch.stalled_for(beat, worker.clock()))
        who = f", {expire[0].name} showed no life" if expire else ""
        self._log.info("leads in term %d%s", term, who, term=term)
        worker.learn_leader(term, worker.identity.incarnation)
        self._forget_state()
        return now

    # -- leading -----------------------------------------------------------------------------------

    async def _lead(self, now: float) -> float:
        worker = self._worker
        if expire := worker.watch.stalled(now):
            await self._rebalance(expire)
        else:
            if self._must_read(now):
                await self._read_changes(now)
            if self._due_at <= worker.clock():
                await self._rebalance(())
        return min(
            self._due_at,
            worker.watch.next_due(worker.clock()),
            self._pins_expire_at,
            self._full_reading_at,
        )

    def _must_read(self, now: float) -> bool:
        worker, state = self._worker, self._state
        if now >= self._full_reading_at:
            state.read_anew()
            self._full_reading_at = now + self._full_reading_sec
        if now >= self._pins_expire_at:
            state.forget_pins()
            self._pins_expire_at = float("inf")
        news = worker.answer is not self._answer and worker.members_differ(state.members.keys())
        self._answer = worker.answer
        return news or state.stale(max(worker.version, worker.hinted)) or self._due_at <= now

    async def _read_changes(self, now: float) -> None:
        reading = await self._leading.read(self._state.version, self._state.pin_version)
        self._update_state(reading)
        need = self._state.rebalance_reason()
        if need is None:
            self._pacing.done()
            self._due_at = float("inf")
        else:
            self._due_at = self._pacing.due_at(need, now)

    async def _rebalance(self, expire: Sequence[Beat]) -> None:
        worker, state = self._worker, self._state
        if worker.history != self._history:
            return  # changed during the look: the state is forgotten at the next step

        me, ownership, began = worker.identity, worker.ownership, worker.clock()
        given = set[int]()
        outcome: RebalanceOutcome | None = None

        def decide(reading: Reading) -> Distribution | None:
            self._update_state(reading)
            distribution = state.distribute()
            if distribution is not None and worker.identity == me:
                version = reading.cluster.version
                change = ownership.hand_on(distribution.for_somebody(), version + 1, worker.clock())
                worker.publish(change)
                given.update(change.revoked)
                distribution.hand_on(given)
                # Also that of a plan before, which may have failed or still be under way.
                distribution.awaited = ownership.not_before > version
            return distribution

        try:
            with traced(worker.tracer, "rebalance", term=worker.term) as facts:
                outcome = await self._leading.rebalance(
                    me, worker.term, expire, state.version, state.pin_version, decide
                )
                facts.update(_facts_of(outcome))
        finally:
            if given and worker.identity == me:
                if outcome is None:  # what was committed is not known
                    ownership.read_anew()
                else:
                    worker.seen = max(worker.seen, outcome.version)
                    if not outcome.kept:
                        released(worker, given, 0.0, worker.clock() - began)
                worker.sync_wanted.set()  # the tables tell the rest
        self._pacing.done()
        self._due_at = float("inf")
        if outcome is None:  # another leads: its announcement is on the way
            return
        for beat in expire:
            if beat.name in outcome.expired:
                worker.metrics.takeover_duration.observe(
                    worker.watch.stalled_for(beat, worker.clock())
                )
        # A worker that was not expired has sent a heartbeat: its observation begins anew.
        beats = {Beat(m.name, m.incarnation, m.beat): m.times for m in outcome.reading.members}
        worker.beats_seen(beats, worker.clock())
        if outcome.skipped:
            state.plan_again()
            self._retries.missed(worker.clock())
            self._due_at = self._retries.due_at
        else:
            self._retries.done()
        self._report(outcome)

    def _update_state(self, reading: Reading) -> None:
        self._state.update(reading)
        if reading.pins is not None:
            self._pins_expire_at = self._worker.clock() + self._state.next_expiry_in

    def _report(self, outcome: RebalanceOutcome) -> None:
        worker, distribution = self._worker, outcome.distribution
        worker.metrics.nodes_expired += len(outcome.expired)
        for expired in outcome.expired:
            self._log.warning("expired %s, which showed no life", expired, expired=expired)
        self._report_unmatched()
        if distribution is None or not outcome.wrote:
            return
        moved = distribution.moved - outcome.skipped
        worker.metrics.rebalances += 1
        worker.metrics.tokens_moved += moved
        worker.metrics.rebalance_ms = outcome.duration_ms
        worker.metrics.rebalance_duration.observe(outcome.duration_ms / 1000)
        worker.metrics.rebalances_by_reason[
            "expired" if outcome.expired else distribution.kind
        ] += 1
        self._log.info(
            "rebalanced (%s): %d tokens move, %d workers, %.1f ms",
            distribution.reason,
            moved,
            distribution.nodes_after,
            outcome.duration_ms,
            term=worker.term,
            reason=distribution.reason,
            nodes=distribution.nodes_after,
            tokens_moved=moved,
            duration_ms=outcome.duration_ms,
        )

    def _report_unmatched(self) -> None:
        unmatched = dict(self._state.unmatched)
        if unmatched != self._unmatched:
            new = [
                token
                for token, patterns in unmatched.items()
                if self._unmatched.get(token) != patterns
            ]
            self._unmatched = unmatched
            self._worker.metrics.tokens_unmatched = len(unmatched)
            for token in new[:_MOST_SHOWN]:
                patterns = list(unmatched[token])
                text = (
                    "token %d has no owner: it is pinned to %s, and no worker that takes tokens "
                    "matches"
                )
                self._log.warning(text, token, patterns, token_id=token, patterns=patterns)


def _facts_of(outcome: RebalanceOutcome | None) -> dict[str, object]:
    """For its span; none where nothing was written."""
    if outcome is None or not outcome.wrote or (distribution := outcome.distribution) is None:
        return {}
    return {
        "reason": distribution.reason,
        "tokens": distribution.moved - outcome.skipped,
        "workers": distribution.nodes_after,
        "expired": outcome.expired or None,
    }
