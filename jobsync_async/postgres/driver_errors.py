"""The driver's errors as this library's, by their SQLSTATE."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from jobsync_async import __version__
from jobsync_async.core.outages import Kind
from jobsync_async.errors import ConfigError, SchemaError, StoreError, StoreUnavailable
from jobsync_async.postgres.sql import TOO_OLD

# What an SQLSTATE means for who sent a statement. Classes are its first two characters.
#
# The server is not in the state for it now, and nothing was committed: connection (08), transaction
# to be tried again (40), resources (53), an object's state and its locks (55), an operator, a
# shutdown or a bound (57), the system under it (58). Beside these, of the transactions that are in
# a wrong state, those that a bound has ended (25P03, 25P04); and the queue of notifications that is
# full (54000).
_TRANSIENT = frozenset({"08", "40", "53", "55", "57", "58", "25P03", "25P04", "54000"})
# The tables or the rights on them are not as they must be: 42501, 42P01, 42703, 3F000.
_SCHEMA = (
    errors.InsufficientPrivilege,
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.InvalidSchemaName,
)
# What the driver or the server says when no connection can be had, and what to do. There is no
# SQLSTATE then, only text; where a server speaks another language, the advice is left out.
_REMEDIES = {
    r"too many (clients|connections)|connection slots are reserved|no more connections allowed": (
        "all its connections are in use: raise max_connections, or the limit of the role, of the "
        "database or of the pooler; a worker keeps 2, and opens up to 6 more"
    ),
    r"alert certificate (expired|revoked|unknown)|alert (bad certificate|unknown ca)": (
        "it refuses this client's certificate, which may have run out: renew what sslcert names"
    ),
    r"certificate verify failed": (
        "its certificate has run out, or sslrootcert does not have the authority that signed it: "
        "renew the one, or complete the other"
    ),
    r"does not match host name": "connect by a name that its certificate is for",
    r"no encryption|SSL off": "it may want TLS: set sslmode=verify-full",
    r'database ".*" does not exist': (
        "this server is not the cluster's, or dbname is wrong: correct where it leads"
    ),
    r"does not support SSL": "switch TLS on at the server, or at what stands before it",
}
# What libpq says of a connection, for which there is no SQLSTATE.
_FOUND_NO_PRIMARY = re.compile("session is read-only|hot standby mode|writable connection")
_NO_WRITES = (
    "the server accepts no writes (a standby, or default_transaction_read_only is on); connect to "
    "the primary, for example with several hosts and target_session_attrs=read-write"
)
# All others are mistakes, in a statement (22, 23, 42) or in what somebody has added to the server,
# such as a trigger (P0), or damage (XX): they reach the user as they are.


class TakesNoWrites(StoreUnavailable):
    """The server is a standby, or was made read-only."""


class VersionRefused(SchemaError):
    """The tables refuse this version: it does not help to wait."""


def kind_of(error: StoreError) -> Kind:
    """Which kind of outage an error is a part of."""
    if isinstance(error, SchemaError):
        return "refused"
    return "read-only" if isinstance(error, TakesNoWrites) else "away"


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into this library's; what is a mistake in a statement passes as it
    is."""
    try:
        yield
    except _SCHEMA as error:
        raise SchemaError(f"PostgreSQL refused: {first_line(error)}. {_advice(error)}") from error
    except errors.CheckViolation as error:
        if error.diag.constraint_name != TOO_OLD:
            raise
        raise VersionRefused(
            f"jobsync_async {__version__} is too old for this cluster, whose tables were "
            "contracted for a newer one: install the version that the other workers run"
        ) from error
    except (UnicodeEncodeError, errors.UntranslatableCharacter) as error:
        raise ConfigError(
            "the database's encoding cannot hold a text that was given; use another one, or a "
            "database with ENCODING 'UTF8'"
        ) from error
    except errors.ReadOnlySqlTransaction as error:
        raise TakesNoWrites(_NO_WRITES) from error
    # psycopg lets it out when the connection breaks at the ROLLBACK; nothing was committed
    except psycopg.Rollback as error:
        raise StoreUnavailable(
            "PostgreSQL is not available: the connection broke while a transaction was rolled back"
        ) from error
    except psycopg.Error as error:
        if not _transient(error):
            raise
        if error.sqlstate is None and _FOUND_NO_PRIMARY.search(str(error)):
            raise TakesNoWrites(_NO_WRITES) from error
        what = remedy(error)
        raise StoreUnavailable(
            f"PostgreSQL is not available: {first_line(error)}{f' ({what})' if what else ''}"
        ) from error


def _transient(error: psycopg.Error) -> bool:
    state = error.sqlstate
    # Not the server's: the driver says that there is no connection. Behind PgBouncer it tells of a
    # session that was ended as of two answers to one BEGIN.
    if state is None:
        return isinstance(
            error, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
        )
    return state in _TRANSIENT or state[:2] in _TRANSIENT


def remedy(error: BaseException | None) -> str:
    """What to do about an error, where it says enough; else nothing."""
    text = str(error)
    return next((what for found, what in _REMEDIES.items() if re.search(found, text)), "")


def _advice(error: psycopg.Error) -> str:
    if "row-level security" in str(error):
        return (
            "A policy would hide rows, which a worker would take for rows that are not there: "
            "disable row level security on the table, or give the role BYPASSRLS"
        )
    if " for function " in str(error):
        return "GRANT EXECUTE ON that FUNCTION TO the role"
    elsewhere = (
        "; or correct host, port, dbname or schema, if this is not the cluster's database"
        if isinstance(error, (errors.UndefinedTable, errors.InvalidSchemaName))
        else ""
    )
    return (
        "Create or upgrade the tables, or grant the rights that are missing: `jobsync-async init` "
        "does it, `jobsync-async init --sql` prints what a database administrator can run"
        f"{elsewhere}"
    )


def first_line(error: psycopg.Error) -> str:
    """What it says, without details."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def without_frames(error: psycopg.Error) -> psycopg.Error:
    """The same error without its traceback: the driver's frames hold the connection string, and so
    the password, in their local variables, which some loggers print."""
    copy = type(error)(*error.args)
    copy.__suppress_context__ = True
    return copy
