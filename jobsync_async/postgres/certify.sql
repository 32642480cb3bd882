-- What `jobsync-async certify` asks a server, beside the statements of workers. Form and rules are as
-- in queries.sql. {strength} is that of a row's lock, and {how} what to do about another's lock. The
-- rows that are locked are of {evicted}: a worker may write it, and a name in it that no worker has
-- disturbs nobody.

-- name: settings
-- What decides about durability and room, and what this role may see; null where the server does not
-- know the setting. Bounds on connections are those of server, role and database; -1 is none.
SELECT current_setting('server_version') AS version,
       current_setting('fsync', true) AS fsync,
       current_setting('full_page_writes', true) AS full_page_writes,
       current_setting('synchronous_commit', true) AS synchronous_commit,
       current_setting('synchronous_standby_names', true) AS synchronous_standby_names,
       current_setting('max_connections')::integer
           - coalesce(current_setting('superuser_reserved_connections', true), '0')::integer
           - coalesce(current_setting('reserved_connections', true), '0')::integer AS server_most,
       (SELECT count(*) FROM pg_stat_activity
        WHERE coalesce(backend_type, 'client backend') = 'client backend') AS server_used,
       coalesce((SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user), -1) AS role_most,
       (SELECT count(*) FROM pg_stat_activity WHERE usename = session_user) AS role_used,
       coalesce((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1)
           AS database_most,
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS database_used

-- name: replicas
-- Those that are connected; without pg_monitor, only how many.
SELECT count(*) AS replicas, count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) AS synchronous,
       count(*) FILTER (WHERE sync_state IS NULL) AS unknown
FROM pg_stat_replication

-- name: put_row
INSERT INTO {evicted} (name, by, reason) VALUES (%(name)s, 'certify', %(reason)s)

-- name: take_rows
DELETE FROM {evicted} WHERE by = 'certify'

-- name: lock_row
SELECT name, reason FROM {evicted} WHERE name = %(name)s FOR {strength} {how}

-- name: skip_locked
SELECT name FROM {evicted} WHERE by = 'certify' FOR UPDATE SKIP LOCKED

-- name: read_row
SELECT reason FROM {evicted} WHERE name = %(name)s

-- name: change_row
-- As a heartbeat does it.
UPDATE {evicted} SET reason = %(reason)s WHERE name = %(name)s

-- name: delete_unchanged
-- As an expiry does it: only if it is still what was seen.
DELETE FROM {evicted} WHERE name = %(name)s AND reason = %(reason)s

-- name: number
-- A row that is rolled back: its number is what counts.
INSERT INTO {history} (version, kind) VALUES (0, 'certify') RETURNING id

-- name: lock_key
SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))

-- name: try_key
SELECT pg_try_advisory_xact_lock(hashtextextended(%(key)s, 0)) AS got

-- name: share_key
SELECT pg_try_advisory_xact_lock_shared(hashtextextended(%(key)s, 0)) AS got

-- name: hold_key
-- For as long as the session lasts.
SELECT pg_try_advisory_lock(hashtextextended(%(key)s, 0)) AS got

-- name: set_for_transaction
SELECT set_config(%(name)s, %(value)s, true)

-- name: sleep
SELECT pg_sleep(%(seconds)s)

-- name: notify
SELECT pg_notify(%(channel)s, '1')

-- name: change_unheard
-- A change that is announced to nobody and looks as if it were: what a lost notification leaves.
UPDATE {cluster} SET version = version + 1, announced = version + 1 WHERE {sound}

-- name: sessions_of
-- Which sessions a worker has, by the tag in its row.
SELECT a.pid FROM pg_stat_activity a JOIN {node} n ON strpos(a.application_name, n.session_tag) > 0
WHERE n.name = %(name)s AND a.datname = current_database() AND a.pid <> pg_backend_pid()

-- name: end_session
SELECT pg_terminate_backend(%(pid)s) AS ended

-- name: owner
SELECT incarnation, epoch FROM {token} WHERE token_id = %(token_id)s

-- name: write_effect
-- What a worker writes in a fenced transaction: the history takes it from every role of a worker.
INSERT INTO {history} (version, kind, by) VALUES (0, 'certify', %(by)s)

-- name: read_effects
SELECT by FROM {history} WHERE kind = 'certify'

-- name: plans
-- How long the leader took for each distribution, from the lock to the commit.
SELECT tokens_moved, duration_ms FROM {rebalance} ORDER BY version
