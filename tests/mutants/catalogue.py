"""The changes: conditions and locks of statements, comparisons, and orders of awaits that safety rests on."""

from __future__ import annotations

from tests.mutants.workshop import Mutant

QUERIES = "postgres/queries.sql"
UNIT = ("tests/unit",)
STATEMENTS = ("tests/integration/interleavings", "tests/integration/test_simulated_tables.py")
CLAIMS = ("tests/integration/interleavings/test_tokens.py", "tests/integration/test_claims.py")
FENCES = ("tests/integration/test_fences.py",)
FAILOVER = ("tests/integration/test_server_failover.py",)
DEATHS = ("tests/integration/test_known_death.py",)
VERSIONS = ("tests/integration/test_versions.py",)
RUNNERS = ("tests/integration/test_runners.py",)
POISON = ("tests/integration/test_poison.py",)
DATES = ("tests/integration/test_dates.py",)
UNIT_RUNS = ("tests/unit/test_runs.py",)
SIMULATION = ("tests/simulation/test_simulation.py",)
LEASES = ("tests/unit/test_lease.py", "tests/unit/test_leadership.py", "tests/unit/test_worker.py")
TIMES = ("tests/integration/test_times.py",)


def rule(name: str) -> tuple[str, ...]:
    """The test that misses a rule of the simulation, and sees that nothing is missed with it."""
    return (f"{SIMULATION[0]}::test_a_rule_that_is_switched_off_is_missed[{name}]",)


MUTANTS = (
    # -- the worker's own row ---------------------------------------------------------------------------------------------
    Mutant(
        "a heartbeat counts for any incarnation of the name",
        QUERIES,
        "    WHERE name = %(name)s AND incarnation = %(incarnation)s\n      AND EXISTS (SELECT FROM {cluster} WHERE {sound}",
        "    WHERE name = %(name)s\n      AND EXISTS (SELECT FROM {cluster} WHERE {sound}",
        STATEMENTS,
        quick=True,
    ),
    Mutant(
        "a heartbeat counts on a server that the cluster was not begun on",
        QUERIES,
        "      AND EXISTS (SELECT FROM {cluster} WHERE {sound} AND version >= %(version)s)",
        "      AND EXISTS (SELECT FROM {cluster} WHERE version >= %(version)s)",
        FAILOVER,
    ),
    Mutant(
        "a heartbeat counts on a cluster that is older than what was seen",
        QUERIES,
        "WHERE {sound} AND version >= %(version)s)",
        "WHERE {sound})",
        FAILOVER,
    ),
    Mutant(
        "a name is taken over though its beat moved",
        QUERIES,
        "WHERE name = %(name)s AND incarnation = %(old_incarnation)s AND beat = %(old_beat)s",
        "WHERE name = %(name)s AND incarnation = %(old_incarnation)s",
        STATEMENTS,
        quick=True,
    ),
    Mutant(
        "a take-over of a name leaves the epochs as they are",
        QUERIES,
        "UPDATE {token} SET incarnation = %(incarnation)s, epoch = epoch + 1, version = %(version)s, assigned_at = now()",
        "UPDATE {token} SET incarnation = %(incarnation)s, version = %(version)s, assigned_at = now()",
        STATEMENTS,
        quick=True,
    ),
    Mutant(
        "a take-over of a name does not heed a fence",
        QUERIES,
        "WHERE token_id IN (SELECT token_id FROM {token} WHERE incarnation = %(old_incarnation)s FOR UPDATE SKIP LOCKED)",
        "WHERE incarnation = %(old_incarnation)s",
        STATEMENTS,
    ),
    Mutant(
        "two joins under one name both make a row",
        QUERIES,
        "ON CONFLICT (name) DO NOTHING RETURNING joined",
        "ON CONFLICT (name) DO UPDATE SET incarnation = excluded.incarnation RETURNING joined",
        STATEMENTS,
    ),
    Mutant(
        "what a leaver still owns keeps its epoch",
        QUERIES,
        "UPDATE {token} SET node = NULL, incarnation = NULL, epoch = epoch + 1, next_node = NULL, "
        "version = %(version)s, revoked_at = NULL\n"
        "WHERE token_id IN (SELECT token_id FROM {token} WHERE incarnation = %(incarnation)s FOR UPDATE SKIP LOCKED)",
        "UPDATE {token} SET node = NULL, incarnation = NULL, next_node = NULL, version = %(version)s, revoked_at = NULL\n"
        "WHERE token_id IN (SELECT token_id FROM {token} WHERE incarnation = %(incarnation)s FOR UPDATE SKIP LOCKED)",
        STATEMENTS,
    ),
    Mutant(
        "a leave deletes whoever has the name",
        QUERIES,
        "DELETE FROM {node} WHERE name = %(name)s AND incarnation = %(incarnation)s",
        "DELETE FROM {node} WHERE name = %(name)s",
        STATEMENTS,
    ),
    Mutant(
        "an old incarnation drains the one that has its name",
        QUERIES,
        "  AND incarnation = coalesce(%(incarnation)s::uuid, incarnation)",
        "",
        STATEMENTS,
    ),
    # -- handing on -------------------------------------------------------------------------------------------------------
    Mutant(
        "an acknowledgement answers any revocation",
        QUERIES,
        "WHERE t.token_id = a.token_id AND t.version + 0 = a.version AND incarnation = %(incarnation)s",
        "WHERE t.token_id = a.token_id AND incarnation = %(incarnation)s",
        STATEMENTS,
        quick=True,
    ),
    Mutant(
        "an acknowledgement of another incarnation counts",
        QUERIES,
        "WHERE t.token_id = a.token_id AND t.version + 0 = a.version AND incarnation = %(incarnation)s",
        "WHERE t.token_id = a.token_id AND t.version + 0 = a.version",
        STATEMENTS,
        quick=True,
    ),
    Mutant(
        "an acknowledgement gives a token to a receiver that drains",
        QUERIES,
        "ON receiver.name = answered.next_node AND receiver.state = 'active'",
        "ON receiver.name = answered.next_node",
        STATEMENTS,
    ),
    Mutant(
        "an acknowledgement leaves the epoch as it is",
        QUERIES,
        "SET node = receiver.name, incarnation = receiver.incarnation, epoch = t.epoch + 1, next_node = NULL",
        "SET node = receiver.name, incarnation = receiver.incarnation, epoch = t.epoch, next_node = NULL",
        STATEMENTS,
    ),
    Mutant(
        "an acknowledgement passes a fence",
        QUERIES,
        "          AND next_node || '' IS NOT NULL\n        FOR UPDATE SKIP LOCKED",
        "          AND next_node || '' IS NOT NULL\n        FOR NO KEY UPDATE SKIP LOCKED",
        STATEMENTS,
    ),
    Mutant(
        "an acknowledgement counts on another server",
        QUERIES,
        "    FROM (SELECT version FROM {cluster} WHERE {sound}) c\n    CROSS JOIN answered",
        "    FROM (SELECT version FROM {cluster}) c\n    CROSS JOIN answered",
        (*STATEMENTS, *FAILOVER),
    ),
    # -- leading ----------------------------------------------------------------------------------------------------------
    Mutant(
        "a leader of an old term writes",
        QUERIES,
        "WHERE term = %(term)s AND leader_incarnation = %(incarnation)s\n",
        "WHERE leader_incarnation = %(incarnation)s\n",
        STATEMENTS,
    ),
    Mutant(
        "a leader writes though another incarnation leads",
        QUERIES,
        "WHERE term = %(term)s AND leader_incarnation = %(incarnation)s\n",
        "WHERE term = %(term)s\n",
        STATEMENTS,
        quick=True,
    ),
    Mutant(
        "a leader without a row writes",
        QUERIES,
        "  AND EXISTS (SELECT FROM {node} WHERE incarnation = %(incarnation)s) AND {sound} FOR UPDATE",
        "  AND {sound} FOR UPDATE",
        STATEMENTS,
    ),
    Mutant(
        "an expiry does not compare the beat",
        QUERIES,
        "WHERE n.name = w.name AND n.incarnation = w.incarnation AND n.beat = w.beat\nRETURNING n.name, n.incarnation",
        "WHERE n.name = w.name AND n.incarnation = w.incarnation\nRETURNING n.name, n.incarnation",
        STATEMENTS,
        quick=True,
    ),
    Mutant(
        "an expiry does not compare the incarnation",
        QUERIES,
        "WHERE n.name = w.name AND n.incarnation = w.incarnation AND n.beat = w.beat\nRETURNING n.name, n.incarnation",
        "WHERE n.name = w.name AND n.beat = w.beat\nRETURNING n.name, n.incarnation",
        STATEMENTS,
    ),
    Mutant(
        "a take-over does not compare the term",
        QUERIES,
        "WHERE c.term = %(term)s AND NOT EXISTS (SELECT FROM {node} WHERE incarnation = c.leader_incarnation)",
        "WHERE NOT EXISTS (SELECT FROM {node} WHERE incarnation = c.leader_incarnation)",
        STATEMENTS,
    ),
    Mutant(
        "a take-over of a leader that lives",
        QUERIES,
        "WHERE c.term = %(term)s AND NOT EXISTS (SELECT FROM {node} WHERE incarnation = c.leader_incarnation)\n",
        "WHERE c.term = %(term)s\n",
        STATEMENTS,
    ),
    Mutant(
        "a plan takes a token from an owner that lives",
        QUERIES,
        "          AND (incarnation IN (SELECT incarnation FROM {node})) IS NOT TRUE\n",
        "",
        STATEMENTS,
        quick=True,
    ),
    Mutant(
        "a plan writes over what changed since its reading",
        QUERIES,
        "WHERE t.token_id = w.token_id AND version <= %(planned_version)s\n          AND (incarnation IN",
        "WHERE t.token_id = w.token_id\n          AND (incarnation IN",
        STATEMENTS,
    ),
    Mutant(
        "a plan passes a fence",
        QUERIES,
        "          AND (incarnation IN (SELECT incarnation FROM {node})) IS NOT TRUE\n        FOR UPDATE SKIP LOCKED",
        "          AND (incarnation IN (SELECT incarnation FROM {node})) IS NOT TRUE\n        FOR NO KEY UPDATE SKIP LOCKED",
        STATEMENTS,
    ),
    Mutant(
        "a plan leaves the epoch as it is",
        QUERIES,
        "epoch = greatest(t.epoch, %(generation)s::bigint << 32) + 1",
        "epoch = greatest(t.epoch, %(generation)s::bigint << 32)",
        STATEMENTS,
    ),
    Mutant(
        "a plan after a new generation goes on with the epochs of before",
        QUERIES,
        "epoch = greatest(t.epoch, %(generation)s::bigint << 32) + 1",
        "epoch = t.epoch + 1",
        (*FAILOVER, *STATEMENTS),
    ),
    Mutant(
        "a plan gives a token to a worker that drains",
        QUERIES,
        "n.name = (%(names)s::text[])[free.receiver] AND n.state = 'active'",
        "n.name = (%(names)s::text[])[free.receiver]",
        STATEMENTS,
    ),
    # -- known deaths -----------------------------------------------------------------------------------------------------
    Mutant(
        "a reported death does not compare the incarnation",
        QUERIES,
        "WHERE n.name = d.name AND n.incarnation = d.incarnation AND n.boot_id = d.boot_id",
        "WHERE n.name = d.name AND n.boot_id = d.boot_id",
        DEATHS,
    ),
    Mutant(
        "a reported death does not compare the process",
        QUERIES,
        "  AND n.pid = d.pid AND n.process_started = d.process_started\nRETURNING",
        "  AND n.pid = d.pid\nRETURNING",
        DEATHS,
    ),
    Mutant(
        "a process of which the number was given again is taken for the dead one",
        "process.py",
        "    if _is_another(process) or has_ended(descriptor):",
        "    if has_ended(descriptor):",
        ("tests/unit/test_process.py",),
    ),
    # -- failover of the server -------------------------------------------------------------------------------------------
    Mutant(
        "a generation begins over a row that changed since it was waited upon",
        QUERIES,
        "  AND (%(actual)s::text IS NULL OR (generation = %(seen_generation)s::bigint\n           AND ",
        "  AND (%(actual)s::text IS NULL OR (true\n           AND ",
        FAILOVER,
    ),
    Mutant(
        "a generation begins on another server than the one that was waited upon",
        QUERIES,
        "           AND %(actual)s::text = coalesce(%(here)s::text, {server}) || '/' || tableoid))",
        "           ))",
        (*FAILOVER, *STATEMENTS),
    ),
    Mutant(
        "a generation begins below what its beginner knows of",
        QUERIES,
        "    SET generation = greatest(generation, %(known_generation)s::bigint) + 1 + floor(random() * 65536)::bigint,",
        "    SET generation = generation + 1 + floor(random() * 65536)::bigint,",
        (*FAILOVER, *STATEMENTS),
    ),
    Mutant(
        "a generation takes tokens that a fence locks",
        QUERIES,
        "WHERE token_id IN (SELECT token_id FROM {token} FOR UPDATE SKIP LOCKED)",
        "WHERE token_id IN (SELECT token_id FROM {token} FOR NO KEY UPDATE SKIP LOCKED)",
        (*FAILOVER, *STATEMENTS),
    ),
    Mutant(
        "an earlier generation is gone back to",
        "core/basis.py",
        "        if known is None or self.generation > known.generation:",
        "        if known is None or self.generation != known.generation:",
        ("tests/unit/test_basis.py",),
        quick=True,
    ),
    Mutant(
        "a state from before what was seen is adopted",
        "core/basis.py",
        "        return basis if basis == known and self.version >= version else None",
        "        return basis if basis == known else None",
        ("tests/unit/test_basis.py",),
    ),
    # -- claims and completions -------------------------------------------------------------------------------------------
    Mutant(
        "a completion takes no lock on its token's row",
        QUERIES,
        "    FOR KEY SHARE OF t\n), written AS (",
        "), written AS (",
        CLAIMS,
    ),
    Mutant(
        "a task begins without a lock on its token's row",
        QUERIES,
        "    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s AND epoch = %(epoch)s\n    FOR KEY SHARE\n",
        "    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s AND epoch = %(epoch)s\n",
        CLAIMS,
    ),
    Mutant(
        "a task begins under any epoch",
        QUERIES,
        "    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s AND epoch = %(epoch)s\n    FOR KEY SHARE\n",
        "    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s\n    FOR KEY SHARE\n",
        (*CLAIMS, *STATEMENTS),
    ),
    Mutant(
        "a failure is recorded under any epoch",
        QUERIES,
        "WHERE c.date = %(date)s AND c.task_key = w.task_key AND c.epoch = w.epoch",
        "WHERE c.date = %(date)s AND c.task_key = w.task_key",
        (*CLAIMS, *STATEMENTS),
    ),
    Mutant(
        "what is complete is begun again",
        QUERIES,
        "FROM fenced WHERE NOT EXISTS (SELECT FROM done)",
        "FROM fenced",
        (*CLAIMS, *STATEMENTS),
    ),
    Mutant(
        "a task of a batch begins without a lock on its token's row",
        QUERIES,
        "    FOR KEY SHARE OF t\n), judged AS (",
        "), judged AS (",
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
        "lost < %(lost_limit)s - CASE WHEN %(alone)s THEN 0 ELSE 1 END AS free",
        "lost < %(lost_limit)s AS free",
        POISON,
    ),
    Mutant(
        "what must run alone runs beside others",
        "batch.py",
        "self._gate.alone() if item.text in self._alone else self._gate.beside_others()",
        "self._gate.beside_others()",
        POISON,
    ),
    Mutant(
        "an end in order is not written",
        "batch.py",
        "                await self._run.let_go(work)",
        "                pass",
        POISON,
    ),
    Mutant(
        "an end in order is written also when the lease is over",
        "batch.py",
        "if not recorded and self._worker.may_act() and self._worker.identity == me:",
        "if not recorded:",
        POISON,
    ),
    Mutant(
        "what is set aside is tried again by the next run",
        QUERIES,
        "error IS NOT NULL AND set_aside_at IS NULL",
        "error IS NOT NULL",
        STATEMENTS,
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
        "AND date = %(date)s AND started_at = %(started_at)s AND finished_at IS NULL",
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
    # -- the session ------------------------------------------------------------------------------------------------------
    Mutant(
        "names are looked up on the user's search path",
        QUERIES,
        "FROM (VALUES ('search_path', 'pg_catalog'),\n             ('statement_timeout', %(statement_ms)s),\n"
        "             ('lock_timeout', %(lock_ms)s),\n             ('idle_in_transaction_session_timeout', %(idle_ms)s),\n"
        "             ('default_transaction_isolation', 'read committed'),",
        "FROM (VALUES ('statement_timeout', %(statement_ms)s),\n"
        "             ('lock_timeout', %(lock_ms)s),\n             ('idle_in_transaction_session_timeout', %(idle_ms)s),\n"
        "             ('default_transaction_isolation', 'read committed'),",
        ("tests/integration/test_hostile_schema.py",),
    ),
    # -- leases -----------------------------------------------------------------------------------------------------------
    Mutant(
        "a lease counts from when the answer came",
        "tasks/worker.py",
        "        self.lease.extend(sent_at, lease_sec(answer.timeout_sec))",
        "        self.lease.extend(arrived, lease_sec(answer.timeout_sec))",
        LEASES,
        quick=True,
    ),
    Mutant(
        "a heartbeat that was acknowledged late takes a lease back",
        "core/lease.py",
        "        if sent_at >= self._sent_at:",
        "        if True:",
        ("tests/unit/test_lease.py",),
    ),
    Mutant(
        "ownership does not ask the clock",
        "tasks/worker.py",
        "        return token in self.ownership.grants and self.clock() < self.lease.deadline",
        "        return token in self.ownership.grants",
        (*SIMULATION, "tests/integration/test_cluster.py", "tests/integration/test_rejoin.py"),
    ),
    Mutant(
        "a lease is longer than the row allows that its heartbeat left",
        "core/lease.py",
        "            self.deadline = sent_at + min(self.length, length)",
        "            self.deadline = sent_at + self.length",
        LEASES,
        quick=True,
    ),
    Mutant(
        "beats are observed from when a heartbeat was sent, not answered",
        "tasks/worker.py",
        "        self.beats_seen(answer.beats, arrived)",
        "        self.beats_seen(answer.beats, sent_at)",
        rule("beats are observed from when a heartbeat was answered"),
        quick=True,
    ),
    Mutant(
        "beats are observed from when a look was sent, not answered",
        "tasks/leader.py",
        "beat.incarnation == worker.leader}\n        worker.beats_seen(beats, worker.clock())",
        "beat.incarnation == worker.leader}\n        worker.beats_seen(beats, worker.looks._last_at)",
        rule("beats are observed from when a look was answered"),
    ),
    Mutant(
        "a gap in the readings changes nothing",
        "core/lease.py",
        "        known = {beat: entry for beat, entry in self._seen.items() if unread_sec <= entry.times.gap_sec}",
        "        known = self._seen",
        LEASES,
        quick=True,
    ),
    Mutant(
        "a reading of any age expires",
        "core/lease.py",
        '        return at if max(at, now) - self._read_at <= entry.times.gap_sec else float("inf")',
        "        return at",
        LEASES,
        quick=True,
    ),
    Mutant(
        "a beat is judged by the watcher's times",
        "tasks/worker.py",
        "        self.watch.observe(others, arrived)",
        "        self.watch.observe(dict.fromkeys(others, self.config.times), arrived)",
        rule("each worker is judged by its own timeout"),
    ),
    Mutant(
        "a name is taken over by the newcomer's timeout",
        "tasks/heartbeat.py",
        "        watch.observe({refusal.beat: refusal.times}, arrived)",
        "        watch.observe({refusal.beat: worker.config.times}, arrived)",
        rule("a name is taken over by its holder's timeout"),
    ),
    Mutant(
        "a reading is applied without a lease",
        "tasks/worker.py",
        "        if not self.lease.valid(now):\n            return\n",
        "",
        LEASES,
        quick=True,
    ),
    Mutant(
        "a claim is begun without a lease",
        "claims.py",
        "worker.ownership.enter(claim.token_id, self, revoked_too=True) if self._may_enter() else None",
        "worker.ownership.enter(claim.token_id, self, revoked_too=True)",
        LEASES,
        quick=True,
    ),
    Mutant(
        "a worker signs off before its heartbeats have ended",
        "coordinator.py",
        "                idle = not self._broken and await self._let_go(store)\n"
        "            finally:\n"
        "                await end(tasks)\n",
        "                idle = not self._broken and await self._let_go(store)\n"
        "                if idle:\n"
        "                    await self._sign_off(store)\n"
        "            finally:\n"
        "                await end(tasks)\n",
        rule("heartbeats have ended before the sign-off"),
        quick=True,
    ),
    # -- times ------------------------------------------------------------------------------------------------------------
    Mutant(
        "what an older library left in a row counts",
        "postgres/sql.py",
        "CASE WHEN n.said_by = n.incarnation THEN n.timeout_sec ELSE c.longest_wait END",
        "coalesce(n.timeout_sec, c.longest_wait)",
        TIMES,
    ),
    Mutant(
        "a worker joins above a bound that was lowered meanwhile",
        QUERIES,
        "FROM (SELECT last_joined FROM {cluster} WHERE {sound} AND longest_allowed >= %(timeout_sec)s::double precision) c",
        "FROM (SELECT last_joined FROM {cluster} WHERE {sound}) c",
        (*TIMES, *STATEMENTS),
        quick=True,
    ),
    Mutant(
        "a worker takes a name over above a bound that was lowered meanwhile",
        QUERIES,
        "\n  AND EXISTS (SELECT FROM {cluster} WHERE longest_allowed >= %(timeout_sec)s::double precision)",
        "",
        (*TIMES, *STATEMENTS),
    ),
    Mutant(
        "a generation begins after the wait for another bound",
        QUERIES,
        "           AND longest_wait IS NOT DISTINCT FROM %(seen_wait)s::double precision\n",
        "",
        (*TIMES, *STATEMENTS),
    ),
    Mutant(
        "the wait for a generation is the own timeout",
        "core/basis.py",
        "        self.wait_sec = max(self._timeout_sec, *(bounds or [UNSAID_TIMEOUT_SEC]))",
        "        self.wait_sec = self._timeout_sec",
        ("tests/unit/test_basis.py",),
        quick=True,
    ),
    Mutant(
        "a bound is allowed that the replicas do not know",
        "cli/bound.py",
        "            if not lagging:\n",
        "            if True:\n",
        TIMES,
    ),
    Mutant(
        "a bound is lowered below a worker's timeout",
        "postgres/bounds.py",
        "            if above and bound < (UNSAID_TIMEOUT_SEC if before is None else before):",
        "            if False:",
        TIMES,
    ),
    # -- the worker's own tokens ------------------------------------------------------------------------------------------
    Mutant(
        "a reading of another incarnation is applied",
        "core/ownership.py",
        "        if snapshot.incarnation != self.incarnation or snapshot.since != self.version:",
        "        if snapshot.since != self.version:",
        (*UNIT, *SIMULATION),
    ),
    Mutant(
        "a reading from before everything was lost is applied",
        "core/ownership.py",
        "        if snapshot.incarnation != self.incarnation or snapshot.since != self.version:",
        "        if snapshot.incarnation != self.incarnation:",
        (*UNIT, "tests/integration/interleavings"),
        quick=True,
    ),
    Mutant(
        "a token in use is acknowledged",
        "core/ownership.py",
        "        return {token for token in tokens if token in self._users or any(reader.holds(token) for reader in readers)}",
        "        return {token for token in tokens if any(reader.holds(token) for reader in readers)}",
        UNIT,
        quick=True,
    ),
    Mutant(
        "a token that a reader was told of is acknowledged before it comes back",
        "core/ownership.py",
        "        return {token for token in tokens if token in self._users or any(reader.holds(token) for reader in readers)}",
        "        return {token for token in tokens if token in self._users}",
        UNIT,
    ),
    Mutant(
        "tokens of before are still held under a new incarnation",
        "tasks/worker.py",
        "        self.stop_acting(why)\n        self.identity = Identity",
        "        self.identity = Identity",
        (*SIMULATION, "tests/integration/test_rejoin.py"),
    ),
    # -- fences, and workers of jobsync beside ours -----------------------------------------------------------------------
    Mutant(
        "a fence holds under any epoch",
        "fences.py",
        "AND incarnation = {incarnation} AND epoch = {epoch} FOR KEY SHARE",
        "AND incarnation = {incarnation} AND epoch >= {epoch} FOR KEY SHARE",
        CLAIMS,
        quick=True,
    ),
    Mutant(
        "a fence locks nothing",
        "fences.py",
        "epoch = {epoch} FOR KEY SHARE) AS fenced",
        "epoch = {epoch}) AS fenced",
        FENCES,
    ),
    Mutant(
        "a fence after a savepoint is taken for one of the transaction",
        "fences.py",
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
        ("tests/integration/test_predecessor.py::test_a_row_lives_while_it_is_new_or_changes_and_is_dead_when_it_stood_still",),
        quick=True,
    ),
    Mutant(
        "an outage does not interrupt the watch over workers of jobsync",
        "core/predecessor.py",
        " if at - seen[1] >= self._timeout_sec}",
        "}",
        ("tests/integration/test_predecessor.py::test_an_outage_takes_nobody_for_dead_and_wakes_no_dead",),
        quick=True,
    ),
    Mutant(
        "a clone begins anew while workers may act",
        "operations/cloning.py",
        "while seen.agreed and not await store.failover.condemn(seen, None):",
        "while seen.agreed and not seen.generation:",
        ("tests/integration/test_clones.py",),
    ),
    # -- versions -----------------------------------------------------------------------------------------------------------
    Mutant(
        "a change of a table waits for it as long as a statement may take",
        "postgres/expanding.py",
        "    lock_ms = str(round(min(_MOST_WAIT_SEC, config.lease_sec * _PART_OF_LEASE) * 1000))",
        "    lock_ms = most_ms",
        VERSIONS,
    ),
    Mutant(
        "contracted tables take older workers",
        "postgres/operators.sql",
        "    ADD CONSTRAINT {too_old} CHECK (coalesce(layout >= %(layout)s AND said_by = incarnation, false))",
        "    ADD CONSTRAINT {too_old} CHECK (true)",
        VERSIONS,
        quick=True,
    ),
    Mutant(
        "contracted tables take an older worker that takes over a newer one's row",
        "postgres/operators.sql",
        "    ADD CONSTRAINT {too_old} CHECK (coalesce(layout >= %(layout)s AND said_by = incarnation, false))",
        "    ADD CONSTRAINT {too_old} CHECK (coalesce(layout >= %(layout)s, false))",
        VERSIONS,
    ),
    Mutant(
        "a worker that is older than the tables allow starts",
        "postgres/schema.py",
        "    if row.schema_version > LAYOUT:",
        "    if row.schema_version > LAYOUT + 1:",
        VERSIONS,
    ),
    Mutant(
        "what a newer worker ran counts for an older one that took over its row",
        QUERIES,
        "WHERE incarnation <> %(incarnation)s AND said_by = incarnation AND NOT runs @>",
        "WHERE incarnation <> %(incarnation)s AND NOT runs @>",
        RUNNERS,
    ),
    Mutant(
        "what is run is not said again after a rejoin",
        "tasks/runners.py",
        "        row = said if me == self._worker.identity else frozenset[Runner]()",
        "        row = said if me else frozenset[Runner]()",
        RUNNERS,
    ),
)
