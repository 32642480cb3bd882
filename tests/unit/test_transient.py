"""What an SQLSTATE means for who sent a statement: the server's state, the tables', or a
mistake."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from jobsync_async import SchemaError, StoreUnavailable
from jobsync_async.postgres.driver_errors import TakesNoWrites, translated

TRANSIENT = [
    "08006 connection_failure",
    "25P03 idle_in_transaction_session_timeout",
    "25P04 transaction_timeout",
    "40001 serialization_failure",
    "40P01 deadlock_detected",
    "53100 disk_full",
    "53200 out_of_memory",
    "53300 too_many_connections",
    "53400 configuration_limit_exceeded",
    "54000 program_limit_exceeded",
    "55006 object_in_use",
    "55P03 lock_not_available",
    "57014 query_canceled",
    "57P01 admin_shutdown",
    "57P02 crash_shutdown",
    "57P03 cannot_connect_now",
    "57P05 idle_session_timeout",
    "58030 io_error",
    "25006 read_only_sql_transaction",
]
THE_TABLES = [
    "42501 insufficient_privilege",
    "42P01 undefined_table",
    "42703 undefined_column",
    "3F000 invalid_schema_name",
]
MISTAKES = [
    "22003 numeric_value_out_of_range",
    "23505 unique_violation",
    "25001 active_sql_transaction",
    "25P02 in_failed_sql_transaction",
    "42601 syntax_error",
    "42883 undefined_function",
    "0A000 feature_not_supported",
    "54001 statement_too_complex",
    "P0001 raise_exception",
    "XX000 internal_error",
    "XX001 data_corrupted",
]


def of_state(state: str) -> psycopg.Error:
    """As psycopg raises it; one that it does not know too."""
    code = state.partition(" ")[0]
    try:
        return errors.lookup(code)("it is said")
    except KeyError:
        kind = type("Newer", (psycopg.DatabaseError,), {"sqlstate": code})
        return kind("it is said")


@pytest.mark.parametrize("state", TRANSIENT)
def test_what_will_be_otherwise_later_can_be_tried_again(state):
    with pytest.raises(StoreUnavailable) as caught, translated():
        raise of_state(state)
    assert isinstance(caught.value.__cause__, psycopg.Error)


@pytest.mark.parametrize("state", THE_TABLES)
def test_what_the_tables_or_rights_lack_is_said_with_what_to_run(state):
    with pytest.raises(SchemaError, match=r"it is said.*jobsync-async init"), translated():
        raise of_state(state)


@pytest.mark.parametrize("state", MISTAKES)
def test_mistakes_reach_the_user_as_they_are(state):
    error = of_state(state)
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("gone"),
        psycopg.InterfaceError("closed"),
        psycopg.InternalError("received 2 results from command 'BEGIN'"),
    ],
)
def test_a_connection_that_is_not_there_can_be_tried_again(error):
    with pytest.raises(StoreUnavailable), translated():
        raise error


def test_a_mistake_of_the_drivers_user_passes():
    with pytest.raises(psycopg.ProgrammingError), translated():
        raise psycopg.ProgrammingError("no such parameter")


def test_a_version_that_the_tables_refuse_is_not_waited_for():
    from types import SimpleNamespace

    from jobsync_async.postgres.driver_errors import VersionRefused
    from jobsync_async.postgres.sql import TOO_OLD

    class Refused(errors.CheckViolation):
        diag = SimpleNamespace(constraint_name=TOO_OLD)  # type: ignore[assignment]

    with pytest.raises(VersionRefused, match="too old for this cluster"), translated():
        raise Refused


@pytest.mark.parametrize(
    "said",
    [
        "session is read-only",
        "server is in hot standby mode",
        "could not make a writable connection",
    ],
)
def test_a_connection_to_a_standby_is_told_with_the_remedy_and_not_as_away(said):
    error = psycopg.OperationalError(f'connection to server at "db", port 5432 failed: {said}')
    with pytest.raises(TakesNoWrites, match="connect to the primary"), translated():
        raise error


def test_a_server_without_the_database_is_told_with_where_to_look():
    error = psycopg.OperationalError('connection failed: FATAL:  database "app" does not exist')
    with pytest.raises(StoreUnavailable, match="correct where it leads"), translated():
        raise error


def test_tables_that_are_not_there_may_be_those_of_another_database():
    with pytest.raises(SchemaError, match=r"or correct host, port, dbname"), translated():
        raise errors.UndefinedTable('relation "public.sync_cluster" does not exist')


def test_a_right_to_call_a_function_is_asked_for_as_such():
    with pytest.raises(SchemaError, match="GRANT EXECUTE"), translated():
        raise errors.InsufficientPrivilege("permission denied for function pg_notify")
