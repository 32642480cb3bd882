"""Which tests a mutant is tried on."""

from __future__ import annotations

QUERIES = "postgres/queries.sql"
OPERATORS = "postgres/operators.sql"
UNIT = ("tests/unit",)
STATEMENTS = ("tests/integration/interleavings", "tests/integration/test_simulated_tables.py")
CLAIMS = ("tests/integration/interleavings/test_tokens.py", "tests/integration/test_claims.py")
FENCES = ("tests/integration/test_fences.py",)
FAILOVER = ("tests/integration/test_server_failover.py",)
PROFILES = (
    "tests/unit/test_server_profile.py",
    "tests/integration/test_timeline.py",
    "tests/integration/test_simulated_tables.py",
)
DEATHS = ("tests/integration/test_known_death.py",)
VERSIONS = ("tests/integration/test_versions.py",)
RUNNERS = ("tests/integration/test_runners.py",)
_SETTINGS = "tests/integration/test_settings.py::"
SETTINGS = (
    f"{_SETTINGS}test_a_cluster_works_whatever_its_role_sets_of_what_the_statements_rely_on",
)
AHEAD = ("tests/integration/test_batch_ahead.py",)
STREAMS = ("tests/integration/test_batches_of_streams.py",)
TALLY = ("tests/unit/test_tally.py",)
POISON = ("tests/integration/test_poison.py",)
HISTORY = (
    "tests/integration/test_history.py",
    "tests/integration/test_simulated_tables.py",
    "tests/unit/test_leader_state.py",
)
DATES = ("tests/integration/test_dates.py",)
UNIT_RUNS = ("tests/unit/test_runs.py",)
SIMULATION = ("tests/simulation/test_simulation.py",)
LEASES = ("tests/unit/test_lease.py", "tests/unit/test_takeover.py", "tests/unit/test_worker.py")
EVICTIONS = ("tests/integration/test_evictions.py",)
PAUSES = ("tests/integration/test_pauses.py",)
TIMES = ("tests/integration/test_times.py",)


def rule(name: str) -> tuple[str, ...]:
    """The test that misses a rule of the simulation, and sees that nothing is missed with it."""
    return (f"{SIMULATION[0]}::test_a_rule_that_is_switched_off_is_missed[{name}]",)
