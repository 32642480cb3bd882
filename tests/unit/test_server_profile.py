"""By what a server is recognised: known by evidence or by a setting, and never guessed."""

from __future__ import annotations

import itertools

import pytest

from jobsync_async import ConfigError, CoordinationConfig, SchemaError
from jobsync_async.core.server_profile import (
    ANY_SERVER,
    BY_TIMELINE,
    FILE,
    NAMES,
    POSITION,
    PROFILES,
    STARTED,
    SYSTEM,
    Decision,
    Readings,
    Refusal,
    decide,
    read_otherwise,
    readings_of,
    refused_meanwhile,
    shared_storage,
)

BY_STORAGE = Readings("shared-storage")
TIMELINE = "7001/00000002/5/16400"
STORAGE = "shared-storage/7001/5/16400"
STORAGE_UNKNOWN = "shared-storage/-/5/16400"
START = "start-time/7001/1764280000123456/5/16400"
OTHER_SYSTEM = "7002/00000002/5/16400"
OTHER_TABLE = "7001/00000002/5/16401"
NO_POSITION = Refusal(POSITION, "is switched off")
ON_AURORA = Refusal(POSITION, "wal_level must be set to 'logical'")


def by_rights(function: str) -> Refusal:
    return Refusal(function, f"permission denied for function {function}", by_rights=True)


def test_an_identity_says_by_what_it_was_made_and_that_of_0_1_0_is_one_by_timeline():
    assert readings_of(TIMELINE) == BY_TIMELINE == Readings("timeline", system=True)
    assert readings_of(STORAGE) == BY_STORAGE
    assert readings_of(STORAGE_UNKNOWN) == ANY_SERVER
    assert readings_of(START) == Readings("start-time")
    for nothing in (None, "", "elsewhere", "a/b", "shared-storage/7001/5", "start-time/1/5/2"):
        assert readings_of(nothing) is None


def test_only_of_one_table_of_one_server_two_identities_are_read_otherwise():
    assert read_otherwise(TIMELINE, STORAGE) == BY_TIMELINE
    assert read_otherwise(STORAGE_UNKNOWN, TIMELINE) == ANY_SERVER
    assert read_otherwise(STORAGE, STORAGE_UNKNOWN) == BY_STORAGE
    for recorded in (OTHER_SYSTEM, OTHER_TABLE, STORAGE, None, "elsewhere"):
        assert read_otherwise(recorded, STORAGE) is None
    assert read_otherwise(TIMELINE, TIMELINE.replace("2/5", "3/5")) is None, "a failover"


def test_a_server_that_refuses_nothing_is_recognised_by_its_timeline():
    assert decide(None, None, "") == Decision(BY_TIMELINE)


@pytest.mark.parametrize("version", ["17.4", None])
def test_aurora_is_known_by_its_function_or_by_how_it_refuses(version):
    refusals = [Refusal(POSITION, "is off") if version else ON_AURORA]
    evidence = shared_storage(version, refusals)
    assert evidence is not None
    assert "Aurora" in evidence
    assert decide(None, None, "", refusals, evidence) == Decision(BY_STORAGE)


def test_what_postgresql_says_itself_shows_no_shared_storage():
    for refusal in (
        Refusal(POSITION, "recovery is in progress"),
        Refusal(FILE, "function pg_catalog.pg_walfile_name(unknown) does not exist"),
        by_rights("aurora_something"),
    ):
        assert shared_storage(None, [refusal]) is None


def test_a_server_of_which_nothing_is_known_is_refused_with_the_choices():
    with pytest.raises(ConfigError) as refused:
        decide(None, None, "", [NO_POSITION])
    for part in (POSITION, "is switched off", "server_profile", "shared-storage", "start-time"):
        assert part in str(refused.value)
    with pytest.raises(ConfigError, match="server_profile='timeline' cannot work"):
        decide("timeline", None, "", [NO_POSITION])


@pytest.mark.parametrize("setting", ["shared-storage", "start-time"])
def test_a_setting_says_what_the_server_does_not(setting):
    assert decide(setting, None, "", [NO_POSITION]) == Decision(Readings(setting))
    no_system = Refusal(SYSTEM, "is switched off")
    assert decide(setting, None, "", [NO_POSITION, no_system]) == Decision(
        Readings(setting, system=False)
    )


def test_rights_that_one_role_lacks_decide_nothing():
    for function in (SYSTEM, POSITION, FILE):
        with pytest.raises(
            SchemaError, match=f"GRANT EXECUTE ON FUNCTION pg_catalog.{function[:9]}"
        ):
            decide(None, None, "", [by_rights(function)])
    evidence = shared_storage("17.4")
    with pytest.raises(SchemaError, match="GRANT EXECUTE"):
        decide(None, STORAGE, STORAGE_UNKNOWN, [by_rights(SYSTEM)], evidence)
    with pytest.raises(SchemaError, match="GRANT EXECUTE"):
        decide("start-time", None, "", [by_rights(STARTED)])


def test_workers_with_different_rights_make_one_identity_or_are_refused():
    """Whoever comes first, and whatever each of two roles may ask: no two of them read two
    identities of one server."""
    every = (SYSTEM, POSITION, FILE, STARTED)
    subsets = [
        [by_rights(f) for f in lacking]
        for n in range(len(every) + 1)
        for lacking in itertools.combinations(every, n)
    ]
    made = 0
    for setting, first, second in itertools.product((None, *NAMES), subsets, subsets):
        try:
            begun = decide(setting, None, "", first).readings
        except (ConfigError, SchemaError):
            continue
        system = "7001" if begun.system else "-"
        marks = {"timeline": ("00000002",), "shared-storage": (), "start-time": ("17",)}
        name = () if begun.profile == "timeline" else (begun.profile,)
        recorded = "/".join((*name, system, *marks[begun.profile], "5", "16400"))
        assert readings_of(recorded) == begun
        here = STORAGE_UNKNOWN if by_rights(SYSTEM) in second else STORAGE
        for others in (setting, None):
            try:
                decision = decide(others, recorded, here, second)
            except SchemaError:
                assert set(begun.functions) & {refusal.function for refusal in second}
            else:
                assert decision == Decision(begun)
                made += 1
    assert made > 100


def test_what_the_cluster_was_begun_with_comes_before_what_the_server_shows():
    assert decide(None, STORAGE, TIMELINE) == Decision(BY_STORAGE)
    assert decide(None, TIMELINE, STORAGE, [], "Aurora 17.4") == Decision(BY_TIMELINE)
    assert decide("shared-storage", STORAGE_UNKNOWN, STORAGE) == Decision(ANY_SERVER)
    for elsewhere in (OTHER_SYSTEM, OTHER_TABLE, None, "elsewhere"):
        assert decide("shared-storage", elsewhere, STORAGE) == Decision(BY_STORAGE)


def test_a_setting_that_is_not_the_clusters_is_refused_with_both_named():
    with pytest.raises(ConfigError) as refused:
        decide("shared-storage", TIMELINE, STORAGE)
    for part in ("'shared-storage' here", "'timeline' in the running cluster", "init --clone"):
        assert part in str(refused.value)


def test_what_the_server_refuses_everybody_by_now_is_replaced():
    evidence = shared_storage(None, [ON_AURORA])
    assert decide(None, TIMELINE, STORAGE, [ON_AURORA], evidence) == Decision(BY_STORAGE, True)
    assert decide("start-time", TIMELINE, STORAGE, [NO_POSITION]) == Decision(
        Readings("start-time"), True
    )
    with pytest.raises(ConfigError, match="nothing shows what kind"):
        decide(None, TIMELINE, STORAGE, [NO_POSITION])


def test_a_running_worker_is_told_what_its_server_refuses_and_what_to_do():
    said = str(refused_meanwhile([NO_POSITION], BY_TIMELINE))
    assert "start the worker again" in said
    assert POSITION in said
    assert "GRANT EXECUTE" in str(refused_meanwhile([by_rights(FILE)], BY_TIMELINE))


def test_only_shared_storage_does_without_what_tells_of_lost_commits():
    for profile in PROFILES.values():
        assert profile.shared_storage == (not {POSITION, STARTED} & set(profile.needs))
        assert set(profile.needs) <= set(profile.reads)


def test_a_setting_that_is_no_profile_is_refused():
    assert [CoordinationConfig(server_profile=name).server_profile for name in NAMES] == [*NAMES]
    for wrong in ("aurora", "", 1, ["timeline"]):
        with pytest.raises(ConfigError, match="server_profile must be one of 'timeline', "):
            CoordinationConfig(server_profile=wrong)
