"""A worker's own row, its session, its leases and times, and known deaths."""

from __future__ import annotations

from tests.mutants.catalogue.suites import (
    _SETTINGS,
    DEATHS,
    EVICTIONS,
    FAILOVER,
    LEASES,
    OPERATORS,
    PAUSES,
    QUERIES,
    SETTINGS,
    STATEMENTS,
    TIMES,
    rule,
)
from tests.mutants.workshop import Mutant

MUTANTS = (
    # -- the worker's own row ----------------------------------------------------------------------
    Mutant(
        "a heartbeat counts for any incarnation of the name",
        QUERIES,
        "    WHERE name = %(name)s AND incarnation = %(incarnation)s\n      AND EXISTS (SELECT "
        "FROM {cluster} WHERE {sound}",
        "    WHERE name = %(name)s\n      AND EXISTS (SELECT FROM {cluster} WHERE {sound}",
        (
            "tests/integration/interleavings/test_members.py::test_the_old_incarnation_can_do_nothing_after_its_name_was_taken_over",
        ),
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
    ),
    Mutant(
        "a take-over of a name leaves the epochs as they are",
        QUERIES,
        "SET incarnation = %(incarnation)s, epoch = epoch + 1, version = %(version)s, ",
        "SET incarnation = %(incarnation)s, version = %(version)s, ",
        (
            "tests/integration/interleavings/test_members.py::test_the_old_incarnation_can_do_nothing_after_its_name_was_taken_over",
        ),
        quick=True,
    ),
    Mutant(
        "a take-over of a name does not heed a fence",
        QUERIES,
        "WHERE ctid = ANY(ARRAY(\n"
        "    SELECT ctid FROM {token} WHERE incarnation = %(old_incarnation)s FOR UPDATE SKIP "
        "LOCKED))",
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
        "SET node = NULL, incarnation = NULL, epoch = epoch + 1, next_node = NULL, ",
        "SET node = NULL, incarnation = NULL, next_node = NULL, ",
        STATEMENTS,
    ),
    Mutant(
        "a leave deletes everybody",
        QUERIES,
        "DELETE FROM {node} WHERE incarnation = %(incarnation)s\n",
        "DELETE FROM {node} WHERE %(incarnation)s::uuid IS NOT NULL\n",
        STATEMENTS,
    ),
    Mutant(
        "an old incarnation drains the one that has its name",
        QUERIES,
        "  AND incarnation = coalesce(%(incarnation)s::uuid, incarnation)",
        "",
        STATEMENTS,
    ),
    # -- known deaths ------------------------------------------------------------------------------
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
        "AND n.pid = d.pid\n      AND n.process_started = d.process_started\n    RETURNING",
        "AND n.pid = d.pid\n    RETURNING",
        DEATHS,
    ),
    Mutant(
        "a process of which the number was given again is taken for the dead one",
        "host/process.py",
        "    if _is_another(process) or has_ended(descriptor):",
        "    if has_ended(descriptor):",
        ("tests/unit/test_process.py",),
    ),
    # -- the session -------------------------------------------------------------------------------
    Mutant(
        "names are looked up on the user's search path",
        QUERIES,
        "    ('search_path', 'pg_catalog'),\n",
        "",
        ("tests/integration/test_hostile_schema.py",),
    ),
    Mutant(
        "what is acknowledged may be lost where the role says so",
        QUERIES,
        "    ('synchronous_commit',\n"
        "     pg_catalog.replace(pg_catalog.current_setting('synchronous_commit'), 'off', "
        "'on')),\n",
        "",
        (f"{_SETTINGS}test_what_was_acknowledged_survives_a_crash_whatever_the_role_sets",),
    ),
    Mutant(
        "bytes are escaped as the role says",
        QUERIES,
        "    ('standard_conforming_strings', 'on'),\n",
        "",
        SETTINGS,
    ),
    Mutant(
        "a session that listens ends when the role says so",
        QUERIES,
        "    ('idle_session_timeout', '0'),\n",
        "",
        SETTINGS,
    ),
    Mutant(
        "transactions are isolated as the role says",
        QUERIES,
        "    ('default_transaction_isolation', 'read committed'),\n",
        "",
        (f"{_SETTINGS}test_transactions_are_isolated_as_the_statements_are_written_for",),
    ),
    Mutant(
        "rows that a policy hides are not there",
        QUERIES,
        "    ('row_security', 'off'),\n",
        "",
        (
            "tests/integration/test_server_moods.py::test_row_level_security_is_named_instead_of_hiding_rows",
        ),
    ),
    Mutant(
        "what was not announced is taken for missed",
        QUERIES,
        "CASE WHEN {announces} THEN version + 1 ELSE announced END\n    WHERE {sound}\n    "
        "RETURNING version, leader_",
        "version + 1\n    WHERE {sound}\n    RETURNING version, leader_",
        ("tests/integration/test_simulated_tables.py",),
    ),
    Mutant(
        "a lost cluster row begins with the first generation again",
        QUERIES,
        "to_regclass(%(cluster)s)::oid\nFROM {left_over}",
        "to_regclass(%(cluster)s)::oid\nFROM (SELECT 0 AS generation, 0 AS version) tokens, "
        "(SELECT 0 AS version) told, "
        "(SELECT 0 AS joined) nodes",
        (
            "tests/integration/test_leftovers.py::test_a_cluster_row_that_is_made_again_begins_above_all_that_is_left",
        ),
    ),
    Mutant(
        "an old row of the history stops a rebalance",
        QUERIES,
        "%(causes)s::bigint[], %(moves)s::jsonb)\nON CONFLICT DO NOTHING",
        "%(causes)s::bigint[], %(moves)s::jsonb)",
        (
            "tests/integration/test_leftovers.py::test_a_history_of_the_same_versions_stops_no_rebalance_and_stays",
        ),
    ),
    # -- leases ------------------------------------------------------------------------------------
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
        "        return self.clock() < self.lease.deadline and token in self.ownership.grants",
        "        return token in self.ownership.grants",
        ("tests/unit/test_worker.py",),
        quick=True,
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
    ),
    Mutant(
        "beats are observed from when a look was sent, not answered",
        "tasks/leader.py",
        (
            "beat.incarnation == worker.leader\n"
            "            }\n"
            "        worker.beats_seen(beats, worker.clock())"
        ),
        "beat.incarnation == worker.leader}\n        worker.beats_seen(beats, "
        "worker.look_schedule._last_at)",
        rule("beats are observed from when a look was answered"),
    ),
    Mutant(
        "a gap in the readings changes nothing",
        "core/lease.py",
        (
            "        known = {\n"
            "            beat: entry for beat, entry in self._seen.items() "
            "if unread_sec <= entry.times.gap_sec\n"
            "        }"
        ),
        "        known = self._seen",
        LEASES,
        quick=True,
    ),
    Mutant(
        "a reading of any age expires",
        "core/lease.py",
        "        return at if max(at, now) - self._read_at <= entry.times.gap_sec else "
        'float("inf")',
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
        "work/holding.py",
        (
            "worker.ownership.enter(claim.token_id, self, revoked_too=True)\n"
            "            if self._may_enter()\n"
            "            else None"
        ),
        "worker.ownership.enter(claim.token_id, self, revoked_too=True)",
        LEASES,
        quick=True,
    ),
    Mutant(
        "a worker signs off before its heartbeats have ended",
        "runtime/coordinator.py",
        "                idle = not self._broken and await self._let_go(store)\n",
        "                idle = not self._broken and await self._let_go(store)\n"
        "                if idle:\n"
        "                    await self._sign_off(store)\n",
        rule("heartbeats have ended before the sign-off"),
    ),
    # -- times -------------------------------------------------------------------------------------
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
        "    WHERE {sound} AND longest_allowed >= %(timeout_sec)s::double precision\n",
        "    WHERE {sound}\n",
        (*TIMES, *STATEMENTS),
    ),
    Mutant(
        "a worker takes a name over above a bound that was lowered meanwhile",
        QUERIES,
        "\n      AND EXISTS (SELECT FROM {cluster} WHERE longest_allowed >= "
        "%(timeout_sec)s::double precision)",
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
        "core/server_history.py",
        "        self.wait_sec = max(self._timeout_sec, *(bounds or [UNSAID_TIMEOUT_SEC]))",
        "        self.wait_sec = self._timeout_sec",
        ("tests/unit/test_server_history.py",),
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
    # -- evictions and pauses ----------------------------------------------------------------------
    Mutant(
        "an evicted worker's row keeps its name",
        OPERATORS,
        "SET name = n.name || ' (evicted, ' || last_joined || ')', joined = last_joined,\n",
        "SET joined = last_joined,\n",
        EVICTIONS,
    ),
    Mutant(
        "an evicted leader goes on leading",
        OPERATORS,
        "    WHERE c.leader_incarnation = %(incarnation)s::uuid\n",
        "    WHERE false AND c.leader_incarnation = %(incarnation)s::uuid\n",
        EVICTIONS,
    ),
    Mutant(
        "a join that waited for the lock passes an eviction",
        QUERIES,
        "          AND NOT EXISTS (SELECT FROM {evicted} WHERE name = %(name)s)\n    ) c\n",
        "    ) c\n",
        EVICTIONS,
    ),
    Mutant(
        "an evicted worker signs off while somebody there is at work",
        "runtime/coordinator.py",
        "worker.before is not None and await self._unused_within(1):",
        "worker.before is not None:",
        EVICTIONS,
    ),
    Mutant(
        "a claim begins while the cluster is paused",
        "work/holding.py",
        "        if self._held_up:\n            raise",
        "        if False:\n            raise",
        PAUSES,
        quick=True,
    ),
    Mutant(
        "a handler that failed is called again while the cluster is paused",
        "work/attempts.py",
        "            if self._worker.paused is not None:\n                raise HeldUp\n",
        "",
        PAUSES,
    ),
    # -- processes ---------------------------------------------------------------------------------
    Mutant(
        "a child made by fork goes on under its parent's lease",
        "host/home.py",
        "        self.forked = True\n        self._void()",
        "        self.forked = True",
        ("tests/integration/test_known_death.py",),
    ),
    Mutant(
        "a child made by fork writes into its parent's sessions",
        "postgres/forks.py",
        "                os.dup2(nowhere, connection.fileno(), inheritable=False)\n",
        "",
        ("tests/integration/test_fork.py",),
    ),
    Mutant(
        "a job that was made before a fork starts in each child as the same incarnation",
        "api/life.py",
        '        if self._state != "new" or self._made_in != os.getpid():',
        '        if self._state != "new":',
        ("tests/integration/test_fork.py",),
    ),
)
