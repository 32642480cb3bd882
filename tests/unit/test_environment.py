"""Settings from environment variables: each by its type, and what is refused by its name."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobsync_async import ConfigError, CoordinationConfig
from jobsync_async.environment import NO_SETTINGS

ROOT = Path(__file__).parents[2]
FIELDS = {
    f"JOBSYNC_{field.name.upper()}": field for field in dataclasses.fields(CoordinationConfig)
}
ANOTHER = {
    "JOBSYNC_HOST": "db",
    "JOBSYNC_PORT": 6543,
    "JOBSYNC_DBNAME": "app",
    "JOBSYNC_USER": "u",
    "JOBSYNC_PASSWORD": "p",
    "JOBSYNC_DSN": "postgresql://db/app",
    "JOBSYNC_APPNAME": "app_",
    "JOBSYNC_SCHEMA": "none",
    "JOBSYNC_TOTAL_TOKENS": 7,
    "JOBSYNC_HASH_FUNCTION": "md5",
    "JOBSYNC_MINIMUM_NODES": 2,
    "JOBSYNC_HEARTBEAT_INTERVAL_SEC": 2.5,
    "JOBSYNC_HEARTBEAT_TIMEOUT_SEC": 20,
    "JOBSYNC_REBALANCE_CHECK_INTERVAL_SEC": 3,
    "JOBSYNC_REBALANCE_DELAY_SEC": 0,
    "JOBSYNC_HANDOFF_TIMEOUT_SEC": 1,
    "JOBSYNC_ON_HANDOFF_TIMEOUT": "leave",
    "JOBSYNC_NOTIFY": False,
    "JOBSYNC_POLL_INTERVAL_SEC": 0.5,
    "JOBSYNC_FAILOVER": "session",
    "JOBSYNC_PREDECESSOR": "old_",
    "JOBSYNC_SERVER_PROFILE": "start-time",
    "JOBSYNC_TIME_ZONE": "Europe/Berlin",
    "JOBSYNC_KEEP_HISTORY_DAYS": None,
}


def made(**environ: str) -> CoordinationConfig:
    return CoordinationConfig.from_env(environ=environ)


def test_nothing_set_gives_the_defaults():
    assert made() == made(JOBSYNC_APPNAME="", PGHOST="elsewhere", OTHER="x") == CoordinationConfig()


@pytest.mark.parametrize("key", FIELDS)
def test_every_setting_has_a_variable(key):
    value = ANOTHER[key]
    assert value != FIELDS[key].default
    config = made(**{key: str(value)})
    assert config == CoordinationConfig(**{FIELDS[key].name: value})
    assert type(getattr(config, FIELDS[key].name)) in (type(value), float)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), (" Yes\n", True), ("ON", True), ("false", False), ("off", False)],
)
def test_yes_and_no_are_known_in_the_usual_words(text, value):
    assert made(JOBSYNC_NOTIFY=text).notify is value


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("JOBSYNC_TOTAL_TOKENS", "1.5", "JOBSYNC_TOTAL_TOKENS must be a whole number; got '1.5'"),
        ("JOBSYNC_PORT", "x", "JOBSYNC_PORT must be a whole number or none; got 'x'"),
        ("JOBSYNC_PORT", "tcp://10.0.0.1:5432", "Service of such a name.*enableServiceLinks"),
        ("JOBSYNC_HEARTBEAT_TIMEOUT_SEC", "15s", "HEARTBEAT_TIMEOUT_SEC must be a number; got"),
        ("JOBSYNC_NOTIFY", "maybe", "JOBSYNC_NOTIFY must be true or false; got 'maybe'"),
        ("JOBSYNC_FAILOVER", "x", "JOBSYNC_FAILOVER must be lease or session; got 'x'"),
        ("JOBSYNC_HEARTBEAT_TIMEOUT_SEC", "nan", "environment: JOBSYNC_HEARTBEAT_TIMEOUT_SEC$"),
        ("JOBSYNC_APPNAME", "A-", "appname must match.*; from the environment: JOBSYNC_APPNAME$"),
        ("JOBSYNC_TIMEZONE", "UTC", "JOBSYNC_TIMEZONE is no setting; .*is JOBSYNC_TIME_ZONE: ren"),
        ("JOBSYNC_HEARTBEAT_TIMEOUT", "", "the nearest one is JOBSYNC_HEARTBEAT_TIMEOUT_SEC"),
        ("JOBSYNC_WEB_SERVICE_HOST", "10.0.0.1", "enableServiceLinks"),
    ],
)
def test_what_is_refused_is_told_with_the_variables_name(key, text, expected):
    with pytest.raises(ConfigError, match=expected):
        made(**{key: text})


def test_a_relation_that_cannot_work_names_the_variables_and_only_those_that_are_set():
    with pytest.raises(ConfigError, match=r"JOBSYNC_HEARTBEAT_TIMEOUT_SEC$"):
        made(JOBSYNC_HEARTBEAT_TIMEOUT_SEC="6", JOBSYNC_APPNAME="app_")
    with pytest.raises(ConfigError, match=r"not both; .*: JOBSYNC_USER, JOBSYNC_DSN$"):
        made(JOBSYNC_DSN="postgresql://db", JOBSYNC_USER="u")


def test_keywords_win_over_variables():
    environ = {"JOBSYNC_APPNAME": "env_", "JOBSYNC_MINIMUM_NODES": "3"}
    config = CoordinationConfig.from_env(environ=environ, appname="given_")
    assert config == CoordinationConfig(appname="given_", minimum_nodes=3)
    # A value that does not count is not read either.
    CoordinationConfig.from_env(environ={"JOBSYNC_PORT": "x"}, port=5432)


def test_a_dsn_and_its_parts_put_each_others_variables_aside():
    parts = {"JOBSYNC_HOST": "db", "JOBSYNC_PASSWORD": "p"}
    given = CoordinationConfig.from_env(environ=parts, dsn="postgresql://other")
    assert given == CoordinationConfig(dsn="postgresql://other")
    given = CoordinationConfig.from_env(environ={"JOBSYNC_DSN": "postgresql://db"}, host="other")
    assert given == CoordinationConfig(host="other")


def test_another_prefix_reads_other_variables_and_an_empty_one_is_refused():
    environ = {"INVOICES_APPNAME": "invoices_", "JOBSYNC_APPNAME": "app_"}
    assert CoordinationConfig.from_env("INVOICES_", environ).appname == "invoices_"
    with pytest.raises(ConfigError, match=r"INVOICES_APNAME is no setting; .* INVOICES_APPNAME:"):
        CoordinationConfig.from_env("INVOICES_", {"INVOICES_APNAME": "x"})
    with pytest.raises(ConfigError, match="prefix"):
        CoordinationConfig.from_env("", environ)


def test_without_a_mapping_it_reads_the_variables_of_the_process(monkeypatch):
    monkeypatch.setenv("JOBSYNC_APPNAME", "process_")
    assert CoordinationConfig.from_env().appname == "process_"


def test_variables_of_this_library_that_are_no_settings_are_let_be():
    made(**{f"{prefix}SOMETHING": "x" for prefix in NO_SETTINGS})
    sources = [*(ROOT / "jobsync_async").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    read = {
        name
        for source in sources
        if source != Path(__file__)
        for name in re.findall(r'"(JOBSYNC_[A-Z_]+)"', source.read_text("utf-8"))
    }
    others = {name for name in read - {*FIELDS} if not name.startswith(NO_SETTINGS)}
    assert others <= {"JOBSYNC_"}


def test_the_page_has_every_variable_with_what_it_takes():
    page = ROOT / "docs" / "reference" / "configuration.md"
    if not page.exists():
        pytest.skip("the documents are not here: an installed wheel is tested")
    rows = re.findall(r"^\| `(JOBSYNC_\w+)` \| (.*?) \| (.*?) \|$", page.read_text("utf-8"), re.M)
    assert [key for key, _, _ in rows] == list(FIELDS)
    for key, takes, default in rows:
        name = FIELDS[key].name
        if default.startswith("`"):
            assert getattr(made(**{key: default.strip("`")}), name) == FIELDS[key].default
        else:
            assert FIELDS[key].default is None
        for word in re.findall(r"`(\w+)`", takes):
            made(**{key: word})
        if not takes.startswith("text"):
            with pytest.raises(ConfigError) as caught:
                made(**{key: "else"})
            kinds = takes.split(":")[0].replace("`", "")
            assert str(caught.value) == f"{key} must be {kinds}; got 'else'"


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobsync_async", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_the_command_line_reads_the_same_variables_and_an_option_wins():
    done = command(
        "init", "--sql", "--appname", "given_",
        JOBSYNC_APPNAME="env_", JOBSYNC_SCHEMA="there", JOBSYNC_HOST="nowhere.invalid",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"there"."given_token"' in done.stdout
    assert "env_" not in done.stdout
    done = command("status", JOBSYNC_HEARTBEAT_TIMEOUT="3")
    assert done.returncode == 2
    assert "the nearest one is JOBSYNC_HEARTBEAT_TIMEOUT_SEC" in done.stderr
    nowhere = {"JOBSYNC_HOST": "127.0.0.1", "JOBSYNC_PORT": "1", "JOBSYNC_USER": "u"}
    done = command("status", **nowhere)
    assert done.returncode == 1
    assert "tried host 127.0.0.1, port 1, database u, user u:" in done.stderr
