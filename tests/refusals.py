"""Makes a database answer as managed servers do, which refuse some functions.

What is changed belongs to one database: its copies (``CREATE DATABASE … TEMPLATE``) have it too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg import sql


class Refused(NamedTuple):
    """A function, and how it fails.

    Attributes:
        signature: its name and the types of its parameters.
        result: what it would return.
        state, message, hint: of its error.
    """

    signature: str
    result: str
    state: str
    message: str
    hint: str = ""


_NOT_ON_AURORA = "is currently not supported for Aurora"
POSITION_ON_AURORA = Refused(
    "pg_current_wal_lsn()",
    "pg_lsn",
    "55000",
    "wal_level must be set to 'logical'",
    "WAL control functions cannot be executed when wal_level < logical.",
)
FILE_ON_AURORA = Refused(
    "pg_walfile_name(pg_lsn)", "text", "0A000", f"Function pg_walfile_name() {_NOT_ON_AURORA}"
)
SYSTEM = Refused(
    "pg_control_system()",
    "TABLE (system_identifier bigint)",
    "0A000",
    "pg_control_system() is switched off here",
)
POSITION = Refused(
    "pg_current_wal_lsn()", "pg_lsn", "0A000", "pg_current_wal_lsn() is switched off here"
)
FILE = Refused("pg_walfile_name(pg_lsn)", "text", "0A000", "pg_walfile_name() is switched off here")
AURORA = {
    "wal_level=replica": (POSITION_ON_AURORA, FILE_ON_AURORA),
    "wal_level=logical": (FILE_ON_AURORA,),
}
"""What Aurora refuses, by the cluster's parameter."""


def refuse(admin: psycopg.Connection[Any], *functions: Refused) -> None:
    """Let functions fail from now on. Their own are renamed, for what is built in is called by its
    number.

    Args:
        admin: a superuser's connection to the database.
    """
    admin.execute("SET allow_system_table_mods = on")
    for function in functions:
        name = function.signature.partition("(")[0]
        admin.execute("UPDATE pg_proc SET proname = proname || '_real' WHERE proname = %s", [name])
        body = (
            f"BEGIN RAISE EXCEPTION USING MESSAGE = {_literal(function.message)}, "
            f"HINT = {_literal(function.hint)}, ERRCODE = '{function.state}'; END"
        )
        admin.execute(
            sql.SQL(
                f"CREATE FUNCTION pg_catalog.{function.signature} RETURNS {function.result} "
                "LANGUAGE plpgsql AS {}"
            ).format(sql.Literal(body))
        )


def allow_again(admin: psycopg.Connection[Any], *functions: Refused) -> None:
    """Undo `refuse`."""
    admin.execute("SET allow_system_table_mods = on")
    for function in functions:
        name = function.signature.partition("(")[0]
        admin.execute(f"DROP FUNCTION pg_catalog.{function.signature}".encode())
        admin.execute("UPDATE pg_proc SET proname = %s WHERE proname = %s", [name, f"{name}_real"])


def be_aurora(admin: psycopg.Connection[Any], wal_level: str = "wal_level=replica") -> None:
    """Answer as Aurora does: no timeline is to be had, and ``aurora_version()`` says which version
    it is.

    Args:
        admin: a superuser's connection to the database.
        wal_level: one of `AURORA`.
    """
    refuse(admin, *AURORA[wal_level])
    admin.execute(
        "CREATE FUNCTION pg_catalog.aurora_version() RETURNS text LANGUAGE sql AS $$SELECT '17.4'$$"
    )


def _literal(text: str) -> str:
    return sql.Literal(text).as_string()
