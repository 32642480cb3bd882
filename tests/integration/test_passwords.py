"""A password shows nowhere: not in a repr, a log, an error, nor in the local variables of any frame
of its traceback."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobsync_async import ConfigError, CoordinationConfig, Job, StoreUnavailable

MARK = "s3cr3t"
hostile = st.text(
    st.sampled_from("%@:/?#&='\"\\\n\t {}[]$`;ü漢\x7f")
    | st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    max_size=12,
)
passwords = st.builds(lambda before, after: f"{before}{MARK}{after}", hostile, hostile)


def shown(error: BaseException) -> Iterator[str]:
    """All that any logger could print of an error: texts, causes, and each frame's variables, below
    this test's own."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield from (str(one), repr(one), *map(repr, one.args), repr(vars(one)))
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if frame.f_code.co_filename != __file__:
                yield from (f"{name} = {value!r}" for name, value in frame.f_locals.items())
        rest += [one.__cause__, one.__context__]


def assert_hidden(error: BaseException) -> None:
    for text in shown(error):
        assert MARK not in text, text


@given(passwords)
def test_a_password_is_not_in_a_repr(password):
    for config in (
        CoordinationConfig(password=password),
        CoordinationConfig(dsn=make_conninfo(password=password)),
    ):
        assert MARK not in repr(config) + str(config) + repr(Job("a", config))


@given(passwords, st.sampled_from(["appname", "port", "host", "schema", "unknown", "total_tokens"]))
def test_a_setting_that_is_refused_does_not_show_the_password_beside_it(password, name):
    with pytest.raises((ConfigError, TypeError)) as caught:
        CoordinationConfig(**{"password": password, name: object()})
    assert_hidden(caught.value)


@given(passwords, st.sampled_from(["port", "appname", "unknown"]))
def test_a_variable_that_is_refused_does_not_show_the_password_beside_it(password, name):
    for secret in (
        {"JOBSYNC_PASSWORD": password},
        {"JOBSYNC_DSN": make_conninfo(password=password)},
    ):
        with pytest.raises(ConfigError) as caught:
            CoordinationConfig.from_env(environ={**secret, f"JOBSYNC_{name.upper()}": "-"})
        assert_hidden(caught.value)
        with pytest.raises((ConfigError, TypeError)) as caught:
            CoordinationConfig.from_env("JOBSYNC_", secret, **{name: object()})
        assert_hidden(caught.value)


@given(passwords, st.sampled_from(["\0", "\ud800"]))
def test_a_password_that_cannot_be_one_is_refused_without_being_shown(password, bad):
    for settings_ in ({"password": password + bad}, {"dsn": f"password={password}{bad}"}):
        with pytest.raises(ConfigError) as caught:
            CoordinationConfig(**settings_)
        assert_hidden(caught.value)


@settings(max_examples=300)
@given(
    passwords,
    st.sampled_from(
        [
            "postgresql://u:{}@127.0.0.1:1/x",
            "host=127.0.0.1 port=1 dbname=x password={}",
            "{}",
            "postgres://{}",
        ]
    ),
)
def test_a_malformed_dsn_is_refused_without_being_shown(password, form):
    try:
        CoordinationConfig(dsn=form.format(password))
    except ConfigError as error:
        assert_hidden(error)


@pytest.mark.parametrize(
    "password",
    [f"{MARK}@{MARK}", f"12/{MARK}", f"{MARK}/1", f"x/y@{MARK}", f"?{MARK}@{MARK}", f"p@{MARK}/x"],
)
def test_a_password_whose_part_libpq_would_take_for_a_host_a_port_or_a_database_is_refused(
    password,
):
    with pytest.raises(ConfigError) as caught:
        CoordinationConfig(dsn=f"postgresql://user:{password}@localhost/db")
    assert_hidden(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql:///db?host=/tmp&user=a@b&password=c@d",
        f"postgresql://user:{quote('p@/ss', safe='')}@h1,h2:5433/db",
        "postgresql://u:pa?ss@localhost/db",
        "postgresql://localhost/db",
        "host=localhost password=a@b/c@d",
    ],
)
def test_a_dsn_that_means_one_thing_only_is_taken(dsn):
    CoordinationConfig(dsn=dsn)


async def start(config: CoordinationConfig, kind: type[Exception]) -> BaseException:
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(kind) as caught:
            await Job("a", config).start()
    finally:
        logging.getLogger().removeHandler(handler)
    assert MARK not in log.getvalue()
    assert_hidden(caught.value)
    return caught.value


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(password=passwords)
async def test_a_wrong_password_does_not_show(dsn, password):
    wrong = make_conninfo(**{**conninfo_to_dict(dsn), "password": password})
    error = str(await start(CoordinationConfig(dsn=wrong), StoreUnavailable))
    assert re.search("(password|SASL) authentication failed", error), "PgBouncer says the second"
    assert "do host, port, dbname, user and password" in error


@settings(max_examples=6)
@given(password=passwords)
async def test_the_password_for_a_host_that_cannot_be_reached_does_not_show(password):
    await start(
        CoordinationConfig(host="127.0.0.1", port=1, dbname="x", user="x", password=password),
        StoreUnavailable,
    )


@pytest.mark.parametrize(
    "extra",
    ["connect_timeout=soon", "sslmode=sometimes", "target_session_attrs=best", "service=nowhere"],
)
async def test_the_password_beside_a_setting_that_the_driver_cannot_take_does_not_show(extra):
    dsn = f"host=127.0.0.1 port=1 dbname=x password={MARK} {extra}"
    await start(CoordinationConfig(dsn=dsn), (ConfigError, StoreUnavailable))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--dsn", f"postgresql://u:{MARK}@[::1/x"],
        ["status", "--dsn", f"postgresql://u:p@{MARK}@127.0.0.1:1/x"],
        ["init", "--dsn", f"host=127.0.0.1 port=1 password={MARK}"],
        ["init", "--sql", "--appname", "1", "--dsn", f"password={MARK}"],
        ["status", "--dsn", f"host=127.0.0.1 port=1 password={MARK} connect_timeout=soon"],
    ],
)
def test_no_error_of_the_command_line_shows_the_password(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "jobsync_async", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    assert done.returncode in (1, 2), done.stderr
    assert "error:" in done.stderr
    assert MARK not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
