"""The demo's own tables and statements, beside those of its cluster. The prefix is the cluster's
``appname``."""

from __future__ import annotations

from functools import cached_property

from psycopg import sql

from jobsync_async.postgres.sql import TABLES

CREATE = """
CREATE TABLE {file} (path text PRIMARY KEY, worker text, epoch bigint, sha256 text, size integer,
    packed integer);
CREATE TABLE {run} (path text, worker text, epoch bigint,
    begun timestamptz DEFAULT clock_timestamp(), ended timestamptz);
CREATE INDEX ON {run} (path);
"""
ADD_FILES = "INSERT INTO {file} (path) SELECT unnest(%(paths)s::text[])"
READ_PATHS = "SELECT path FROM {file} ORDER BY path"
BEGIN_RUN = "INSERT INTO {run} (path, worker, epoch) VALUES (%(path)s, %(worker)s, %(epoch)s)"
# Sent in one transaction with the fence, so only the task's owner gets here, and epochs can only
# rise.
WRITE_RESULT = """
UPDATE {file} SET worker = %(worker)s, epoch = %(epoch)s, sha256 = %(sha256)s, size = %(size)s,
    packed = %(packed)s
WHERE path = %(path)s AND coalesce(epoch, 0) <= %(epoch)s
"""
END_RUN = (
    "UPDATE {run} SET ended = clock_timestamp() WHERE path = %(path)s AND worker = %(worker)s AND "
    "epoch = %(epoch)s"
)

# What a killed worker had begun ended when it was killed.
KILLED = "UPDATE {run} SET ended = clock_timestamp() WHERE worker = %(worker)s AND ended IS NULL"
PROGRESS = "SELECT node, count(*) FROM {audit} GROUP BY node"
TOKENS = (
    "SELECT n.name, count(t.token_id) FROM {node} n LEFT JOIN {token} t USING (incarnation) GROUP "
    "BY n.name"
)
# Every token has a live owner and is on its way to nobody else, and the shares are even.
SETTLED = """
SELECT array_agg(name ORDER BY name) = %(workers)s AND max(tokens) - min(tokens) <= 1
   AND sum(tokens) = (SELECT count(*) FROM {token} WHERE next_node IS NULL)
FROM (SELECT name, count(token_id) AS tokens FROM {node} LEFT JOIN {token}
    USING (incarnation) GROUP BY name) AS shares
"""
MOVED = "SELECT coalesce(sum(tokens_moved), 0)::bigint FROM {rebalance} WHERE version > %(since)s"
SINCE_JOIN = (
    "SELECT extract(epoch FROM clock_timestamp() - created_on)::float8 FROM {node} WHERE name = "
    "%(worker)s"
)
VERSION = "SELECT version FROM {cluster}"

COMPLETIONS = "SELECT count(*), count(DISTINCT task_id) FROM {audit}"
NOT_COMPLETED = (
    "SELECT count(*) FROM {file} f WHERE NOT EXISTS (SELECT FROM {audit} a WHERE a.task_id = "
    "f.path)"
)
RESULTS = "SELECT path, sha256 FROM {file}"
# Two runs of one file overlap when the later began before the earlier ended.
OVERLAPS = """
SELECT count(*) FROM {run} a JOIN {run} b ON a.path = b.path AND a.ctid <> b.ctid
WHERE a.begun <= b.begun AND (a.ended IS NULL OR b.begun < a.ended)
"""
REPEATED = "SELECT count(*) FROM (SELECT FROM {run} GROUP BY path HAVING count(*) > 1) AS again"

_TABLES = ("file", "run", *TABLES)


class Tables:
    """The names of one demo's tables, and the statements with them filled in."""

    def __init__(self, schema: str, appname: str) -> None:
        self.schema = schema
        self.appname = appname

    @cached_property
    def _names(self) -> dict[str, sql.Identifier]:
        return {table: sql.Identifier(self.schema, self.appname + table) for table in _TABLES}

    def fill(self, statement: str) -> sql.Composed:
        """A statement of this module for these tables."""
        return sql.SQL(statement).format(**self._names)

    def drop(self) -> sql.Composed:
        """Deletes them all, those of the cluster too."""
        return sql.SQL("DROP TABLE IF EXISTS {}").format(sql.SQL(", ").join(self._names.values()))
