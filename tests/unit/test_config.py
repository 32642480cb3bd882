"""Settings that cannot work are refused with their name, and a password never shows."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from jobsync_async import ConfigError, CoordinationConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("appname", value)
            for value in ["", "1a", "A", "a-b", "a b", "ä", 'a"', "x" * 45, None, "a\n"]
        ),
        *(("schema", value) for value in ["", "x" * 64, "nul\0", 7]),
        *(("hash_function", value) for value in ["", "crc32", None]),
        *(("total_tokens", value) for value in [0, 1_000_001, 1.0, True, "10", None]),
        *(("minimum_nodes", value) for value in [0, -1, 1.5]),
        *(
            ("heartbeat_timeout_sec", value)
            for value in [0, -1, float("nan"), float("inf"), "15", None, True]
        ),
        *(("rebalance_check_interval_sec", value) for value in [0, None]),
        *(("rebalance_delay_sec", value) for value in [-0.1, None]),
        *(("handoff_timeout_sec", value) for value in [-1, "x"]),
        *(("keep_history_days", value) for value in [0, -1, True, "30", float("nan"), 1e9]),
        *(("port", value) for value in [0, 65536, "5432"]),
        *(("host", value) for value in [7, "nul\0"]),
        *(("failover", value) for value in ["other", "", None]),
        *(
            ("dsn", value)
            for value in [
                "postgresql://host:port/db",
                "host=a port=x",
                "nonsense",
                "host=",
                "postgresql://[::1",
            ]
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(name, value):
    if value == "host=":
        CoordinationConfig(dsn=value)  # libpq's default host
        return
    with pytest.raises(ConfigError, match=name):
        CoordinationConfig(**{name: value})


def test_a_heartbeat_that_breaks_the_lease_rule_is_refused_with_the_most_that_works():
    with pytest.raises(ConfigError, match=r"at most 6\b"):
        CoordinationConfig(heartbeat_interval_sec=6.1)
    CoordinationConfig(heartbeat_interval_sec=6)


def test_dsn_and_fields_exclude_each_other():
    with pytest.raises(ConfigError, match="either dsn or host, password"):
        CoordinationConfig(dsn="dbname=x", host="y", password="z")


@pytest.mark.parametrize(
    "dsn",
    ["postgresql://u:s3cret@host:p/db", "password=s3cret nonsense", "postgresql://u:s3cret@[::1/x"],
)
def test_the_password_of_a_bad_dsn_is_not_shown(dsn):
    with pytest.raises(ConfigError) as caught:
        CoordinationConfig(dsn=dsn)
    error: BaseException | None = caught.value
    assert "s3cret" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


def test_a_password_does_not_show():
    assert "s3cret" not in repr(CoordinationConfig(password="s3cret"))
    assert "s3cret" not in repr(CoordinationConfig(dsn="password=s3cret"))


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_password_of_any_characters_arrives(password):
    conninfo = CoordinationConfig(host="h", password=password).conninfo("test")
    assert conninfo_to_dict(conninfo).get("password", "") == password


def test_what_is_given_wins_over_our_defaults():
    config = CoordinationConfig(
        dsn="host=a,b target_session_attrs=any connect_timeout=7 application_name=mine"
    )
    parts = conninfo_to_dict(config.conninfo("heartbeat"))
    assert (parts["target_session_attrs"], parts["connect_timeout"], parts["application_name"]) == (
        "any",
        "7",
        "mine",
    )
    assert parts["keepalives_idle"] == "5"
    assert parts["host"] == "a,b"


@pytest.mark.parametrize("name", [None, "mine", "m" * 80, "ö" * 30])
def test_a_tag_is_in_the_name_of_a_session_where_it_is_not_cut_off(name):
    given = {} if name is None else {"dsn": f"application_name={name}"}
    called = conninfo_to_dict(CoordinationConfig(**given).conninfo("n" * 80, "a-tag"))[
        "application_name"
    ]
    # The server keeps 63 bytes, and writes a byte that is not ASCII as four.
    kept = "".join(c if c.isascii() else r"\xc3\xb6" for c in called)[:63]
    assert "a-tag" in kept
    assert kept.startswith(
        "jobsync_async" if name is None else name.encode("ascii", "replace").decode()[:20]
    )


def test_it_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CoordinationConfig().appname = "x"
    with pytest.raises(TypeError):
        CoordinationConfig("localhost")


def test_names_made_from_the_longest_prefix_are_not_cut():
    from jobsync_async.postgres.sql import INDEXES, TABLES

    config = CoordinationConfig(appname="x" * 44)
    assert max(len(config.appname + name) for name in (*TABLES, *INDEXES)) == 63
    assert len(config.channel) <= 63
