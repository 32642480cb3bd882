"""The leader, the server's failover, and the versions of the tables."""

from __future__ import annotations

from tests.mutants.catalogue.suites import (
    FAILOVER,
    HISTORY,
    PROFILES,
    QUERIES,
    RUNNERS,
    STATEMENTS,
    UNIT,
    VERSIONS,
)
from tests.mutants.workshop import Mutant

MUTANTS = (
    # -- the history -------------------------------------------------------------------------------
    Mutant(
        "an expiry is not told",
        QUERIES,
        "), told AS (\n    {tell_gone}\n)\nSELECT name, incarnation FROM gone",
        ")\nSELECT name, incarnation FROM gone",
        HISTORY,
        quick=True,
    ),
    Mutant(
        "a new start does not say which it replaced",
        QUERIES,
        "%(about)s::jsonb || jsonb_build_object('replaced', n.incarnation)",
        "%(about)s::jsonb",
        HISTORY,
    ),
    Mutant(
        "whatever has happened is the cause of a rebalance",
        "core/leader_state.py",
        'return event.kind != "took over" and event.node in concerned',
        "return True",
        UNIT,
    ),
    Mutant(
        "the last change of the leader goes by age",
        QUERIES,
        "    WHERE at < {long_ago} AND id IS DISTINCT FROM (\n"
        "        SELECT id FROM {history} WHERE term IS NOT NULL ORDER BY term DESC LIMIT 1)\n",
        "    WHERE at < {long_ago}\n",
        HISTORY,
    ),
    # -- leading -----------------------------------------------------------------------------------
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
    ),
    Mutant(
        "a leader without a row writes",
        QUERIES,
        "  AND EXISTS (SELECT FROM {node} WHERE incarnation = %(incarnation)s) AND {sound} FOR "
        "UPDATE",
        "  AND {sound} FOR UPDATE",
        STATEMENTS,
    ),
    Mutant(
        "an expiry does not compare the beat",
        QUERIES,
        "WHERE n.name = w.name AND n.incarnation = w.incarnation AND n.beat = w.beat\n    "
        "RETURNING",
        "WHERE n.name = w.name AND n.incarnation = w.incarnation\n    RETURNING",
        (
            "tests/integration/interleavings/test_leaders.py::test_a_leader_that_beats_is_not_replaced",
        ),
        quick=True,
    ),
    Mutant(
        "an expiry does not compare the incarnation",
        QUERIES,
        "WHERE n.name = w.name AND n.incarnation = w.incarnation AND n.beat = w.beat\n    "
        "RETURNING",
        "WHERE n.name = w.name AND n.beat = w.beat\n    RETURNING",
        STATEMENTS,
    ),
    Mutant(
        "a take-over does not compare the term",
        QUERIES,
        "    WHERE c.term = %(term)s\n      AND NOT EXISTS",
        "    WHERE NOT EXISTS",
        STATEMENTS,
    ),
    Mutant(
        "a take-over of a leader that lives",
        QUERIES,
        "    WHERE c.term = %(term)s\n      AND NOT EXISTS (SELECT FROM {node} WHERE incarnation = "
        "c.leader_incarnation)\n",
        "    WHERE c.term = %(term)s\n",
        STATEMENTS,
    ),
    Mutant(
        "a plan takes a token from an owner that lives",
        QUERIES,
        "           OR NOT EXISTS (SELECT FROM {node} n WHERE n.incarnation = t.incarnation))\n",
        "           OR true)\n",
        STATEMENTS,
    ),
    Mutant(
        "a plan writes over what changed since its reading",
        QUERIES,
        " AND version <= %(planned_version)s\n      AND (incarnation = ",
        "\n      AND (incarnation = ",
        STATEMENTS,
    ),
    Mutant(
        "a plan passes a fence",
        QUERIES,
        "    FOR UPDATE OF t SKIP LOCKED))",
        "    FOR NO KEY UPDATE OF t SKIP LOCKED))",
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
        "WHERE name = w.name AND state = 'active' LIMIT 1",
        "WHERE name = w.name LIMIT 1",
        STATEMENTS,
    ),
    # -- failover of the server --------------------------------------------------------------------
    Mutant(
        "a generation begins over a row that changed since it was waited upon",
        QUERIES,
        "  AND (%(actual)s::text IS NULL OR (generation = %(seen_generation)s::bigint\n          "
        " AND ",
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
        "    SET generation = greatest(generation, %(known_generation)s::bigint)\n",
        "    SET generation = generation\n",
        (*FAILOVER, *STATEMENTS),
    ),
    Mutant(
        "a generation takes tokens that a fence locks",
        QUERIES,
        "WHERE ctid = ANY(ARRAY(SELECT ctid FROM {token} FOR UPDATE SKIP LOCKED))",
        "WHERE ctid = ANY(ARRAY(SELECT ctid FROM {token} FOR NO KEY UPDATE SKIP LOCKED))",
        (*FAILOVER, *STATEMENTS),
    ),
    Mutant(
        "an earlier generation is gone back to",
        "core/server_history.py",
        "        if known is None or self.generation > known.generation:",
        "        if known is None or self.generation != known.generation:",
        ("tests/unit/test_server_history.py",),
        quick=True,
    ),
    Mutant(
        "a state from before what was seen is adopted",
        "core/server_history.py",
        "        return history if history == known and self.version >= version else None",
        "        return history if history == known else None",
        ("tests/unit/test_server_history.py",),
    ),
    # -- by what a server is recognised ------------------------------------------------------------
    Mutant(
        "a server that refuses what tells of lost commits is taken for shared storage",
        "core/server_profile.py",
        '    wanted = setting or ("shared-storage" if evidence else "timeline")\n',
        '    wanted = setting or ("shared-storage" if evidence or refused else "timeline")\n',
        PROFILES,
        quick=True,
    ),
    Mutant(
        "by what a server is recognised depends on a role's rights",
        "core/server_profile.py",
        "        _require_rights(lacking, begun.profile)\n",
        "",
        PROFILES,
    ),
    Mutant(
        "the identity of a server has nothing that tells of lost commits",
        "postgres/sql.py",
        "{name}{system}{_MARK[readings.profile]}, d.oid) ",
        "{name}{system}, d.oid) ",
        (*PROFILES, *FAILOVER),
    ),
    Mutant(
        "a worker begins anew over a row that others read otherwise",
        "tasks/heartbeat.py",
        "            if other is not None and not unreadable:\n",
        "            if other is not None and unreadable:\n",
        PROFILES,
    ),
    Mutant(
        "a row that is begun with what is refused by now is waited on, but not made unfit",
        "tasks/heartbeat.py",
        "            if reading.agreed or unreadable:\n",
        "            if reading.agreed:\n",
        PROFILES,
    ),
    Mutant(
        "any row is made unfit by whoever comes",
        QUERIES,
        "  AND (%(unreadable)s OR server_identity = coalesce(",
        "  AND (true OR server_identity = coalesce(",
        FAILOVER,
    ),
    # -- versions ----------------------------------------------------------------------------------
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
        "    ADD CONSTRAINT {too_old} CHECK (coalesce(layout >= %(layout)s AND said_by = "
        "incarnation, false))",
        "    ADD CONSTRAINT {too_old} CHECK (true)",
        VERSIONS,
    ),
    Mutant(
        "contracted tables take an older worker that takes over a newer one's row",
        "postgres/operators.sql",
        "    ADD CONSTRAINT {too_old} CHECK (coalesce(layout >= %(layout)s AND said_by = "
        "incarnation, false))",
        "    ADD CONSTRAINT {too_old} CHECK (coalesce(layout >= %(layout)s, false))",
        VERSIONS,
    ),
    Mutant(
        "a worker that is older than the tables allow starts",
        "postgres/cluster_row.py",
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
    Mutant(
        "a reader is told of tokens without a look at the lease",
        "work/streams.py",
        "                worker.check_lease()  # what is told of from here on is so at this "
        "moment\n",
        "",
        ("tests/integration/test_readers.py",),
    ),
    Mutant(
        "an answer that a thread made while tokens changed is kept",
        "core/ownership.py",
        "            self._owned = (number, owned)",
        "            self._owned = (self._changes, owned)",
        UNIT,
    ),
)
