"""Handing on, the worker's own tokens, claims and completions, and fences."""

from __future__ import annotations

from tests.mutants.catalogue.suites import (
    AHEAD,
    CLAIMS,
    DATES,
    FAILOVER,
    FENCES,
    POISON,
    QUERIES,
    SIMULATION,
    STATEMENTS,
    UNIT,
    UNIT_RUNS,
    rule,
)
from tests.mutants.workshop import Mutant

_FENCED = """    FROM unnest(%(task_keys)s::bytea[], %(task_ids)s::text[], %(token_ids)s::integer[],
                %(epochs)s::bigint[]) AS w(task_key, task_id, token_id, epoch)
    CROSS JOIN LATERAL (
        SELECT FROM {{token}} t
        WHERE t.token_id = w.token_id AND t.incarnation = %(incarnation)s AND t.epoch = w.epoch\
{lock}
    ) t
"""

MUTANTS = (
    # -- handing on --------------------------------------------------------------------------------
    Mutant(
        "an acknowledgement answers any revocation",
        QUERIES,
        "          AND version = (%(versions)s::bigint[])[{place}]\n",
        "",
        (
            "tests/integration/interleavings/test_tokens.py::test_a_late_acknowledgement_does_not_answer_the_next_revocation",
        ),
        quick=True,
    ),
    Mutant(
        "an acknowledgement of another incarnation counts",
        QUERIES,
        "AND incarnation = %(incarnation)s AND next_node || '' IS NOT NULL",
        "AND next_node || '' IS NOT NULL",
        STATEMENTS,
    ),
    Mutant(
        "an acknowledgement gives a token to a receiver that drains",
        QUERIES,
        "WHERE name = t.next_node AND state = 'active')",
        "WHERE name = t.next_node)",
        STATEMENTS,
    ),
    Mutant(
        "an acknowledgement leaves the epoch as it is",
        QUERIES,
        "        epoch = t.epoch + 1, next_node = NULL, version = c.version + 1,",
        "        epoch = t.epoch, next_node = NULL, version = c.version + 1,",
        STATEMENTS,
    ),
    Mutant(
        "an acknowledgement passes a fence",
        QUERIES,
        "AND next_node || '' IS NOT NULL\n        FOR UPDATE SKIP LOCKED",
        "AND next_node || '' IS NOT NULL\n        FOR NO KEY UPDATE SKIP LOCKED",
        STATEMENTS,
    ),
    Mutant(
        "an acknowledgement counts on another server",
        QUERIES,
        "    FROM (SELECT version FROM {cluster} WHERE {sound}) c\n    WHERE t.ctid",
        "    FROM (SELECT version FROM {cluster}) c\n    WHERE t.ctid",
        (*STATEMENTS, *FAILOVER),
    ),
    # -- claims and completions --------------------------------------------------------------------
    Mutant(
        "a completion takes no lock on its token's row",
        QUERIES,
        "        FOR KEY SHARE\n    ) t\n), written AS (",
        "    ) t\n), written AS (",
        CLAIMS,
    ),
    Mutant(
        "a task begins without a lock on its token's row",
        QUERIES,
        "    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s AND epoch = "
        "%(epoch)s\n    FOR KEY SHARE\n",
        "    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s AND epoch = "
        "%(epoch)s\n",
        CLAIMS,
    ),
    Mutant(
        "a task begins under any epoch",
        QUERIES,
        "    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s AND epoch = "
        "%(epoch)s\n    FOR KEY SHARE\n",
        "    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s\n    FOR KEY SHARE\n",
        (*CLAIMS, *STATEMENTS),
    ),
    Mutant(
        "a failure is recorded under any epoch",
        QUERIES,
        "WHERE c.date = w.date AND c.task_key = w.task_key AND c.epoch = w.epoch",
        "WHERE c.date = w.date AND c.task_key = w.task_key",
        (*CLAIMS, *STATEMENTS),
    ),
    Mutant(
        "what is complete is begun again",
        QUERIES,
        "FROM fenced\n    WHERE NOT EXISTS (SELECT FROM done)",
        "FROM fenced",
        (*CLAIMS, *STATEMENTS),
    ),
    Mutant(
        "a task of a batch begins without a lock on its token's row",
        QUERIES,
        "END AS lost\n" + _FENCED.format(lock="\n        FOR KEY SHARE"),
        "END AS lost\n" + _FENCED.format(lock=""),
        CLAIMS,
    ),
    Mutant(
        "a claim that was left open counts nothing",
        QUERIES,
        "CASE WHEN c.open AND c.incarnation <> %(incarnation)s THEN 1 ELSE 0 END AS lost",
        "0 AS lost",
        STATEMENTS,
    ),
    Mutant(
        "a claim that its own worker left open counts",
        QUERIES,
        "CASE WHEN c.open AND c.incarnation <> %(incarnation)s THEN 1 ELSE 0 END AS lost",
        "CASE WHEN c.open THEN 1 ELSE 0 END AS lost",
        STATEMENTS,
    ),
    Mutant(
        "an id with one loss left does not have to run alone",
        QUERIES,
        "reason IS NULL AND lost <= %(most_lost)s AND NOT complete AS begun",
        "reason IS NULL AND lost < %(lost_limit)s AND NOT complete AS begun",
        POISON,
    ),
    Mutant(
        "what must run alone runs beside others",
        "work/batch.py",
        "        if number in self._alone:\n            self._ahead.pause()",
        "        if False:\n            self._ahead.pause()",
        POISON,
    ),
    Mutant(
        "an end in order is not written",
        "work/batch.py",
        "                await self._run.let_go([piece.work])",
        "                pass",
        POISON,
    ),
    Mutant(
        "an end in order is written also when the lease is over",
        "work/batch.py",
        "if not over and self._worker.may_act() and self._worker.identity == me:",
        "if not over:",
        POISON,
    ),
    Mutant(
        "what is set aside is begun again",
        QUERIES,
        "SELECT reason FROM {set_aside} WHERE task_key = w.task_key LIMIT 1",
        "SELECT reason FROM {set_aside} WHERE false LIMIT 1",
        CLAIMS,
    ),
    Mutant(
        "what was complete before is counted as completed",
        QUERIES,
        "SELECT %(batch_key)s, %(date)s, %(incarnation)s, %(node)s, count(*) FROM written\n",
        "SELECT %(batch_key)s, %(date)s, %(incarnation)s, %(node)s, count(*) FROM fenced\n",
        STATEMENTS,
    ),
    Mutant(
        "what lost an owner is begun ahead",
        "work/pieces.py",
        "begun = await self._run.begin([piece.work for piece in entered], 0)",
        "begun = await self._run.begin([piece.work for piece in entered], 1)",
        POISON,
    ),
    Mutant(
        "what waits for its handler holds its token up",
        "work/pieces.py",
        "    def revoked(self) -> None:\n        super().revoked()\n        self._go()",
        "    def revoked(self) -> None:\n        super().revoked()",
        AHEAD,
    ),
    Mutant(
        "what waits for its handler keeps its turn",
        "work/pieces.py",
        "        super().give_way()\n        self._go()",
        "        super().give_way()",
        AHEAD,
    ),
    Mutant(
        "a batch that is cut off leaves what it has begun",
        "work/batch.py",
        "            await ahead.let_go_of_all()",
        "            pass",
        AHEAD,
    ),
    Mutant(
        "what is done with is counted after it is asked how far the run is",
        "work/others.py",
        "        done = len(self._ids) - self._ids.count(OPEN)\n"
        "        self._tally.looked(asked, await self._run.read_parts(), done)",
        "        known = await self._run.read_parts()\n"
        "        self._tally.looked(asked, known, len(self._ids) - self._ids.count(OPEN))",
        ("tests/unit/test_tally.py",),
    ),
    Mutant(
        "other ids under one name are counted as these",
        "work/others.py",
        "trusted = not parts.other_ids and not parts.uncounted",
        "trusted = not parts.uncounted",
        AHEAD,
    ),
    Mutant(
        "who begins a batch over other ids leaves no trace",
        QUERIES,
        "THEN excluded.ids_key ELSE '' END",
        "THEN excluded.ids_key ELSE b.ids_key END",
        AHEAD,
    ),
    Mutant(
        "what is set aside is told to its owner alone",
        "work/others.py",
        "await self._run.read_set_aside(texts) if asked.otherwise else {}",
        "{}",
        AHEAD,
    ),
    Mutant(
        "what is done waits although its token is to go",
        "work/pieces.py",
        "        piece.on_going = self.hurry\n",
        "",
        AHEAD,
    ),
    Mutant(
        "the end of a batch is told to nobody",
        QUERIES,
        "CASE WHEN {announces} THEN pg_notify(%(channel)s, 'batch') END",
        "NULL",
        AHEAD,
    ),
    Mutant(
        "two that begin a batch at the same moment begin two",
        "postgres/work.py",
        '            await connection.execute(self._queries["lock_batch"], lock)\n',
        "",
        DATES,
    ),
    Mutant(
        "a run that somebody has opened again is finished by who opened it before",
        QUERIES,
        "AND date = %(date)s AND started_at = %(started_at)s\n      AND finished_at IS NULL",
        "AND date = %(date)s AND finished_at IS NULL",
        DATES,
    ),
    Mutant(
        "a batch's name is no part of a task's key",
        "core/hashing.py",
        '(text if batch is None else f"{batch}\\0{text}")',
        "text",
        UNIT_RUNS,
        quick=True,
    ),
    # -- the worker's own tokens -------------------------------------------------------------------
    Mutant(
        "a reading of another incarnation is applied",
        "core/ownership.py",
        "            snapshot.incarnation != self.incarnation\n            or snapshot.since",
        "            snapshot.since",
        (*UNIT, *SIMULATION),
    ),
    Mutant(
        "a reading from before everything was lost is applied",
        "core/ownership.py",
        "            or snapshot.since != self.since\n",
        "",
        (*UNIT, "tests/integration/interleavings"),
    ),
    Mutant(
        "a reading from before a plan brings back what that gives away",
        "core/ownership.py",
        "            or snapshot.version < self.not_before\n",
        "",
        UNIT,
    ),
    Mutant(
        "a leader gives away by its plan what is in use there",
        "core/ownership.py",
        "        idle -= self._in_use(idle)\n",
        "",
        UNIT,
    ),
    Mutant(
        "what a plan did not give away after all is never read again",
        "tasks/leader.py",
        "                    ownership.read_anew()\n",
        "                    pass\n",
        (
            "tests/integration/test_cluster.py::test_what_a_plan_did_not_give_away_after_all_is_its_owners_again",
        ),
    ),
    Mutant(
        "a plan that gives nothing away has readings refused",
        "core/ownership.py",
        "        if idle:\n            self.not_before",
        "        if True:\n            self.not_before",
        UNIT,
    ),
    Mutant(
        "what a fence keeps from being given away is not revoked",
        "postgres/leader.py",
        " if given < len(part[0]) else 0",
        " if False else 0",
        (
            "tests/integration/test_claims.py::test_one_plan_revokes_what_a_fence_keeps_from_being_given_away",
        ),
    ),
    Mutant(
        "a reader that was away may claim what was let go of meanwhile",
        "core/ownership.py",
        "            reader.missed(going - self._in_use(going))\n",
        "",
        UNIT,
    ),
    Mutant(
        "what was handed on here is not seen when the storage is set back",
        "tasks/leader.py",
        "                    worker.seen = max(worker.seen, outcome.version)\n",
        "                    pass\n",
        rule("what was handed on here counts as seen"),
    ),
    Mutant(
        "a token in use is acknowledged",
        "core/ownership.py",
        "        return in_both(self._users.keys(), tokens).union(",
        "        return set[int]().union(",
        ("tests/unit/test_ownership.py",),
    ),
    Mutant(
        "a token that a reader was told of is acknowledged before it comes back",
        "core/ownership.py",
        "            *(reader.held(tokens) for reader in tuple(self._readers))\n",
        "",
        UNIT,
    ),
    Mutant(
        "tokens of before are still held under a new incarnation",
        "tasks/worker.py",
        "        self.stop_acting(why)\n        self.identity = Identity",
        "        self.identity = Identity",
        (*SIMULATION, "tests/integration/test_rejoin.py"),
    ),
    # -- fences, and workers of jobsync beside ours ------------------------------------------------
    Mutant(
        "a fence holds under any epoch",
        "work/fences.py",
        "AND incarnation = {incarnation} AND epoch = {epoch} ",
        "AND incarnation = {incarnation} AND epoch >= {epoch} ",
        CLAIMS,
    ),
    Mutant(
        "a fence locks nothing",
        "work/fences.py",
        "FOR KEY SHARE) AS fenced",
        ") AS fenced",
        FENCES,
    ),
    Mutant(
        "a fence after a savepoint is taken for one of the transaction",
        "work/fences.py",
        "pid = pg_catalog.pg_backend_pid()) = 1 THEN epoch",
        "pid = pg_catalog.pg_backend_pid()) > 0 THEN epoch",
        FENCES,
        quick=True,
    ),
    Mutant(
        "a worker of jobsync whose row moves is dead after the timeout",
        "core/predecessor.py",
        "known if known is not None and known[0] == beat else (beat, now)",
        "known if known is not None else (beat, now)",
        (
            "tests/integration/test_predecessor.py::test_a_row_lives_while_it_is_new_or_changes_and_is_dead_when_it_stood_still",
        ),
    ),
    Mutant(
        "an outage does not interrupt the watch over workers of jobsync",
        "core/predecessor.py",
        (" if at - seen[1] >= self._timeout_sec\n        }"),
        "}",
        (
            "tests/integration/test_predecessor.py::test_an_outage_takes_nobody_for_dead_and_wakes_no_dead",
        ),
    ),
    Mutant(
        "a clone begins anew while workers may act",
        "operations/cloning.py",
        "while seen.agreed and not await store.failover.condemn(seen, None):",
        "while seen.agreed and not seen.generation:",
        ("tests/integration/test_clones.py",),
    ),
)
