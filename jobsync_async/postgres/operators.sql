-- The statements for people who look after a cluster: the observer's, and those of the command
-- line. Most read; where a worker writes the same, the command line uses its statement, in
-- queries.sql. Form and rules are as there.

-- name: look
-- All that an observer shows, in one atomic read: the cluster, its workers, and the tokens changed
-- since, each with the age number of its live owner.
SELECT c.version, c.announced, c.term, c.generation, c.total_tokens, c.hash_function,
       (SELECT name FROM {node} n WHERE n.incarnation = c.leader_incarnation) AS leader,
       workers.numbers, workers.names, workers.addresses, changed.token_ids, changed.owners
FROM {cluster} c
CROSS JOIN LATERAL (
    SELECT array_agg(joined ORDER BY joined) AS numbers, array_agg(name ORDER BY joined) AS names,
           array_agg(address ORDER BY joined) AS addresses
    FROM {node}
) workers
CROSS JOIN LATERAL (
    SELECT array_agg(t.token_id) AS token_ids, array_agg(o.joined) AS owners
    FROM (
        SELECT token_id, incarnation FROM {token} WHERE version > %(since)s
        UNION ALL  -- as the first distribution made them: see read_changes
        SELECT token_id, incarnation FROM {token}
        WHERE version = 0 AND %(since)s >= 0 AND %(since)s < c.tokens_since
    ) t LEFT JOIN {node} o USING (incarnation)
    WHERE t.token_id < c.total_tokens  -- others are left over
) changed

-- name: owners_of
SELECT t.token_id, n.name AS node, n.address, t.epoch
FROM {token} t JOIN {node} n USING (incarnation) WHERE t.token_id = ANY(%(token_ids)s)

-- == explain ======================================================================================

-- name: explain_token
-- A token's row, its live owner, and the last distribution up to its last change.
SELECT t.node, t.epoch, nullif(t.next_node, '') AS next_node, t.next_node IS NOT NULL AS revoked,
       t.version, t.assigned_at,
       extract(epoch FROM clock_timestamp() - t.revoked_at)::double precision AS revoked_sec,
       n.name AS owner, n.address, n.state,
       extract(epoch FROM clock_timestamp() - n.last_heartbeat)::double precision
           AS heartbeat_age_sec,
       {timeout} AS timeout_sec, r.reason, r.at AS rebalanced_at, r.version AS rebalance_version
FROM {token} t CROSS JOIN {cluster} c
LEFT JOIN {node} n USING (incarnation)
LEFT JOIN LATERAL (
    SELECT reason, at, version FROM {rebalance}
    WHERE version <= t.version ORDER BY version DESC LIMIT 1
) r ON true
WHERE t.token_id = %(token_id)s

-- name: explain_task
-- Whether the task was begun or completed on a date, and by whom: outside of named batches first,
-- then in each that has it. `set_aside_on` is the date on which it was set aside, whichever that
-- was.
SELECT b.name AS batch, c.node AS begun_by, c.claimed_at, c.error,
       greatest(c.owners_lost, s.owners_lost, 0) AS owners_lost,
       s.date AS set_aside_on, s.set_aside_at, a.node AS completed_by, a.completed_at
FROM (SELECT NULL AS name UNION SELECT name FROM {batch} WHERE date = %(date)s) b
CROSS JOIN LATERAL (
    -- as core/hashing.py makes it
    SELECT sha256(coalesce(convert_to(b.name, 'UTF8') || decode('00', 'hex'), '')
                  || convert_to(%(task_id)s::text, 'UTF8')) AS task_key
) k
LEFT JOIN {claim} c ON c.date = %(date)s AND c.task_key = k.task_key
LEFT JOIN {audit} a ON a.date = %(date)s AND a.task_key = k.task_key
LEFT JOIN {set_aside} s ON s.task_key = k.task_key
WHERE b.name IS NULL OR c.date IS NOT NULL OR a.date IS NOT NULL OR s.date IS NOT NULL
ORDER BY b.name NULLS FIRST

-- name: release_tasks
-- What is set aside may be begun again, with nobody lost to it. Null stands for all: tasks,
-- batches, dates.
WITH released AS (
    DELETE FROM {set_aside}
    WHERE (%(task_ids)s::text[] IS NULL OR task_id = ANY(%(task_ids)s))
      AND (%(batch)s::text IS NULL OR batch = %(batch)s)
      AND (%(date)s::date IS NULL OR date = %(date)s)
    RETURNING task_key, task_id, batch, date
), forgotten AS (
    UPDATE {claim} c SET set_aside_at = NULL, owners_lost = 0, error = NULL
    FROM released r WHERE c.date = r.date AND c.task_key = r.task_key
)
SELECT task_id, batch, date FROM released ORDER BY date, batch NULLS FIRST, task_id

-- == doctor =======================================================================================

-- name: doctor_server
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::integer AS version_num,
       current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only')::boolean AS read_only,
       current_user AS role, current_database() AS database,
       current_setting('max_connections')::integer
           - current_setting('superuser_reserved_connections')::integer AS connections_most,
       (SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend') AS connections_used,
       coalesce(current_setting('idle_session_timeout', true), '0') AS idle_session_timeout,
       current_setting('fsync')::boolean AS fsync,
       current_setting('full_page_writes')::boolean AS full_page_writes,
       pg_backend_pid() AS backend_pid, pg_notification_queue_usage() AS queue_usage

-- name: doctor_clock
SELECT extract(epoch FROM clock_timestamp())::double precision AS seconds

-- name: doctor_rights
-- What this role may do with each table, and what a worker needs to do there that it may not; no
-- row for a table that is not there. A right to update some columns is one to update.
SELECT c.relname::text AS table, has_table_privilege(c.oid, 'SELECT') AS reads,
       has_table_privilege(c.oid, 'INSERT, DELETE')
           OR has_any_column_privilege(c.oid, 'UPDATE') AS writes,
       ARRAY(SELECT what FROM unnest(string_to_array(w.needed, ' ')) AS what
             WHERE NOT CASE what WHEN 'UPDATE' THEN has_any_column_privilege(c.oid, what)
                            ELSE has_table_privilege(c.oid, what) END) AS lacks
FROM unnest(%(tables)s::text[], %(needed)s::text[]) AS w(name, needed)
JOIN pg_class c ON c.relname = w.name
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s ORDER BY c.relname

-- name: doctor_may_use
SELECT has_schema_privilege(oid, 'USAGE') AS uses FROM pg_namespace WHERE nspname = %(schema)s

-- name: doctor_sizes
-- Bytes and rows of each table. Dead rows are those that vacuum has yet to remove, by the
-- statistics.
SELECT c.relname::text AS table, pg_relation_size(c.oid) AS bytes,
       s.n_live_tup AS live, s.n_dead_tup AS dead
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE n.nspname = %(schema)s AND c.relname = ANY(%(tables)s) ORDER BY c.relname

-- name: doctor_transactions
-- The oldest transaction of this database: vacuum removes nothing that it may still see.
SELECT pid, application_name, state,
       extract(epoch FROM clock_timestamp() - xact_start)::double precision AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
  AND backend_type = 'client backend'
ORDER BY xact_start LIMIT 1

-- == the bound on timeouts ========================================================================

-- name: read_bound
-- And up to where the server's log is written.
SELECT longest_wait, longest_allowed, pg_current_wal_insert_lsn()::text AS written FROM {cluster}

-- name: above_bound
-- Workers that a lower bound would not fit, or that do not say whether it does. The cluster's row
-- is locked: none joins meanwhile.
SELECT n.name FROM {node} n
WHERE n.said_by IS DISTINCT FROM n.incarnation OR n.timeout_sec > %(bound)s ORDER BY n.joined

-- name: set_bound
-- Raised, it is at first only how long workers wait; lowered, it is both at once.
UPDATE {cluster} SET longest_wait = %(bound)s,
    longest_allowed = CASE WHEN longest_allowed > %(bound)s THEN %(bound)s ELSE longest_allowed END
WHERE {sound}

-- name: allow_bound
UPDATE {cluster} SET longest_allowed = %(bound)s WHERE {sound} AND longest_wait = %(bound)s

-- name: replicas_without
-- Copies of the server that may not have what was written up to a place: those connected, as far as
-- this role may see how far they are, and those that a slot waits for. What makes a backup is none.
SELECT concat_ws(' ', application_name, 'at', coalesce(host(client_addr), 'this host')) AS replica
FROM pg_stat_replication
WHERE (flush_lsn >= %(written)s::pg_lsn) IS NOT TRUE AND state IS DISTINCT FROM 'backup'
UNION ALL
SELECT concat_ws(' ', 'whoever uses the slot', slot_name) FROM pg_replication_slots
WHERE slot_type = 'physical' AND NOT active AND restart_lsn < %(written)s::pg_lsn

-- == pins =========================================================================================

-- name: delete_pins_of_tasks
DELETE FROM {lock} WHERE task_key = ANY(%(task_keys)s)

-- == versions =====================================================================================

-- name: raise_schema_version
-- Workers that know no layout as new as this are refused when they start. Comes in one message with
-- refuse_older.
UPDATE {cluster} SET schema_version = %(layout)s
WHERE schema_version < %(layout)s AND layout >= %(layout)s

-- name: refuse_older
-- And the very statement that makes such a worker's row is refused, also one that has started
-- before. It fails, and both are undone, while there is a row of such a worker.
ALTER TABLE {node} DROP CONSTRAINT IF EXISTS {too_old},
    ADD CONSTRAINT {too_old} CHECK (coalesce(layout >= %(layout)s AND said_by = incarnation, false))

-- name: list_older
-- The workers that are in the way of it, with their versions.
SELECT array_agg(
           name || ' (' || CASE WHEN said_by = incarnation THEN library ELSE '0.1.0' END || ')'
           ORDER BY joined) AS names
FROM {node} WHERE NOT coalesce(layout >= %(layout)s AND said_by = incarnation, false)
